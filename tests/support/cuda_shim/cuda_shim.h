// CUDA C++ for the host compiler: what kernels/cuda/dialect.h allows, with the meaning that the CUDA and PTX manuals
// give it. A grid's blocks run one after the other, a block's threads as fibers (engine.h). ASan and UBSan watch global
// and shared memory.
//
// What it cannot show: a shuffle, a vote or an mma, where a warp's fibers meet, also orders their shared memory here (a
// __syncwarp missing beside one goes unnoticed); mma adds in double and rounds once, tensor cores keep fewer bits;
// rsqrtf, exp2 and 1 / x are the host's, good to the last bit, the device's are approximations; blocks do not run at
// once, so that races between them are not seen; no timing.
#pragma once

#include "engine.h"
#include "half.h"
#include "intrinsics.h"
#include "warp.h"
#include "words.h"
