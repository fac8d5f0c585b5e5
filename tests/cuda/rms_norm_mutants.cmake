qalora_mutant(rms_norm.cu eps_outside_the_root
  [=[rsqrtf(block_sum(squares, slots) * (1.0f / static_cast<float>(width)) + eps)]=]
  [=[rsqrtf(block_sum(squares, slots) * (1.0f / static_cast<float>(width))) + eps]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu eps_in_the_sum
  [=[rsqrtf(block_sum(squares, slots) * (1.0f / static_cast<float>(width)) + eps)]=]
  [=[rsqrtf((block_sum(squares, slots) + eps) * (1.0f / static_cast<float>(width)))]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu norms_without_residual [=[values[i] += addend[i];]=] [=[;]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu residual_not_kept [=[sum.template store<kAligned>(residual_out + element);]=] [=[;]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu pools_unrounded [=[packed.unpack(values);  // the sums]=] [=[// the sums]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu no_weight [=[values[i] * scale * factors[i]]=] [=[values[i] * scale]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu weight_is_rounded
  [=[values[i] * scale * factors[i]]=]
  [=[values[i] * scale * static_cast<float>(round_to<__nv_bfloat16>(factors[i]))]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu rounded_twice
  [=[values[i] * scale * factors[i]]=]
  [=[static_cast<float>(round_to<T>(values[i] * scale)) * factors[i]]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu long_rows_cut [=[begin < chunks; begin += threads)]=] [=[begin < 0; begin += threads)]=] CHECK TakesLongRows)
qalora_mutant(rms_norm.cu long_rows_without_residual
  [=[(residual == nullptr ? h : residual_out) + element]=]
  [=[h + element]=] CHECK TakesLongRows)
qalora_mutant(rms_norm.cu rows_run_over [=[if (chunk < chunks) input.load(]=] [=[if (chunk <= chunks) input.load(]=] DIES)
qalora_mutant(rms_norm.cu stride_is_width [=[out + row * out_stride]=] [=[out + row * width]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu slots_shared [=[slots + kWarpSlots, 0)]=] [=[slots, 0)]=] CHECK NormsAndPools)
qalora_mutant(rms_norm.cu no_barrier_in_sum [=[slots[warp_index()] = value;
  __syncthreads();]=] [=[slots[warp_index()] = value;]=] IN row.h CHECK NormsAndPools)
qalora_mutant(rms_norm.cu first_warp_alone
  [=[lane_index() < warps ? slots[lane_index()] : 0.0f]=]
  [=[lane_index() < 1 ? slots[lane_index()] : 0.0f]=] IN row.h CHECK NormsAndPools)
qalora_mutant(rms_norm.cu unaligned_is_aligned [=[aligned_to(kNormChunk * bytes_of(type), {residual, out}) && out_stride % kNormChunk == 0]=] [=[true]=] DIES)

qalora_mutant(rms_norm.cu gradient_without_mean [=[(from[i] - n[i] * mean)]=] [=[from[i]]=] CHECK HasItsGradient)
qalora_mutant(rms_norm.cu gradient_mean_of_half
  [=[block_sum(products, dynamic_shared<float>()) * (1.0f / static_cast<float>(width))]=]
  [=[block_sum(products, dynamic_shared<float>()) * (1.0f / static_cast<float>(width + 1))]=] CHECK HasItsGradient)
qalora_mutant(rms_norm.cu gradient_without_weight [=[g[i] *= factors[i];]=] [=[;]=] CHECK HasItsGradient)
qalora_mutant(rms_norm.cu gradient_through_scaled
  [=[sum[i] += scale * (from[i] - n[i] * mean)]=]
  [=[sum[i] = scale * (sum[i] + from[i] - n[i] * mean)]=] CHECK HasItsGradient)
qalora_mutant(rms_norm.cu gradient_without_through [=[if (row_through != nullptr) added]=] [=[if (false) added]=] CHECK HasItsGradient)
qalora_mutant(rms_norm.cu gradient_long_rows_cut [=[    products = dot(one_g, one_normed, products);]=] [=[]=] CHECK TakesLongRows)
qalora_mutant(rms_norm.cu gradient_long_rows_lack_through
  [=[    load_through(chunk, added[0]);]=]
  [=[    added[0].fill(0);]=] CHECK TakesLongRows)
