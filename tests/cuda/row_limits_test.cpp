// What the kernels that walk rows are launched with, held against every architecture; rows that lie further apart than
// 32 bits reach.
#include <sys/mman.h>

#include <functional>
#include <utility>
#include <vector>

#include "cuda/rows.h"

namespace qalora::kernels::cuda::tests {

namespace {

// By the CUDA programming guide, compute capabilities 8.0, 8.6, 8.9 and 9.0 alike: 1024 threads a block, 65536
// registers a block, a grid of 2^31 - 1 by 65535; and 48 KB of shared memory that need not be asked for.
void expect_launchable(const LaunchShape& shape, const std::string& what) {
  constexpr int64_t kRegisters = 64;  // what ptxas may give a thread of these kernels (__launch_bounds__)
  const int64_t threads = int64_t{shape.block.x} * shape.block.y * shape.block.z;
  EXPECT_TRUE(threads > 0 && threads <= 1024 && whole_warps(threads) * kRegisters <= 65536) << what << " " << threads;
  EXPECT_TRUE(shape.grid.x > 0 && shape.grid.x <= 0x7fffffffu && shape.grid.y > 0 && shape.grid.y <= 65535) << what;
  EXPECT_TRUE(shape.grid.z == 1 && shape.block.z == 1) << what;
  EXPECT_TRUE(shape.shared_bytes >= 0 && shape.shared_bytes <= 48 * 1024) << what << " " << shape.shared_bytes;
}

}  // namespace

KERNEL_CHECK(row_limits, ShapesCanBeLaunched) {
  for (const Type type : kAllTypes) {
    for (const int64_t rows : {int64_t{1}, int64_t{8192}, int64_t{1} << 20}) {
      for (const int64_t width : {32, 96, 2048, 2080, 4096, 11008, 16384, 28672, 128 * 1024}) {
        expect_launchable(rms_norm_backward_shape(rows, width), "rms_norm_backward");
        expect_launchable(swiglu_backward_shape(rows, width, type), "swiglu_backward");
        expect_launchable(cross_entropy_shape(rows, width + 1, type), "cross_entropy");
        expect_launchable(rope_shape(rows, width / 32, 128, type), "rope");
        for (const int64_t group_size :
             {int64_t{0}, int64_t{32}, int64_t{96}, int64_t{128}, int64_t{256}, int64_t{4096}, width}) {
          float sums = 0;
          PoolOutput output;
          output.sums = group_size == 0 ? nullptr : &sums, output.group_size = group_size;
          const Pooling pooling = make_pooling(output, width);
          expect_launchable(rms_norm_shape(rows, width, pooling), "rms_norm");
          const Segments cut = segments(rows, width, type, pooling);
          expect_launchable(cut.shape, "segments");
          // Sums over a warp need whole ones.
          EXPECT_EQ(cut.shape.block.x % kWarp + rms_norm_shape(rows, width, pooling).block.x % kWarp, 0u);
          // They cover the row, the last is not empty, and none begins inside a group.
          const int64_t segment = int64_t{cut.chunks} * vector_elements(type);
          EXPECT_GE(segment * cut.per_row, width);
          EXPECT_LT(segment * (cut.per_row - 1), width);
          EXPECT_EQ(segment % std::max<int64_t>(pooling.group_size, kPoolUnit), 0) << group_size;
        }
      }
    }
  }
}

namespace {

using Pointers = std::vector<void*>;

// Good pointers are taken; each one that is off by a byte, or null where it may not be, is refused. needed: how many
// may not be null, the first ones. The byte comes first: a kernel that is started on null ends the process.
void expect_pointers_checked(const char* what, const Pointers& good, size_t needed,
                             const std::function<Status(const Pointers&)>& call) {
  EXPECT_EQ(call(good), Status::kOk) << what;
  for (size_t i = 0; i < good.size(); ++i) {
    Pointers bad = good;
    bad[i] = static_cast<char*>(good[i]) + 1;
    EXPECT_EQ(call(bad), Status::kBadArgument) << what << " with pointer " << i << " off by a byte";
    bad[i] = nullptr;
    EXPECT_EQ(call(bad), i < needed ? Status::kBadArgument : Status::kOk) << what << " with pointer " << i << " null";
  }
}

template <typename T>
T* as(void* pointer) {
  return static_cast<T*>(pointer);
}

}  // namespace

KERNEL_CHECK(row_limits, PointersAreChecked) {
  constexpr int64_t kWidth = 32;
  for (const Type type : kAllTypes) {
    std::vector<Elements> memory;
    for (int i = 0; i < 7; ++i) memory.push_back(std::move(Elements(Type::kFloat, 2 * kWidth).fill(0)));
    const auto some = [&](size_t count) {
      Pointers pointers;
      for (size_t i = 0; i < count; ++i) pointers.push_back(memory[i].data());
      return pointers;
    };
    const auto sums = [](void* pointer) {
      PoolOutput output;
      output.sums = as<float>(pointer), output.group_size = 32, output.columns = true;
      return output;
    };
    expect_pointers_checked("pool", some(2), 1, [&](const Pointers& p) {
      return api.pool(p[0], kWidth + 2, type, 1, kWidth, sums(p[1]), nullptr);
    });
    expect_pointers_checked("rms_norm", some(7), 5, [&](const Pointers& p) {
      return api.rms_norm(as<float>(p[0]), p[1], as<float>(p[2]), as<float>(p[3]), 1, 1, kWidth, type, p[4], kWidth + 2,
                          sums(p[5]), as<float>(p[6]), nullptr);
    });
    expect_pointers_checked("rms_norm_backward", some(6), 5, [&](const Pointers& p) {
      return api.rms_norm_backward(p[0], type, as<float>(p[1]), as<float>(p[2]), as<float>(p[3]), as<float>(p[5]), 1,
                                   kWidth, as<float>(p[4]), nullptr);
    });
    expect_pointers_checked("swiglu", some(4), 3, [&](const Pointers& p) {
      return api.swiglu(p[0], p[1], type, 1, kWidth, p[2], kWidth + 2, sums(p[3]), nullptr);
    });
    expect_pointers_checked("swiglu_backward", some(5), 5, [&](const Pointers& p) {
      return api.swiglu_backward(p[0], p[1], p[2], type, 1, kWidth, p[3], p[4], nullptr);
    });
    expect_pointers_checked("rope", some(4), 4, [&](const Pointers& p) {
      return api.rope(p[0], type, as<float>(p[1]), as<float>(p[2]), 1, 1, kWidth, false, p[3], nullptr);
    });
    expect_pointers_checked("cross_entropy", some(3), 3, [&](const Pointers& p) {
      return api.cross_entropy(p[0], type, kWidth, as<int64_t>(p[1]), 1, kWidth, true, as<float>(p[2]), nullptr);
    });
  }
}

#ifdef QALORA_CUDA_SHIM

// Two rows 2^32 elements apart, of which only the pages that are touched exist.
class FarRows {
 public:
  static constexpr int64_t kStride = int64_t{1} << 32;
  FarRows()
      : memory_(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~FarRows() { munmap(memory_, kBytes); }
  FarRows(const FarRows&) = delete;

  bool exists() const { return memory_ != MAP_FAILED; }
  uint16_t* row(int64_t i) const { return static_cast<uint16_t*>(memory_) + i * kStride; }
  float value(int64_t row_index, int64_t i) const { return test::cuda::to_float(row(row_index)[i], Type::kBFloat16); }
  void set(int64_t row_index, int64_t i, float value) {
    row(row_index)[i] = test::cuda::to_bits(value, Type::kBFloat16);
  }

 private:
  static constexpr size_t kBytes = (kStride + 4096) * 2;
  void* memory_;
};

KERNEL_CHECK(row_limits, RowsMayLieFarApart) {
  FarRows far;
  ASSERT_TRUE(far.exists());
  Elements h(Type::kFloat, 64), weight(Type::kFloat, 32), inverse(Type::kFloat, 2), losses(Type::kFloat, 2),
      gate(Type::kBFloat16, 64);
  weight.fill(1), gate.fill(30);
  h.fill(2);
  for (int64_t i = 32; i < 64; ++i) h.set(i, i % 2 == 0 ? -4 : 4), gate.set(i, 60);
  PoolOutput pool;
  Elements sums(Type::kFloat, 2);
  pool.sums = sums.floats(), pool.group_size = 32, pool.columns = true;
  const float* const from = h.floats();
  EXPECT_EQ(api.rms_norm(from, nullptr, nullptr, weight.floats(), 0, 2, 32, Type::kBFloat16, far.row(0),
                         FarRows::kStride, pool, inverse.floats(), nullptr),
            Status::kOk);
  sums.fetch();
  EXPECT_EQ(far.value(0, 31), 1);
  EXPECT_EQ(far.value(1, 30), -1);
  EXPECT_EQ(far.value(0, 33), 32);
  EXPECT_EQ(far.value(1, 33), 0);
  EXPECT_TRUE(sums[0] == 32 && sums[1] == 0);

  const void* const gates = gate.data();
  EXPECT_EQ(api.swiglu(gates, gates, Type::kBFloat16, 2, 32, far.row(0), FarRows::kStride, pool, nullptr), Status::kOk);
  EXPECT_EQ(far.value(0, 5), 900);
  EXPECT_EQ(far.value(1, 5), 3600);
  far.set(1, 5, 0);
  EXPECT_EQ(api.pool(far.row(0), FarRows::kStride, Type::kBFloat16, 2, 32, pool, nullptr), Status::kOk);
  sums.fetch();
  EXPECT_TRUE(sums[0] == 32 * 900 && sums[1] == 31 * 3600);

  for (int64_t i = 0; i < 32; ++i) far.set(0, i, 0), far.set(1, i, i == 3 ? 100 : 0);
  const test::cuda::Buffer<int64_t> targets(std::vector<int64_t>{3, 3});
  EXPECT_EQ(api.cross_entropy(far.row(0), Type::kBFloat16, FarRows::kStride, targets.data(), 2, 32, true,
                              losses.floats(), nullptr),
            Status::kOk);
  losses.fetch();
  EXPECT_NEAR(losses[0], std::log(32.0), 1e-5);
  EXPECT_NEAR(losses[1], 0, 1e-5);
  EXPECT_EQ(far.value(0, 4), 0x1p-5f);
  EXPECT_LT(far.value(1, 4), 1e-30f);
}

#endif

}  // namespace qalora::kernels::cuda::tests
