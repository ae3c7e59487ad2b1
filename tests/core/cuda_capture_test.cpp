#include <gtest/gtest.h>

#if OCCAM_CUDA
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "core/cuda/backend.h"
#include "core/cuda/capture.h"
#include "core/cuda/check.h"
#include "core/cuda/launch.h"
#include "core/cuda/timer.h"
#include "core/tensor.h"
#include "tests/core/expect_error.h"

namespace occam::cuda {
namespace {

class CudaCapture : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU";
    stream = stream_of(gpu, StreamRole::compute).handle;
  }
  const Device gpu = cuda_device();
  void* stream = nullptr;
};

TEST_F(CudaCapture, ReplayRepeatsTheWorkOnTheSameAddresses) {
  Tensor x = full({1000}, 1, {DType::f32, gpu});
  Tensor step = zeros({1}, {DType::i64, gpu});
  Tensor y;
  auto work = [&] {
    x.add_(x, 1);  // doubles
    y = raw::to(x, DType::bf16);
    increment(step.data<int64_t>(), stream);
  };
  work();  // loads the kernels
  Graph graph;
  graph.capture(stream, work);
  EXPECT_TRUE(graph.captured());
  EXPECT_EQ(graph.nodes(), 3);
  EXPECT_EQ(raw::slice(x, 0, 0, 1).item(), 2) << "nothing runs during capture";
  for (int i = 2; i <= 6; ++i) {
    graph.launch(stream);
    EXPECT_EQ(raw::slice(x, 0, 999, 1).item(), double(1 << i));
    EXPECT_EQ(raw::slice(y, 0, 999, 1).item(), double(1 << i));
    EXPECT_EQ(step.item(), i);
  }
}

TEST_F(CudaCapture, ThePrivatePoolIsNotHandedOut) {
  Tensor x = full({1 << 20}, 3, {DType::f32, gpu});
  Tensor result = zeros({1 << 20}, {DType::f32, gpu});
  Graph graph;
  graph.capture(stream, [&] {
    Tensor temporary = raw::clone(x);  // freed inside
    result.copy_(temporary);
  });
  EXPECT_GE(graph.pool_bytes(), 4 << 20);
  std::vector<Tensor> others;
  for (int i = 0; i < 20; ++i) others.push_back(full({1 << 20}, 100 + i, {DType::f32, gpu}));
  graph.launch(stream);
  EXPECT_EQ(raw::slice(result, 0, 12345, 1).item(), 3);
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(raw::slice(others[size_t(i)], 0, 12345, 1).item(), 100 + i)
        << "the replay wrote into a live tensor";
}

TEST_F(CudaCapture, TensorsOutliveTheirGraph) {
  Tensor made = full({100}, 4, {DType::f32, gpu});
  {
    Graph graph;
    graph.capture(stream, [&] { made = full({100}, 5, {DType::f32, gpu}); });
    graph.launch(stream);
  }
  std::vector<Tensor> others;
  for (int i = 0; i < 20; ++i) others.push_back(full({100}, 7, {DType::f32, gpu}));
  EXPECT_EQ(raw::slice(made, 0, 99, 1).item(), 5);
}

TEST_F(CudaCapture, WaitingInsideFailsWithTheReasonAndTheStreamGoesOn) {
  Graph graph;
  EXPECT_OCCAM_ERROR(graph.capture(stream, [&] { synchronize_stream(stream); }), ErrorKind::device,
                     "capture of a CUDA graph failed: ");
  EXPECT_FALSE(graph.captured());
  Tensor x = full({10}, 4, {DType::f32, gpu});
  EXPECT_EQ(raw::slice(x, 0, 9, 1).item(), 4);
  Graph second;
  second.capture(stream, [&] { x.fill_(6); });
  second.launch(stream);
  EXPECT_EQ(raw::slice(x, 0, 9, 1).item(), 6);
}

TEST_F(CudaCapture, AnErrorOfTheWorkKeepsItsText) {
  Graph graph;
  EXPECT_OCCAM_ERROR(graph.capture(stream, [] { throw std::runtime_error("the op said no"); }),
                     ErrorKind::internal, "the op said no");
  Tensor x = full({10}, 4, {DType::f32, gpu});
  EXPECT_EQ(raw::slice(x, 0, 9, 1).item(), 4);
}

TEST_F(CudaCapture, LaunchBeforeCaptureIsAnError) {
  Graph graph;
  EXPECT_OCCAM_ERROR(graph.launch(stream), ErrorKind::internal, "captured nothing");
}

TEST_F(CudaCapture, TimerMeasuresTheStream) {
  Tensor x = empty({int64_t(1) << 28}, {DType::f32, gpu});  // 1 GiB: about 0.3 ms on an H100
  x.fill_(1);
  for (int i = 0; i < 10; ++i) x.fill_(i + 1);  // clocks rise
  Timer timer;
  timer.start(stream);
  x.fill_(2);
  timer.stop(stream);
  const float once = timer.milliseconds();
  timer.start(stream);
  for (int i = 0; i < 20; ++i) x.fill_(i + 1);
  timer.stop(stream);
  const float twenty = timer.milliseconds();
  EXPECT_GT(once, 0.05f);
  EXPECT_GT(twenty, 5 * once);
  EXPECT_LT(twenty, 80 * once);
}

TEST_F(CudaCapture, DeviceLimitsAreRead) {
  const DeviceLimits& limits = device_limits();
  EXPECT_GT(limits.sm_count, 0);
  EXPECT_GE(limits.capability, 75);
  EXPECT_GE(limits.shared_bytes, 48 * 1024);
  EXPECT_GE(limits.shared_bytes_opt_in, limits.shared_bytes);
  EXPECT_EQ(grid_for(0, 256), 1u);
  EXPECT_EQ(grid_for(257, 256), 2u);
  EXPECT_EQ(grid_for(int64_t(1) << 40, 256, 4), unsigned(4 * limits.sm_count));
}

TEST(CudaCheck, ErrorsNameCallPlaceAndStatus) {
  EXPECT_OCCAM_ERROR(throw_cuda_error(cudaErrorInvalidValue, "cudaFoo(x)", "bar.cu", 12), ErrorKind::device,
                     "bar.cu:12: cudaFoo(x) failed: invalid argument (cudaErrorInvalidValue)");
  EXPECT_OCCAM_ERROR(throw_cuda_error(cudaErrorMemoryAllocation, "cudaMalloc", "bar.cu", 1),
                     ErrorKind::memory, "out of memory");
  if (std::getenv("OCCAM_SYNC") == nullptr)
    EXPECT_OCCAM_ERROR(throw_cuda_error(cudaErrorIllegalAddress, "f", "bar.cu", 1), ErrorKind::device,
                       "OCCAM_SYNC=1");
}

TEST(CudaCheck, WithoutADriverThereAreNoDevices) {
  EXPECT_GE(device_count(), 0);
  EXPECT_EQ(cuda_available(), device_count() > 0);
}

TEST(CudaCheck, GridsOfRowsAreClamped) {
  EXPECT_EQ(grid_of_rows(0), 1u);
  EXPECT_EQ(grid_of_rows(77), 77u);
  EXPECT_EQ(grid_of_rows(int64_t(1) << 40), 2147483647u);
  EXPECT_EQ(div_up<int64_t>(7, 4), 2);
  EXPECT_EQ(round_up<int64_t>(7, 4), 8);
}

}  // namespace
}  // namespace occam::cuda
#endif
