// Our own kernels on the fake accelerator.
#pragma once

#include "qalora/kernels/cuda.h"

namespace qalora::test {

// The functions of `host`, which take host addresses, as the device's: every pointer must be the device's and point
// into memory that lives (c10::Error otherwise). What `host` has not, throws. `host` must live as long as the process;
// one a process.
const kernels::cuda::Api& fake_kernels(const kernels::cuda::Api& host);

}  // namespace qalora::test
