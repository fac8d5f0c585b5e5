# A row's place in 32 bits.
qalora_mutant(pool.cu pool_in_32_bits [=[x + row * stride]=] [=[x + static_cast<int>(row * stride)]=]
  PROGRAM row_limits CHECK RowsMayLieFarApart)
qalora_mutant(rms_norm.cu rms_norm_in_32_bits [=[out + row * out_stride]=] [=[out + static_cast<int>(row * out_stride)]=]
  PROGRAM row_limits CHECK RowsMayLieFarApart)
qalora_mutant(swiglu.cu swiglu_in_32_bits [=[out + row * out_stride]=] [=[out + static_cast<int>(row * out_stride)]=]
  PROGRAM row_limits CHECK RowsMayLieFarApart)
qalora_mutant(cross_entropy.cu cross_entropy_in_32_bits [=[logits + row * stride]=] [=[logits + static_cast<int>(row * stride)]=]
  PROGRAM row_limits CHECK RowsMayLieFarApart)

qalora_mutant(rope.cu pointers_not_checked [=[!given(bytes_of(type), {x, out}) ||]=] [=[]=] PROGRAM row_limits CHECK PointersAreChecked)
qalora_mutant(cross_entropy.cu any_alignment [=[&& aligned_to(bytes, pointers)]=] [=[]=] IN elementwise.h
  PROGRAM row_limits CHECK PointersAreChecked)
