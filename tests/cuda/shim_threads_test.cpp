// Barriers, warps, asynchronous copies and matrices of the shim: what the manuals promise holds in every order, and
// what they do not promise shows.
#include <set>
#include <stdexcept>
#include <string>

#include "cuda/support.h"
#include "kernels/cuda/dialect.h"
#include "support/cuda_shim/settings.h"

namespace qalora::kernels::cuda {
namespace {

using cuda_shim::Order;
using test::cuda::Buffer;
using test::cuda::Generator;

LaunchShape one_block(int threads, int64_t shared_bytes = 0) {
  return {dim3(1), dim3(static_cast<unsigned>(threads)), shared_bytes};
}

template <typename T, typename... Parameters, typename... Arguments>
std::vector<T> run(void (*kernel)(Parameters...), const LaunchShape& shape, int64_t count, Arguments... arguments) {
  Buffer<T> out(count);
  EXPECT_EQ(launch(kernel, shape, nullptr, arguments..., out.data()), Status::kOk);
  return out.download();
}

template <typename... Parameters, typename... Arguments>
std::string fault_of(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  try {
    static_cast<void>(launch(kernel, shape, nullptr, arguments...));
  } catch (const cuda_shim::Fault& fault) {
    return fault.what();
  }
  return "no fault";
}
#define EXPECT_SAYS(said, text) EXPECT_NE((said).find(text), std::string::npos) << "it said: " << (said)

// How many different results the three orders give.
template <typename Function>
size_t outcomes(Function function) {
  std::set<std::vector<int>> all;
  cuda_shim::for_each_order([&](Order) { all.insert(function()); });
  return all.size();
}

// ---- Barriers
// -------------------------------------------------------------------------------------------------------------------

template <bool kBarrier>
__global__ void neighbour(int* out) {
  int* shared = dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  shared[i] = i;
  if (kBarrier) __syncthreads();
  out[i] = shared[(i + 33) % n];
}

// Reads what the others wrote, twice through the same memory: the second barrier keeps the next round's writes from
// this round's reads.
template <bool kBarrier>
__global__ void rounds(int* out) {
  int* shared = dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    shared[i] = i + round * n;
    __syncthreads();
    sum = sum * 7 + shared[n - 1 - i];
    if (kBarrier) __syncthreads();
  }
  out[i] = sum;
}

// The same between the lanes of a warp.
template <bool kBarrier>
__global__ void lanes(int* out) {
  int* shared = dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x);
  shared[i] = i;
  if (kBarrier) __syncwarp();
  out[i] = shared[i ^ 1];
}

TEST(Barriers, OrderNoMatterWhoRunsFirstAndAMissingOneShows) {
  EXPECT_EQ(outcomes([] { return run<int>(neighbour<true>, one_block(96, 96 * 4), 96); }), 1u);
  EXPECT_GE(outcomes([] { return run<int>(neighbour<false>, one_block(96, 96 * 4), 96); }), 2u);
  EXPECT_EQ(outcomes([] { return run<int>(rounds<true>, one_block(96, 96 * 4), 96); }), 1u);
  EXPECT_GE(outcomes([] { return run<int>(rounds<false>, one_block(96, 96 * 4), 96); }), 2u);
  EXPECT_EQ(outcomes([] { return run<int>(lanes<true>, one_block(64, 64 * 4), 64); }), 1u);
  EXPECT_GE(outcomes([] { return run<int>(lanes<false>, one_block(64, 64 * 4), 64); }), 2u);
  const std::vector<int> shifted = run<int>(neighbour<true>, one_block(96, 96 * 4), 96);
  for (int i = 0; i < 96; ++i) EXPECT_EQ(shifted[static_cast<size_t>(i)], (i + 33) % 96);
}

__global__ void votes(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[4 * i] = __syncthreads_count(i % 3 == 0);
  out[4 * i + 1] = __syncthreads_or(i == 40);
  out[4 * i + 2] = __syncthreads_and(i != 40);
  out[4 * i + 3] = __syncthreads_and(i < 50);
}

TEST(Barriers, Vote) {
  const std::vector<int> out = run<int>(votes, one_block(50), 200);
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_EQ(out[4 * i], 17);
    EXPECT_EQ(out[4 * i + 1], 1);
    EXPECT_EQ(out[4 * i + 2], 0);
    EXPECT_EQ(out[4 * i + 3], 1);
  }
}

