#include "core/profiler.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/allocator.h"
#include "core/io/json.h"
#include "core/memory_watch.h"
#include "core/scope.h"
#include "core/tensor.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"
#if OCCAM_CUDA
#include "core/cuda/capture.h"
#endif

namespace occam {
namespace {

using By = Profiler::By;

void wait_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

/// Two blocks of an outer span (5 ms of its own) around an inner one (3 ms), 4 ms outside all.
void step() {
  for (int i = 0; i < 2; ++i) {
    Scope scope("blocks." + std::to_string(i));
    TraceSpan outer("outer", kCPU);
    outer.set_work({100, 8});
    wait_ms(5);
    TraceSpan inner("inner", kCPU, Phase::backward);
    inner.set_work({0, 4});
    wait_ms(3);
  }
  wait_ms(4);
}

TEST(Profiler, RowsSumUpToTheStep) {
  Profiler p(kCPU);
  p.run(step, 3);
  ASSERT_EQ(p.steps().size(), 3u);
  std::vector<Profiler::Row> rows = p.rows(By::op);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].name, "outer");
  EXPECT_EQ(rows[0].phase, Phase::forward);
  EXPECT_EQ(rows[0].calls, 2);
  EXPECT_EQ(rows[0].work.flops, 200);
  EXPECT_EQ(rows[1].name, "inner");
  EXPECT_EQ(rows[1].phase, Phase::backward);
  EXPECT_EQ(rows[2].name, "other");
  // A sleep is never short; on a busy machine it may be long.
  EXPECT_GE(rows[0].seconds, 10e-3);
  EXPECT_GE(rows[1].seconds, 6e-3);
  EXPECT_GE(rows[2].seconds, 4e-3);
  for (By by : {By::op, By::place, By::module}) {
    double sum = 0;
    for (const Profiler::Row& r : p.rows(by)) sum += r.seconds;
    EXPECT_NEAR(sum, p.totals().device_s, 1e-9);
  }
  EXPECT_GE(p.totals().wall_s, 20e-3);
  EXPECT_EQ(p.totals().bytes, 24);
  // Inner spans lie in their outer ones.
  const auto& spans = p.steps()[0].spans;
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(spans[1].parent, 0);
  EXPECT_EQ(spans[2].parent, -1);
  EXPECT_GE(spans[1].start, spans[0].start + 5e-3);
  EXPECT_LE(spans[1].start + spans[1].seconds, spans[0].start + spans[0].seconds);
  EXPECT_NEAR(spans[0].self, spans[0].seconds - spans[1].seconds, 1e-9);
}

TEST(Profiler, PlacesAreBlocksWithoutTheirNumber) {
  EXPECT_EQ(place_of("blocks.13.attn.2"), "blocks.*.attn.*");
  EXPECT_EQ(place_of("conv1.x2"), "conv1.x2");
  EXPECT_EQ(place_of(""), "");
  Profiler p(kCPU);
  p.run(step, 1);
  EXPECT_EQ(p.rows(By::place)[0].place, "blocks.*");
  EXPECT_EQ(p.rows(By::module).size(), 5u);
}

TEST(Profiler, TheTableTellsRatesAndShares) {
  Profiler p(kCPU);
  p.run(step, 1);
  const Profiler::Row row = p.rows(By::op)[0];
  Table t = p.table(By::op, {1e5, 1e3});
  ASSERT_EQ(t.rows.size(), 4u);
  auto cell = [&](size_t r, const char* column) {
    for (size_t c = 0; c < t.columns.size(); ++c)
      if (t.columns[c] == column) return t.rows[r][c].exact;
    return std::string("no column");
  };
  EXPECT_NEAR(std::stod(cell(0, "of matmul")), 200 / row.seconds / 1e5, 1e-3);
  EXPECT_NEAR(std::stod(cell(0, "of copy")), 16 / row.seconds / 1e3, 1e-3);
  EXPECT_NEAR(std::stod(cell(0, "floor ms")), 16.0, 1e-9) << "16 bytes at 1 kB/s, over 2 ms of products";
  EXPECT_EQ(cell(1, "TFLOP/s"), "") << "no FLOPs, no rate";
  EXPECT_EQ(cell(3, "op"), "step");
  EXPECT_NE(p.markdown({1e5, 1e3}).find("| outer | forward | blocks.\\* | 2 |"), std::string::npos);
}

