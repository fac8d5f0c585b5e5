qalora_mutant(rope.cu turns_the_other_way [=[backward ? -1.0f : 1.0f]=] [=[backward ? 1.0f : -1.0f]=] CHECK Turns)
qalora_mutant(rope.cu never_turns_back [=[backward ? -1.0f : 1.0f]=] [=[1.0f]=] CHECK TurnsBackAndInPlace)
qalora_mutant(rope.cu turns_neighbours [=[b[i] * c[i] + a[i] * sine]=] [=[b[i] * c[i] - a[i] * sine]=] CHECK Turns)
qalora_mutant(rope.cu first_is_overwritten [=[b[i] = b[i] * c[i] + a[i] * sine;
      a[i] = one;]=] [=[a[i] = one;
      b[i] = b[i] * c[i] + a[i] * sine;]=] CHECK Turns)
qalora_mutant(rope.cu tail_missing [=[(half + kSize - 1) / kSize]=] [=[half < kSize ? 1 : half / kSize]=] CHECK Turns)
qalora_mutant(rope.cu angles_of_all_heads [=[cos + token * head_dim + begin]=] [=[cos + token * half + begin]=] CHECK Turns)
qalora_mutant(rope.cu heads_beyond_a_block [=[head < heads; head]=] [=[head < min(heads, static_cast<int>(blockDim.y)); head]=] CHECK Turns)
qalora_mutant(rope.cu tails_run_over [=[kAligned ? kSize : min(kSize, half - begin)]=] [=[kSize]=] DIES)
qalora_mutant(rope.cu unaligned_is_aligned
  [=[aligned_to(16, {x, out, cos, sin}) && head_dim / 2 % vector_elements(type) == 0]=]
  [=[true]=] DIES)
