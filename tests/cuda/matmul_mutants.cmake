qalora_mutant(matmul.cu no_barrier [[      __syncthreads();  // everybody's copies]] [[      // everybody's copies]])
qalora_mutant(matmul.cu no_barrier_before_the_end [[  __syncthreads();  // the last tiles of x have been read]] [[]])
qalora_mutant(matmul.cu no_barrier_in_zero_term [[    __syncthreads();  // one a step will do]] [[    // one a step will do]])
qalora_mutant(matmul.cu waits_for_too_few [[cp_async_wait<kStages - 2>();]] [[cp_async_wait<kStages - 1>();]])
qalora_mutant(matmul.cu swizzle_of_one_side [[(chunk ^ (first % 2 * 4))]] [[chunk]])
qalora_mutant(matmul.cu input_tail [[token < work.x.rows && input < work.layout.in_features]] [[token < work.x.rows]] DIES)
qalora_mutant(matmul.cu token_tail [[first_token + first + token < work.x.rows && input]] [[input]] DIES)
qalora_mutant(matmul.cu store_tail [[token >= work.x.rows || row >= work.layout.out_features]] [[token >= work.x.rows]] DIES)
qalora_mutant(matmul.cu zero_term_in_bf16 [[      mma_m16n8k16<__nv_bfloat16>(sums[i][column], high, x_low);
]] [[]] CHECK ZeroTermHasMoreThanSixteenBitsOfBothFactors)
qalora_mutant(matmul.cu zero_term_low_offsets [[      mma_m16n8k16<__nv_bfloat16>(sums[i][column], low, x_high);
]] [[]] CHECK ZeroTermHasMoreThanSixteenBitsOfBothFactors)
qalora_mutant(matmul.cu zero_quads_tail [[quad + i < last ? quad + i : last]] [[quad + i]] DIES)
qalora_mutant(matmul.cu zero_sums_tail [[token < work.x.rows && group < work.layout.groups]] [[token < work.x.rows]] DIES)
qalora_mutant(matmul.cu stages_not_counted [[stage > 0 ? stage - 1 : kStages - 1]] [[stage]])
qalora_mutant(matmul.cu first_part_twice [[sum += from[part * part_size];]] [[sum += from[0];]])
qalora_mutant(matmul.cu parts_by_rows [[static_cast<unsigned>(parts_of(shape, multiprocessors)));]] [[rows > 32 ? 1u : static_cast<unsigned>(parts_of(shape, multiprocessors)));]])
qalora_mutant(matmul.cu last_block_of_three_bits [[codes.one.x >> 1 : codes.one.y]] [[codes.one.x >> 1 : codes.one.x]] IN tile.h)
qalora_mutant(matmul.cu first_part_of_fours_twice [[from + part * part_size)]] [[from)]])
qalora_mutant(matmul.cu fours_of_odd_rows [[return out_features % kAddValues == 0 &&]] [[return]] DIES)
qalora_mutant(matmul.cu fours_of_odd_strides [[y.stride % kAddValues == 0 &&]] [[]] DIES)
qalora_mutant(matmul.cu adds_the_first_token [[workspace + token * out_features + column]] [[workspace + column]])
qalora_mutant(matmul.cu fours_swapped [[word_of(__floats2bfloat162_rn(values.z, values.w))]] [[word_of(__floats2bfloat162_rn(values.w, values.z))]] IN products.h)
qalora_mutant(matmul.cu walks_no_quads [[    coming.next();
  };]] [[  };]])
qalora_mutant(matmul.cu sums_cost_nothing [[parts * blocks * kSumsTiles +]] [[]] IN parts.h CHECK KIsCutWhereThatIsWorthIt)
qalora_mutant(matmul.cu rounds_not_counted [[return rounds * (]] [[return (]] IN parts.h CHECK KIsCutWhereThatIsWorthIt)
# The warp's part of the ring is written again only when all lanes have read it, and read only when all have written.
qalora_mutant(matmul.cu sums_overwritten_early [[i < kTiles; ++i) {
    __syncwarp();
#pragma unroll]] [[i < kTiles; ++i) {
#pragma unroll]])
qalora_mutant(matmul.cu sums_read_early [[    __syncwarp();
    const int tile]] [[    const int tile]])
