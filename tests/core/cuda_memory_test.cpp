// The caching allocators on a real GPU; their algorithm is tested without one in caching_allocator_test.cpp.
#include <gtest/gtest.h>

#include <vector>

#include "core/allocator.h"
#include "core/scope.h"
#include "core/tensor.h"
#include "tests/core/expect_error.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {
namespace {

class CudaMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU";
  }
  void TearDown() override {
    if (cuda_available()) allocator_for(gpu).trim();
  }
  const Device gpu = cuda_device();
};

TEST_F(CudaMemory, CountsAndReusesBlocks) {
  Allocator& allocator = allocator_for(gpu);
  allocator.trim();
  const AllocStats before = allocator.stats();
  void* first = nullptr;
  {
    Tensor t = empty({1000}, {DType::f32, gpu});
    first = t.data_ptr();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 512, 0u);
    EXPECT_EQ(allocator.stats().allocated - before.allocated, 4096);
    EXPECT_EQ(allocator.stats().count - before.count, 1);
  }
  EXPECT_EQ(allocator.stats().allocated, before.allocated);
  Tensor again = empty({1000}, {DType::f32, gpu});
  EXPECT_EQ(again.data_ptr(), first);
}

TEST_F(CudaMemory, TrimGivesMemoryBack) {
  Allocator& allocator = allocator_for(gpu);
  allocator.trim();
  const int64_t reserved = allocator.stats().reserved;
  { Tensor t = empty({int64_t(256) << 20}, {DType::u8, gpu}); }
  EXPECT_EQ(allocator.stats().reserved - reserved, int64_t(256) << 20);
  allocator.trim();
  EXPECT_EQ(allocator.stats().reserved, reserved);
}

TEST_F(CudaMemory, OutOfMemoryIsExplainedAndSurvived) {
  Scope outer("blocks.3");
  Tensor live = zeros({1 << 20}, {DType::f32, gpu});
  EXPECT_OCCAM_ERROR(empty({int64_t(1) << 44}, {DType::f32, gpu}), ErrorKind::memory,
                     "out of memory on cuda:0: 65536");
  EXPECT_OCCAM_ERROR(empty({int64_t(1) << 44}, {DType::f32, gpu}), ErrorKind::memory, "4.0 MiB  blocks.3");
  live.fill_(2);  // the failed reservation left no CUDA error behind
  EXPECT_EQ(raw::slice(live, 0, 5, 1).item(), 2);
}

TEST_F(CudaMemory, TestSwitchesWorkOnTheDevice) {
  set_alloc_test_mode({.poison = true, .red_zones = true});
  check_red_zones();
  {
    Tensor t = empty({33}, {DType::f32, gpu});
    for (float x : t.to_vector<float>()) EXPECT_TRUE(x != x) << "new memory is poisoned with NaN";
    EXPECT_EQ(check_red_zones(), 0);
    raw::as_strided(t, {34}, {1}, 0).fill_(1);  // one element too many
    EXPECT_EQ(check_red_zones(), 1);
  }
  set_alloc_test_mode({});
  check_red_zones();
}

TEST_F(CudaMemory, PinnedBlocksWaitForTheCopiesThatReadThem) {
  constexpr int64_t kCount = 1 << 20;
  std::vector<Tensor> copies;
  for (int i = 0; i < 60; ++i) {
    Tensor staged = empty_pinned({kCount}, DType::f32);
    staged.fill_(i);
    Tensor t = empty({kCount}, {DType::f32, gpu});
    t.copy_(staged);  // asynchronous; `staged` is freed right after
    copies.push_back(t);
  }
  for (int i = 0; i < 60; ++i) {
    EXPECT_EQ(raw::slice(copies[size_t(i)], 0, 0, 1).item(), i);
    EXPECT_EQ(raw::slice(copies[size_t(i)], 0, kCount - 1, 1).item(), i);
  }
}

#if OCCAM_CUDA
TEST_F(CudaMemory, BlocksUsedByAnotherStreamWaitForIt) {
  constexpr int64_t kCount = int64_t(1) << 26;  // 64 Mi floats: the copy stream needs a while to read them
  Stream compute = stream_of(gpu, StreamRole::compute);
  Stream copy = stream_of(gpu, StreamRole::copy);
  Tensor out = zeros({kCount}, {DType::f32, gpu});
  synchronize(gpu);
  for (int i = 1; i <= 10; ++i) {
    const void* address = nullptr;
    {
      Tensor t = full({kCount}, i, {DType::f32, gpu});
      address = t.data_ptr();
      stream_wait(copy, compute);
      StreamGuard guard(copy);
      for (int repeat = 0; repeat < 4; ++repeat) out.copy_(t);
      cuda::record_use(t.data_ptr(), copy.handle);
    }
    Tensor next = full({kCount}, -1, {DType::f32, gpu});
    cuda::synchronize_stream(copy.handle);
    EXPECT_EQ(raw::slice(out, 0, kCount - 1, 1).item(), i)
        << (next.data_ptr() == address ? "the block was handed out while the copy stream still read it" : "");
  }
}
#endif

}  // namespace
}  // namespace occam
