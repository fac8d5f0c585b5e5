qalora_mutant(cross_entropy.cu largest_not_taken_off
  [=[exponential<T>(values[i] - grown)]=]
  [=[exponential<T>(values[i])]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu not_rescaled
  [=[sum = sum * exponential<T>(largest - grown) + more;]=]
  [=[sum = sum + more;]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu begins_at_minus_infinity
  [=[float largest = -FLT_MAX;]=]
  [=[float largest = -INFINITY;]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu hides_a_nan
  [=[sum = sum * exponential<T>(largest - grown) + more;]=]
  [=[sum = sum * exponential<T>(largest - grown) + fmaxf(more, 0.0f);]=] CHECK ANanIsSeen)
qalora_mutant(cross_entropy.cu tail_is_zero [=[loaded.fill(kMinusInfinity);]=] [=[loaded.fill(0);]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu tail_missing [=[(vocab + kSize - 1) / kSize]=] [=[vocab < kSize ? 1 : vocab / kSize]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu tail_runs_over [=[kSize, vocab - chunk * kSize);
    return loaded;]=] [=[kSize, kSize);
    return loaded;]=] DIES)
qalora_mutant(cross_entropy.cu writes_beyond_the_vocabulary
  [=[store<kAligned>(row_logits + int64_t{chunk} * kSize, vocab - chunk * kSize);]=]
  [=[store<kAligned>(row_logits + int64_t{chunk} * kSize,
  min(vocab - chunk * kSize + 1, static_cast<int>(stride - int64_t{chunk} * kSize)));]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu no_barrier [=[slots[kWarpSlots + warp_index()] = sum;
  __syncthreads();]=] [=[slots[kWarpSlots + warp_index()] = sum;]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu first_warp_alone
  [=[lane < warps ? slots[kWarpSlots + lane] : 0.0f]=]
  [=[lane < 1 ? slots[kWarpSlots + lane] : 0.0f]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu warps_not_rescaled
  [=[warp_sum(part.sum * exponential<T>(part.largest - largest))};]=]
  [=[warp_sum(part.sum)};]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu target_read_late
  [=[thread == 0 && target >= 0 ? static_cast<float>(row_logits[target]) : 0.0f;]=]
  [=[0.0f;]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu one_hot_is_next
  [=[chunk * kSize + i == target ?]=]
  [=[chunk * kSize + i == target - 1 ?]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu no_one_hot [=[if (chunk == hot_chunk)]=] [=[if (chunk < 0)]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu gradient_always [=[if (!gradient) return;]=] [=[]=] CHECK LossAndGradient)
qalora_mutant(cross_entropy.cu rest_of_the_row_missing
  [=[chunk < chunks; chunk += threads) part.add]=]
  [=[chunk < 0; chunk += threads) part.add]=] CHECK TakesALargeVocabulary)
qalora_mutant(cross_entropy.cu rest_has_no_gradient
  [=[chunk < chunks; chunk += threads) differentiate]=]
  [=[chunk < 0; chunk += threads) differentiate]=] CHECK TakesALargeVocabulary)
qalora_mutant(cross_entropy.cu any_target [=[wanted >= 0 && wanted < vocab ?]=] [=[wanted >= -1000 ?]=] CHECK ATargetOutsideHasNoLoss)
qalora_mutant(cross_entropy.cu unaligned_is_aligned [=[aligned_to(16, {logits}) && stride % vector_elements(type) == 0]=] [=[true]=] DIES)
