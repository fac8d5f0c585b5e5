// The fake accelerator's operators: LibTorch's CPU kernels on the same memory.
#pragma once

namespace qalora::test {

// Gives every operator that has a CPU kernel one for DeviceType::PrivateUse1. Once a process.
void register_fake_operators();

}  // namespace qalora::test
