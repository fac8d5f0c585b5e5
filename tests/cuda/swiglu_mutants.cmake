qalora_mutant(swiglu.cu wrong_sign [=[exponential<T>(-g)]=] [=[exponential<T>(g)]=] CHECK IsRoundedOnce)
qalora_mutant(swiglu.cu gate_and_up_swapped
  [=[values[i] * sigmoid<T>(values[i]) * u[i]]=]
  [=[u[i] * sigmoid<T>(u[i]) * values[i]]=] CHECK IsRoundedOnce)
qalora_mutant(swiglu.cu rounded_twice
  [=[values[i] * sigmoid<T>(values[i]) * u[i]]=]
  [=[static_cast<float>(round_to<T>(values[i] * sigmoid<T>(values[i]))) * u[i]]=] CHECK IsRoundedOnce)
qalora_mutant(swiglu.cu pools_unrounded [=[packed[k].unpack(values);  // the sums]=] [=[// the sums]=] CHECK IsRoundedOnce)
qalora_mutant(swiglu.cu columns_at_the_wrong_place [=[row_out + width, dynamic]=] [=[row_out + width + 1, dynamic]=] DIES)
qalora_mutant(swiglu.cu last_chunk_missing
  [=[if (chunk < last) packed[k].template store]=]
  [=[if (chunk < last - 1) packed[k].template store]=] CHECK IsRoundedOnce)
qalora_mutant(swiglu.cu one_chunk_too_many [=[if (chunk < last) {]=] [=[if (chunk <= last) {]=] DIES)
qalora_mutant(swiglu.cu stride_is_width [=[out + row * out_stride]=] [=[out + row * width]=] CHECK IsRoundedOnce)
qalora_mutant(swiglu.cu unaligned_is_aligned
  [=[aligned_to(16, {gate, up, out}) && out_stride % vector_elements(type) == 0]=]
  [=[true]=] DIES)
qalora_mutant(swiglu.cu gradient_without_derivative [=[(s + silu * (1.0f - s))]=] [=[s]=] CHECK GradientIsRoundedOnce)
qalora_mutant(swiglu.cu gradient_of_rounded_silu
  [=[silu = g[i] * s;]=]
  [=[silu = static_cast<float>(round_to<T>(g[i] * s));]=] CHECK GradientIsRoundedOnce)
qalora_mutant(swiglu.cu gradients_swapped
  [=[packed_gate.template store<kAligned>(dgate + chunk * kSize);]=]
  [=[packed_up.template store<kAligned>(dgate + chunk * kSize);]=] CHECK GradientIsRoundedOnce)
qalora_mutant(swiglu.cu gradient_runs_over [=[if (chunk >= chunks) return;]=] [=[if (chunk > chunks) return;]=] DIES)
qalora_mutant(swiglu.cu gradient_grid_is_short
  [=[tiles_over(rows * width / vector_elements(type), kSegmentThreads)]=]
  [=[rows * width / vector_elements(type) / kSegmentThreads + 1 - (rows == 1)]=] IN elementwise.h CHECK GradientIsRoundedOnce)
qalora_mutant(swiglu.cu later_chunks_missing [=[begin += kSegmentKept * threads]=] [=[begin += last]=] CHECK IsRoundedOnce)