TEST(Profiler, TheTraceIsThatOfTheSpans) {
  TempFolder folder;
  Profiler p(kCPU);
  p.run(step, 2);
  p.write_trace(folder / "trace.json");
  Json events = read_json(folder / "trace.json")["traceEvents"];
  ASSERT_EQ(events.size(), 2u + 2 * 8);
  const Json& first = events[2];
  EXPECT_EQ(first["name"], "blocks.0 outer");
  EXPECT_EQ(first["ph"], "X");
  EXPECT_EQ(first["args"]["op"], "outer");
  EXPECT_GE(first["dur"].get<double>(), 8e3);
  double end = 0;  // spans of the second step come after those of the first
  for (size_t i = 2; i < 10; ++i)
    end = std::max(end, events[i]["ts"].get<double>() + events[i]["dur"].get<double>());
  EXPECT_GE(events[10]["ts"].get<double>(), end);
}

TEST(Profiler, OffCostsNothingAndNests) {
  TraceSpan span("alone", kCPU);
  EXPECT_FALSE(span);
  EXPECT_STREQ(TraceSpan::name(), "alone");
  Profiler a(kCPU), b(kCPU);
  {
    auto outer = a.record();
    auto inner = b.record();
    TraceSpan both("both", kCPU);
    EXPECT_TRUE(both);
  }
  { TraceSpan after("after", kCPU); }
  EXPECT_EQ(a.steps()[0].spans.size(), 1u);
  EXPECT_EQ(b.steps()[0].spans.size(), 1u);
  EXPECT_STREQ(TraceSpan::name(), "alone");
}

TEST(Profiler, CopiesAndFillsAppear) {
  Profiler p(kCPU);
  p.run(
      [] {
        Tensor x = full({100}, 1);
        x.add_(raw::clone(x));
        raw::to(x, DType::f64);
      },
      1);
  std::vector<std::string> names;
  for (const Profiler::Span& s : p.steps()[0].spans) names.push_back(s.name);
  EXPECT_EQ(names, (std::vector<std::string>{"fill", "copy", "add_", "convert"}));
  EXPECT_EQ(p.steps()[0].spans[3].work.bytes, 1200);
}

#if OCCAM_CUDA
TEST(Profiler, OnAGpuTheDeviceIsTimedAndNotTheHost) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Device gpu = cuda_device();
  Tensor x = full({int64_t{1} << 26}, 1, {DType::f32, gpu}), y = empty_like(x);
  Tensor small = full({16}, 1, {DType::f32, gpu});
  auto work = [&] {
    for (int i = 0; i < 50; ++i) {
      TraceSpan span("small", gpu);
      small.add_(small, 0);
      wait_ms(1);  // a slow host
    }
    TraceSpan span("large", gpu);
    y.copy_(x);
  };
  work();
  Profiler p(gpu);
  p.run(work, 2);
  std::vector<Profiler::Row> rows = p.rows(By::op);
  double sum = 0, small_s = 0, copy_s = 0;
  for (const Profiler::Row& r : rows) {
    sum += r.seconds;
    if (r.name == "small" || r.name == "add_") small_s += r.seconds;
    if (r.name == "copy") copy_s += r.seconds;
  }
  // 512 MB take 0.06 ms at 8 TB/s and 5 ms at 100 GB/s.
  EXPECT_GT(copy_s, 0.06e-3) << to_text(p.table(By::op, {}));
  EXPECT_LT(copy_s, 5e-3);
  // Fifty small kernels take some microseconds each. Only until the host's pace is known may its sleep count:
  // the first of fifty times, and a few where the host is disturbed.
  EXPECT_LT(small_s, 5e-3) << "of 50 ms that the host sleeps there\n" << to_text(p.table(By::op, {}));
  EXPECT_NEAR(sum, p.totals().device_s, 1e-9);
  EXPECT_GE(p.totals().wall_s, 50e-3);
  EXPECT_GT(p.totals().idle(), 0.9);
}