__global__ void some_leave(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= 64) return;
  __syncthreads();
  out[i] = i;
}
__global__ void half_a_warp_waits() {
  if (threadIdx.x < 16) __syncthreads();
  else __syncwarp();
}
__global__ void different_barriers() {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads_or(1);
}

TEST(Barriers, ThreadsThatHaveEndedAreNotWaitedForAndADeadlockIsReported) {
  EXPECT_EQ(run<int>(some_leave, one_block(128), 64)[63], 63);
  const std::string said = fault_of(half_a_warp_waits, one_block(32));
  EXPECT_SAYS(said, "deadlock");
  EXPECT_SAYS(said, "16 threads wait at __syncthreads, the first of them (0,0,0)");
  EXPECT_SAYS(said, "16 threads wait at __syncwarp (mask 0xffffffff), the first of them (16,0,0)");
  EXPECT_SAYS(fault_of(different_barriers, one_block(64)), "others of its block at __syncthreads");
  EXPECT_EQ(run<int>(some_leave, one_block(128), 64)[63], 63);  // the next launch is not harmed by it
}

// ---- Warps
// ----------------------------------------------------------------------------------------------------------------------

constexpr int kShuffles = 8;
__global__ void shuffles(int* out) {
  const int i = static_cast<int>(threadIdx.x), value = 100 + i;
  int* mine = out + i * kShuffles;
  mine[0] = __shfl_sync(kAllLanes, value, 5);
  mine[1] = __shfl_sync(kAllLanes, value, i * 3 + 1, 8);
  mine[2] = __shfl_up_sync(kAllLanes, value, 3);
  mine[3] = __shfl_up_sync(kAllLanes, value, 2, 8);
  mine[4] = __shfl_down_sync(kAllLanes, value, 5);
  mine[5] = __shfl_down_sync(kAllLanes, value, 3, 16);
  mine[6] = __shfl_xor_sync(kAllLanes, value, 11);
  mine[7] = __shfl_xor_sync(kAllLanes, value, 9, 8);
}

TEST(Warps, ShufflesTakeTheLaneThatTheManualSays) {
  EXPECT_EQ(outcomes([] { return run<int>(shuffles, one_block(64), 64 * kShuffles); }), 1u);
  const std::vector<int> out = run<int>(shuffles, one_block(64), 64 * kShuffles);
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, base = 100 + i - lane;
    const auto expect = [&](int which, int source) {
      EXPECT_EQ(out[static_cast<size_t>(i * kShuffles + which)], base + source) << i << " " << which;
    };
    expect(0, 5);
    expect(1, lane / 8 * 8 + (i * 3 + 1) % 8);
    expect(2, lane < 3 ? lane : lane - 3);
    expect(3, lane % 8 < 2 ? lane : lane - 2);
    expect(4, lane + 5 > 31 ? lane : lane + 5);
    expect(5, lane % 16 + 3 > 15 ? lane : lane + 3);
    expect(6, lane ^ 11);
    expect(7, (lane ^ 9) / 8 > lane / 8 ? lane : lane ^ 9);
  }
}

__global__ void other_types(double* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = __shfl_xor_sync(kAllLanes, i + 0.5, 1) + __shfl_xor_sync(kAllLanes, i * 0.25f, 2);
}
__global__ void warp_votes(int* out) {
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  int* mine = out + 6 * i;
  mine[0] = static_cast<int>(__ballot_sync(kAllLanes, lane % 4 == 1));
  mine[1] = __any_sync(kAllLanes, lane == 31);
  mine[2] = __all_sync(kAllLanes, lane < 31);
  mine[3] = __reduce_add_sync(kAllLanes, i);
  mine[4] = __reduce_max_sync(kAllLanes, -i);
  // Two halves of a warp apart from each other.
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  mine[5] = static_cast<int>(lane < 16 ? __ballot_sync(mask, 1) : __reduce_add_sync(mask, 1u));
}

