qalora_mutant(repack.cu nibbles_in_a_row [[in_pairs<4, 0, 4, 4>(eight_codes<4>(from, row + lane / 4 + 8 * half,]]
              [[(eight_codes<4>(from, row + lane / 4 + 8 * half,]] CHECK EveryCodeIsInItsPlace)
qalora_mutant(repack.cu row_tail [[row >= from.out_features || k]] [[row > from.out_features || k]] DIES)
qalora_mutant(repack.cu input_tail [[k >= from.in_features]] [[k > from.in_features]])
qalora_mutant(repack.cu three_bits_within_a_word [[if (shift + 8 * kBits > 32)]] [[if (shift + 8 * kBits > 40)]])
qalora_mutant(repack.cu blocks_swapped [[<< 8) << odd;]] [[<< 8) << (1 - odd);]])
qalora_mutant(repack.cu halves_swapped [[lane / 4 + 8 * half, group]] [[lane / 4 + 8 * (1 - half), group]])