TEST(Profiler, ACapturedStepIsRefused) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Device gpu = cuda_device();
  Tensor x = full({16}, 1, {DType::f32, gpu});
  void* stream = current_stream(gpu).handle;
  x.add_(x);
  Profiler p(gpu);
  cuda::Graph inside, around;
  EXPECT_OCCAM_ERROR(
      {
        auto recording = p.record();
        inside.capture(stream, [&] { x.add_(x); });
      },
      ErrorKind::usage, "profiler: the step is being captured");
  EXPECT_OCCAM_ERROR(around.capture(stream, [&] { auto recording = p.record(); }), ErrorKind::usage,
                     "profiler: the step is being captured");
  x.add_(x);
  EXPECT_EQ(raw::slice(x, 0, 0, 1).item(), 4) << "the device works on";
}
#endif

class Watch : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    device.type = GetParam();
    if (device.is_cuda() && !cuda_available()) GTEST_SKIP() << "no GPU";
  }
  Tensor make(int64_t bytes) { return empty({bytes}, {DType::u8, device}); }
  Device device;
};

TEST_P(Watch, KnowsWhoWasThereAtThePeak) {
  Tensor old = make(4096), older = make(2048);
  const int64_t before = allocator_for(device).stats().allocated;
  MemoryWatch watch(device);
  older = Tensor();  // of before, gone at the peak
  Tensor kept, later;
  {
    Scope scope("blocks.0");
    TraceSpan span("first", device);
    kept = make(512 * 100);
    Tensor brief = make(512 * 50);
  }
  {
    Scope scope("blocks.1");
    TraceSpan span("first", device);
    Tensor top = make(512 * 80);
    EXPECT_EQ(watch.peak(false).bytes, before - 2048 + 512 * 180);
  }
  {
    Scope scope("head");
    later = make(512 * 40);  // after the peak
  }
  kept = Tensor();
  const MemoryWatch::Peak peak = watch.peak(false), merged = watch.peak(true);
  EXPECT_EQ(peak.bytes, before - 2048 + 512 * 180);
  EXPECT_EQ(peak.before, before - 2048);
  ASSERT_EQ(peak.pieces.size(), 2u);
  EXPECT_EQ(peak.pieces[0].op, "first");
  EXPECT_EQ(peak.pieces[0].path, "blocks.0");
  EXPECT_EQ(peak.pieces[0].bytes, 512 * 100);
  EXPECT_EQ(peak.pieces[1].path, "blocks.1");
  ASSERT_EQ(merged.pieces.size(), 1u);
  EXPECT_EQ(merged.pieces[0].count, 2);
  EXPECT_EQ(merged.pieces[0].path, "blocks.*");
  int64_t sum = peak.before;
  for (const auto& piece : peak.pieces) sum += piece.bytes;
  EXPECT_EQ(sum, peak.bytes);
  EXPECT_OCCAM_ERROR(MemoryWatch second(device), ErrorKind::usage, "watched already");
}

TEST_P(Watch, EndsWithItself) {
  { MemoryWatch watch(device); }
  Tensor t = make(100);
  MemoryWatch again(device);
  t = Tensor();
  EXPECT_TRUE(again.peak(false).pieces.empty());
}

INSTANTIATE_TEST_SUITE_P(Memory, Watch, ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& i) { return i.param == DeviceType::cpu ? "cpu" : "cuda"; });

}  // namespace
}  // namespace occam
