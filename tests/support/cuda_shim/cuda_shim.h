// CUDA C++ for the host compiler: what kernels/cuda/dialect.h allows, with the meaning that the CUDA and PTX manuals give it. A grid's
// blocks run one after the other, a block's threads as fibers (engine.h). ASan and UBSan watch global and shared memory.
#pragma once

#include "engine.h"
#include "half.h"
#include "intrinsics.h"
#include "warp.h"
#include "words.h"