TEST(Warps, VotesReductionsAndOtherTypes) {
  const std::vector<int> out = run<int>(warp_votes, one_block(64), 64 * 6);
  const std::vector<double> doubles = run<double>(other_types, one_block(64), 64);
  for (int i = 0; i < 64; ++i) {
    const int* mine = out.data() + 6 * i;
    EXPECT_EQ(mine[0], 0x22222222);
    EXPECT_EQ(mine[1], 1);
    EXPECT_EQ(mine[2], 0);
    EXPECT_EQ(mine[3], i < 32 ? 496 : 496 + 1024);
    EXPECT_EQ(mine[4], i < 32 ? 0 : -32);
    EXPECT_EQ(mine[5], i % 32 < 16 ? 0xffff : 16);
    EXPECT_EQ(doubles[static_cast<size_t>(i)], (i ^ 1) + 0.5 + (i ^ 2) * 0.25);
  }
}

__global__ void not_in_own_mask() { __syncwarp(0x0000ffffu); }
__global__ void lane_has_ended() {
  if (threadIdx.x == 7) return;
  __shfl_sync(kAllLanes, 1, 0);
}
__global__ void different_operations() {
  if (threadIdx.x < 16) __shfl_sync(kAllLanes, 1, 0);
  else __ballot_sync(kAllLanes, 1);
}
__global__ void different_kinds() {
  if (threadIdx.x < 16) __shfl_sync(kAllLanes, 1, 0);
  else __shfl_sync(kAllLanes, 1.0, 0);
}
__global__ void reads_outside_the_mask() {
  if (threadIdx.x < 16) __shfl_xor_sync(0xffffu, 1, 16);
}
__global__ void half_a_warp() { __syncwarp(); }
__global__ void different_masks() {
  if (threadIdx.x < 16) __syncwarp(0x0000ffffu | 1u << 20);
  else __syncwarp(0xffff0000u);
  __syncthreads();
}

TEST(Warps, WhatTheManualLeavesUndefinedIsAFault) {
  cuda_shim::for_each_order([](Order) {
    EXPECT_SAYS(fault_of(not_in_own_mask, one_block(32)), "own mask");
    EXPECT_SAYS(fault_of(lane_has_ended, one_block(32)), "end");
    EXPECT_SAYS(fault_of(different_operations, one_block(32)), "of its warp at __");
    EXPECT_SAYS(fault_of(different_kinds, one_block(32)), "of its warp at __shfl_sync");
    EXPECT_SAYS(fault_of(reads_outside_the_mask, one_block(32)), "not in the mask");
    EXPECT_SAYS(fault_of(half_a_warp, one_block(48)), "ended");
    EXPECT_SAYS(fault_of(different_masks, one_block(32)), "deadlock");
  });
}

// ---- Asynchronous copies
// -----------------------------------------------------------------------------------------------------------

