qalora_mutant(fold.cu no_scaling [[__fmaf_rn(work.scaling, sums[row], offset.x)]] [[__fadd_rn(sums[row], offset.x)]])
qalora_mutant(fold.cu first_barrier_missing [[    __syncthreads();
    stage_rows]] [[    stage_rows]])
qalora_mutant(fold.cu second_barrier_missing [[rows);
    __syncthreads();]] [[rows);]])
qalora_mutant(fold.cu rank_tail [[column < work.rank ?]] [[column <= work.rank ?]] DIES)
qalora_mutant(fold.cu padding_left [[if (group >= quads * kQuad) return;]] [[if (group >= groups) return;]])
qalora_mutant(fold.cu halves_swapped [[sums[row + 8], offset.y]] [[sums[row], offset.y]])
