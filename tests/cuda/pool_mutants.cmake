qalora_mutant(pool.cu row_zero "const int64_t row = blockIdx.x;" "const int64_t row = 0;" CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu last_chunk_missing [=[chunk < last, values);]=] [=[chunk < last - 1, values);]=] CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu one_chunk_too_many [=[if (chunk < last) loaded]=] [=[if (chunk <= last) loaded]=] DIES)
qalora_mutant(pool.cu segment_one_early
  [=[dynamic_shared<float>(), first * kSize);]=]
  [=[dynamic_shared<float>(), 0);]=] CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu vectors_of_unaligned [=[aligned_to(16, {x}) && stride % vector_elements(type) == 0]=] [=[true]=] DIES)
qalora_mutant(pool.cu columns_in_front [=[row_x + width, dynamic]=] [=[row_x + width - 1, dynamic]=] CHECK IsTheSumOfEachGroup)

# The sums that all makers of rows share.
qalora_mutant(pool.cu second_column_beside [=[columns[pooling.groups + group] = rounded;]=] [=[columns[group + 1] = rounded;]=] IN row.h)
qalora_mutant(pool.cu inactive_lanes_add
  [=[active ? outputs[i] : 0.0f]=]
  [=[active ? outputs[i] : 1.0f]=] IN row.h CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu half_the_lanes
  [=[step < lanes; step *= 2) sum]=]
  [=[step < lanes / 2; step *= 2) sum]=] IN row.h CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu sums_are_rounded
  [=[if (sums != nullptr) sums[group] = sum;]=]
  [=[if (sums != nullptr) sums[group] = static_cast<float>(round_to<T>(sum));]=] IN row.h CHECK AddsInSinglePrecision)
qalora_mutant(pool.cu no_barrier [=[    __syncthreads();
    const int units]=] [=[    const int units]=] IN row.h CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu short_group_read_on
  [=[min(present, (group + 1) * units)]=]
  [=[(group + 1) * units]=] IN row.h CHECK IsTheSumOfEachGroup)
qalora_mutant(pool.cu a_warp_skips_groups
  [=[group * units < present; group += warps]=]
  [=[group * units < present; group += warps + 1]=] IN row.h)

# Shows that copies are not noticed for being copies.
qalora_mutant(pool.cu unmutated [=[const int64_t row = blockIdx.x;]=] [=[const int64_t row = blockIdx.x;]=])