template <int kPending>
__global__ void pipeline(const uint4* from, int* out) {
  uint4* shared = dynamic_shared<uint4>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  for (int stage = 0; stage < 3; ++stage) {
    cp_async16(shared + stage * n + i, from + stage * n + i, i != 2);
    cp_async_commit();
  }
  cp_async_wait<kPending>();
  __syncthreads();
  for (int stage = 0; stage < 3; ++stage) out[stage * n + i] = static_cast<int>(shared[stage * n + n - 1 - i].z);
}
__global__ void never_committed(const uint4* from, int* out) {
  cp_async16(dynamic_shared<uint4>(), from);
  cp_async_wait<0>();
  out[0] = static_cast<int>(dynamic_shared<uint4>()->x);
}
// Refills a buffer that other warps may still read.
template <bool kBarrier>
__global__ void refill(const uint4* from, int* out) {
  uint4* shared = dynamic_shared<uint4>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  shared[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  out[i] = static_cast<int>(shared[(i + 32) % n].x);
  if (kBarrier) __syncthreads();
  cp_async16(shared + i, from + i);
  cp_async_commit();
  cp_async_wait<0>();
}

TEST(Copies, LandWhenWaitedForAndNotReliablyBefore) {
  constexpr int kThreads = 64;
  std::vector<uint4> values;
  for (unsigned i = 0; i < 3 * kThreads; ++i) values.push_back(make_uint4(i, i, 1000 + i, i));
  const Buffer<uint4> from(values);
  const LaunchShape shape = one_block(kThreads, 3 * kThreads * 16);
  const auto all = [&] { return run<int>(pipeline<0>, shape, 3 * kThreads, from.data()); };
  EXPECT_EQ(outcomes(all), 1u);
  const std::vector<int> out = all();
  for (int i = 0; i < 3 * kThreads; ++i) {
    const int source = i / kThreads * kThreads + kThreads - 1 - i % kThreads;
    EXPECT_EQ(out[static_cast<size_t>(i)], source % kThreads == 2 ? 0 : 1000 + source);
  }
  // With one group pending, the first two stages are there in every order and the third is not.
  std::set<std::vector<int>> first_two, third;
  cuda_shim::for_each_order([&](Order) {
    const std::vector<int> got = run<int>(pipeline<1>, shape, 3 * kThreads, from.data());
    first_two.insert({got.begin(), got.begin() + 2 * kThreads});
    third.insert({got.begin() + 2 * kThreads, got.end()});
  });
  EXPECT_EQ(first_two.size(), 1u);
  EXPECT_GE(third.size(), 2u);
  EXPECT_GE(outcomes([&] { return run<int>(never_committed, one_block(1, 16), 1, from.data()); }), 2u);
  EXPECT_EQ(outcomes([&] { return run<int>(refill<true>, one_block(kThreads, kThreads * 16), kThreads, from.data()); }),
            1u);
  EXPECT_GE(
      outcomes([&] { return run<int>(refill<false>, one_block(kThreads, kThreads * 16), kThreads, from.data()); }), 2u);
}

__global__ void copy_to(int byte, const char* from) { cp_async16(dynamic_shared<char>() + byte, from); }

TEST(Copies, AlignmentAndBoundsAreFaults) {
  const Buffer<char> from(64);
  EXPECT_EQ(fault_of(copy_to, one_block(1, 32), 16, from.data()), "no fault");
  EXPECT_SAYS(fault_of(copy_to, one_block(1, 32), 8, from.data()), "not aligned");
  EXPECT_SAYS(fault_of(copy_to, one_block(1, 32), 32, from.data()), "outside");
  EXPECT_SAYS(fault_of(copy_to, one_block(1, 32), 0, from.data() + 8), "not aligned");
  EXPECT_DEATH(fault_of(copy_to, one_block(1, 32), 0, from.data() + 64), "heap-buffer-overflow");
}

// ---- Matrices
// -------------------------------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit numbers, rows scattered: row r of matrix i lies in slot (5 r + 3 i) % 32 of 16 bytes.
__global__ void load_matrices(const uint4* from, uint32_t* out) {
  uint4* shared = dynamic_shared<uint4>();
  const int lane = static_cast<int>(threadIdx.x);
  shared[lane] = from[lane];
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, shared + (5 * (lane % 8) + 3 * (lane / 8) + 7) % 32);
  for (int i = 0; i < 4; ++i) out[4 * lane + i] = r[i];
}
__global__ void load_misaligned(const char* from, uint32_t* out) {
  static_cast<void>(from);
  uint32_t r[4];
  ldmatrix_x4(r, dynamic_shared<char>() + 8);
  out[0] = r[0];
}

TEST(Matrices, LdmatrixByThePtxManual) {
  std::vector<uint16_t> memory(32 * 8);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint16_t>(i * 31 + 7);
  std::vector<uint4> slots(32);
  memcpy(slots.data(), memory.data(), 32 * 16);
  const Buffer<uint4> from(slots);
  cuda_shim::for_each_order([&](Order) {
    const std::vector<uint32_t> out = run<uint32_t>(load_matrices, one_block(32, 512), 128, from.data());
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int row = 0; row < 8; ++row) {
        for (int column = 0; column < 8; ++column) {
          // PTX: thread 4 row + column / 2 holds it, the even column in the low half.
          const uint32_t word = out[static_cast<size_t>(4 * (4 * row + column / 2) + matrix)];
          const auto got = static_cast<uint16_t>(column % 2 ? word >> 16 : word);
          const int slot = (5 * row + 3 * matrix + 7) % 32;
          EXPECT_EQ(got, memory[static_cast<size_t>(slot * 8 + column)]) << matrix << " " << row << " " << column;
        }
      }
    }
  });
  Buffer<uint32_t> nothing(1);
  EXPECT_SAYS(fault_of(load_misaligned, one_block(32, 64), static_cast<const char*>(nullptr), nothing.data()),
              "not aligned");
}

template <typename Element>
__global__ void multiply(const uint16_t* a, const uint16_t* b, float* d) {
  // From row-major a [16, 16], b [16, 8], d [16, 8], by the PTX manual's formulas for m16n8k16, with its groupID and
  // threadID_in_group.
  const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, thread = lane % 4;
  uint32_t fragment_a[4] = {}, fragment_b[2] = {};
  float sums[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
    const int k = i < 4 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8;
    fragment_a[i / 2] |= static_cast<uint32_t>(a[row * 16 + k]) << (i % 2 * 16);
  }
  for (int i = 0; i < 4; ++i) {
    const int k = i < 2 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8;
    fragment_b[i / 2] |= static_cast<uint32_t>(b[k * 8 + group]) << (i % 2 * 16);
  }
  const auto place = [&](int i) { return (i < 2 ? group : group + 8) * 8 + thread * 2 + (i & 1); };
  for (int i = 0; i < 4; ++i) sums[i] = d[place(i)];
  mma_m16n8k16<Element>(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[place(i)] = sums[i];
}

template <typename Element>
void multiplies(Type type) {
  Generator generator(3);
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8);
  for (auto& x : a) x = test::cuda::to_bits(generator.uniform(-2, 2), type);
  for (auto& x : b) x = test::cuda::to_bits(generator.uniform(-2, 2), type);
  for (auto& x : d) x = generator.uniform(-4, 4);
  const Buffer<uint16_t> device_a(a), device_b(b);
  cuda_shim::for_each_order([&](Order) {
    const Buffer<float> device_d(d);
    ASSERT_EQ(launch(multiply<Element>, one_block(32), nullptr, device_a.data(), device_b.data(), device_d.data()),
              Status::kOk);
    const std::vector<float> got = device_d.download();
    for (size_t i = 0; i < got.size(); ++i) {
      double sum = d[i];
      for (size_t k = 0; k < 16; ++k) {
        sum += static_cast<double>(test::cuda::to_float(a[i / 8 * 16 + k], type)) *
               test::cuda::to_float(b[k * 8 + i % 8], type);
      }
      EXPECT_EQ(got[i], static_cast<float>(sum))
          << i;  // products are exact in double, and sums of 17 such terms all but exact
    }
  });
}

TEST(Matrices, MmaByThePtxManual) {
  multiplies<__nv_bfloat16>(Type::kBFloat16);
  multiplies<__half>(Type::kHalf);
}

__global__ void half_a_warp_multiplies() {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) mma_m16n8k16<__half>(d, a, b);
}
TEST(Matrices, NeedAWholeWarp) { EXPECT_SAYS(fault_of(half_a_warp_multiplies, one_block(32)), "mma"); }

// ---- Memory
// ---------------------------------------------------------------------------------------------------------------------

__global__ void shared_at(int index, float* out) { out[0] = dynamic_shared<float>()[index]; }
__global__ void write_at(int index, float* out) { out[index] = 1; }
__global__ void load_vector(int index, const float* from) {
  *dynamic_shared<uint4>() = *reinterpret_cast<const uint4*>(from + index);
}
__global__ void raise_exception() { throw std::runtime_error("some message"); }

TEST(Memory, OverrunsAndMisalignedVectorsDie) {
  Buffer<float> out(7);
  ASSERT_EQ(launch(shared_at, one_block(1, 20), nullptr, 4, out.data()), Status::kOk);
  EXPECT_TRUE(std::isnan(out.download()[0])) << "unwritten shared memory is NaN";
  EXPECT_DEATH((void)launch(shared_at, one_block(1, 20), nullptr, 5, out.data()), "heap-buffer-overflow");
  EXPECT_DEATH((void)launch(shared_at, one_block(1, 20), nullptr, -1, out.data()), "heap-buffer-overflow");
  EXPECT_DEATH((void)launch(write_at, one_block(1), nullptr, 7, out.data()), "heap-buffer-overflow");
  EXPECT_DEATH((void)launch(load_vector, one_block(1, 16), nullptr, 1, out.data()), "misaligned address");
  EXPECT_DEATH((void)launch(load_vector, one_block(1, 16), nullptr, 4, out.data()), "heap-buffer-overflow");
  EXPECT_EQ(fault_of(load_vector, one_block(1, 16), 0, out.data()), "no fault");
}

TEST(Memory, AnExceptionInAKernelBecomesAFault) {
  EXPECT_SAYS(fault_of(raise_exception, one_block(64)), "some message");
}

}  // namespace
}  // namespace qalora::kernels::cuda
