// What every mixer of the table must do, asked of each by its name: a new mixer is tested by being there.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <map>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/device.h"
#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "nn/optim/optimizer.h"
#include "ops/distance/op.h"
#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

/// Options that make another mixer of one of the table, asked the same beside it.
struct Variant {
  std::string mixer;
  MixerOptions options;
};
const std::map<std::string, Variant>& variants() {
  static const std::map<std::string, Variant> all{{"mamba2_hydra", {"mamba2", {{"variant", "hydra"}}}}};
  return all;
}

std::vector<std::string> names_with_tap() {
  std::vector<std::string> names;
  for (const auto& [name, variant] : variants()) names.push_back(name);
  for (const MixerEntry& entry : mixer_table())
    if (make_mixer(entry.name, {8, 2, 2, 2, 1})->has_tap()) names.emplace_back(entry.name);
  return names;
}

class MixerZoo : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, MixerZoo, ::testing::ValuesIn(names_with_tap()),
                         [](const auto& info) { return info.param; });

const MixerShape kShape{16, 2, 3, 4, 1};

std::unique_ptr<TokenMixer> filled(const std::string& name, const MixerShape& shape = kShape,
                                   MixerOptions options = {}) {
  const auto variant = variants().find(name);
  if (variant != variants().end())
    options.insert(variant->second.options.begin(), variant->second.options.end());
  auto mixer = make_mixer(variant == variants().end() ? name : variant->second.mixer, shape, options);
  initialize(*mixer, 5);
  return mixer;
}

double inner_product(const Tensor& a, const Tensor& b) {
  const auto p = a.to_vector<double>(), q = b.to_vector<double>();
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += p[i] * q[i];
  return sum;
}

// The gradient of the input and of each parameter along a random direction, against differences of fourth
// order: with a step of h they cut the fifth derivative at h^4 / 30 of its size. Outputs of f32 are good to
// about 2^-21, each with its own error, which the difference divides by h: 2^-21 / h of the root of the sum
// of squared terms, and twice that allowed. Beside it 2e-3 of the gradient is far below a wrong term. Where a
// mixer has kinks (a maximum, a piecewise gate), long steps jump over them, so that shorter ones may decide.
TEST_P(MixerZoo, GradientAlongADirection) {
  auto mixer = filled(GetParam());
  const Shape shape{2, kShape.tokens(), kShape.dim};
  const Tensor x = rule::tensor("zoo/x", shape, 0, 1.7),
               cotangent = rule::tensor("zoo/cotangent", shape, 0, 1.7);
  set_requires_grad(x, true);
  const Tensor y = (*mixer)(x), terms = detach(y * cotangent);
  backward(y, cotangent);
  const double size = std::sqrt(inner_product(terms, terms));
  auto check = [&](const std::string& name, const Tensor& leaf) {
    Tensor values = detach(leaf), start = raw::clone(values);
    const Tensor direction = rule::tensor("zoo/" + name, leaf.shape(), 0, 0.5), gradient = grad_of(leaf);
    ASSERT_TRUE(gradient.defined()) << name;
    const double expected = inner_product(gradient, direction),
                 norm = std::sqrt(inner_product(gradient, gradient));
    auto value_at = [&](double step) {
      NoGrad no_grad;
      values.copy_(start);
      values.add_(direction, step);
      return inner_product((*mixer)(detach(x)), cotangent);
    };
    std::string misses;
    for (double h : {0x1p-5, 0x1p-7, 0x1p-9, 0x1p-11, 0x1p-13}) {
      const double slope =
          (8 * (value_at(h) - value_at(-h)) - (value_at(2 * h) - value_at(-2 * h))) / (12 * h);
      const double allowed = 2e-3 * norm + 0x1p-20 / h * size;
      if (std::abs(slope - expected) <= allowed) {
        misses.clear();
        break;
      }
      misses += fmt::format("step {}: {} differs by {}, allowed {}\n", h, slope, slope - expected, allowed);
    }
    EXPECT_EQ(misses, "") << name << ", whose gradient gives " << expected;
    values.copy_(start);
  };
  check("input", x);
  for (auto& [name, p] : mixer->named_parameters()) check(name, p->master());
}

/// Norm of a - b over norm of b.
double difference(const Tensor& a, const Tensor& b) {
  const auto p = a.to_vector<double>(), q = b.to_vector<double>();
  double d = 0, n = 0;
  for (size_t i = 0; i < p.size(); ++i) d += (p[i] - q[i]) * (p[i] - q[i]), n += q[i] * q[i];
  return std::sqrt(d / std::max(n, 1e-30));
}

// bf16 has eps 2^-8; a mixer rounds inputs, weights and what passes between its ops, about ten times.
TEST_P(MixerZoo, Bf16IsNearF32) {
  auto mixer = filled(GetParam());
  const Tensor x = rule::tensor("zoo/x", {2, kShape.tokens(), kShape.dim}, 0, 1.7);
  NoGrad no_grad;
  const Tensor wide = (*mixer)(x);
  mixer->set_compute_dtype(DType::bf16);
  EXPECT_LE(difference((*mixer)(raw::to(x, DType::bf16)), wide), 10 * 0x1p-8);
}

TEST_P(MixerZoo, OneTokenAndNoImage) {
  auto mixer = filled(GetParam(), {16, 2, 1, 1, 0});
  NoGrad no_grad;
  for (float v : (*mixer)(rule::tensor("zoo/one", {3, 1, 16}, 0, 1)).to_vector<float>())
    EXPECT_TRUE(std::isfinite(v));
  EXPECT_EQ((*mixer)(zeros({0, 1, 16})).shape(), (Shape{0, 1, 16}));
}

// The form that a block uses for few rows: x + mixer(norm(x)) with norm and sum inside the layers.
TEST_P(MixerZoo, AddsToWhatItNormalises) {
  NoGrad no_grad;
  for (Device device : {kCPU, cuda_device()}) {
    if (device.is_cuda() && !cuda_available()) continue;
    for (DType dtype : {DType::f32, DType::bf16}) {
      auto mixer = filled(GetParam());
      LayerNorm norm(kShape.dim);
      initialize(norm, 6);
      norm.weight().set_values(rule::tensor("zoo/norm/weight", {kShape.dim}, 1, 0.5));
      norm.bias().set_values(rule::tensor("zoo/norm/bias", {kShape.dim}, 0, 0.5));
      for (Module* m : {static_cast<Module*>(mixer.get()), static_cast<Module*>(&norm)})
        m->set_compute_dtype(dtype), m->to(device);
      const Tensor x =
          raw::to(raw::to(rule::tensor("zoo/x", {2, kShape.tokens(), kShape.dim}, 3, 1.7), dtype), device);
      const double eps = dtype == DType::f32 ? 0x1p-23 : 0x1p-8;
      EXPECT_LE(difference(mixer->add_to(x, norm), add(x, (*mixer)(norm(x)))), 20 * eps) << name_of(dtype);
    }
  }
}

TEST_P(MixerZoo, GpuIsNearCpu) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Device gpu = cuda_device();
  for (DType dtype : {DType::f32, DType::bf16}) {
    auto run = [&](Device device) {
      auto mixer = filled(GetParam());
      mixer->set_compute_dtype(dtype);
      mixer->to(device);
      Tensor x =
          raw::to(raw::to(rule::tensor("zoo/x", {2, kShape.tokens(), kShape.dim}, 0, 1.7), dtype), device);
      set_requires_grad(x, true);
      Tensor y = (*mixer)(x);
      backward(y, raw::to(raw::to(rule::tensor("zoo/gy", y.shape(), 0, 1), dtype), device));
      std::vector<Tensor> all{raw::to(detach(y), kCPU), raw::to(grad_of(x), kCPU)};
      for (auto& [name, p] : mixer->named_parameters()) all.push_back(raw::to(p->grad(), kCPU));
      return all;
    };
    const std::vector<Tensor> on_cpu = run(kCPU), on_gpu = run(gpu);
    const double eps = dtype == DType::f32 ? 0x1p-23 : 0x1p-8;
    for (size_t i = 0; i < on_cpu.size(); ++i)
      EXPECT_LE(difference(on_gpu[i], on_cpu[i]), 20 * eps) << "tensor " << i << " in " << name_of(dtype);
  }
}

// Tasks. Images are random tokens of 14 channels, beside a constant, as the norm's bias gives one in a model
// (gates without a bias need it), and a mark where the answer stands; the answer is read at the class token
// or at all patches. A fixed kernel (s4d) cannot choose by content and fetches at a lag instead.
enum class Task {
  far_copy,       // every token gives the content of the last one, which a mark distinguishes; judged at the
                  // class token, which is farthest
  row_end,        // every patch gives the content of the last one in its row; marked too
  lag,            // every token gives the content of the one kLag before it, where there is one
  local_average,  // every patch gives the average of its 3 x 3 neighbours
  mean,           // every token gives the average of all
};

constexpr int kSteps = 300;
constexpr int64_t kLag = 4;

/// How a mixer is taught, where that is not far_copy with its defaults.
struct Lesson {
  Task task = Task::far_copy;
  MixerOptions options = {};
};
Lesson lesson_of(const std::string& mixer) {
  static const std::map<std::string, Lesson> others{{"bilstm2d", {Task::row_end}},
                                                    {"dwconv", {Task::local_average}},
                                                    {"mamba2", {Task::far_copy, {{"state", "16"}}}},
                                                    {"mamba2_hydra", {Task::far_copy, {{"state", "16"}}}},
                                                    {"pool", {Task::mean}},
                                                    {"s4d", {Task::lag}}};
  const auto found = others.find(mixer);
  return found == others.end() ? Lesson{} : found->second;
}

const MixerShape kGrid{16, 2, 4, 4, 1};
constexpr int64_t kBatch = 32;

struct Batch {
  Tensor x, wanted, asked, judged;  // the latter two: 1 where an answer is trained and where it counts
};

Batch make_batch(Task task, Rng& rng) {
  const int64_t t = kGrid.tokens(), c = kGrid.dim, answered = 4;
  Batch batch{empty({kBatch, t, c}), zeros({kBatch, t, c}), zeros({kBatch, t, c}), zeros({kBatch, t, c})};
  auto x = [&](const Tensor& tensor, int64_t b, int64_t i, int64_t ch) -> float& {
    return tensor.data<float>()[(b * t + i) * c + ch];
  };
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t ch = 0; ch < c; ++ch) {
      for (int64_t i = 0; i < t; ++i) x(batch.x, b, i, ch) = float(rng.normal());
      auto row_end = [&](int64_t i) { return i + (kGrid.grid_w - 1 - (i - 1) % kGrid.grid_w); };
      if (ch == c - 1)
        for (int64_t i = 0; i < t; ++i)
          x(batch.x, b, i, ch) =
              i == t - 1 || (task == Task::row_end && i > 0 && i == row_end(i)) ? 3.0f : 0.0f;
      if (ch == c - 2)
        for (int64_t i = 0; i < t; ++i) x(batch.x, b, i, ch) = 1;
      if (ch >= answered) continue;
      for (int64_t i = 0; i < t; ++i) {
        float answer = 0;
        if (task == Task::far_copy) {
          answer = x(batch.x, b, t - 1, ch);
        } else if (task == Task::row_end) {
          if (i == 0) continue;
          answer = x(batch.x, b, row_end(i), ch);
        } else if (task == Task::lag) {
          if (i < kLag) continue;
          answer = x(batch.x, b, i - kLag, ch);
        } else if (task == Task::mean) {
          for (int64_t n = 0; n < t; ++n) answer += x(batch.x, b, n, ch) / float(std::sqrt(double(t)));
        } else {
          if (i == 0) continue;
          const int64_t r = (i - 1) / kGrid.grid_w, q = (i - 1) % kGrid.grid_w;
          for (int64_t dr = -1; dr <= 1; ++dr)
            for (int64_t dq = -1; dq <= 1; ++dq) {
              const int64_t row = r + dr, column = q + dq;
              if (row < 0 || row >= kGrid.grid_h || column < 0 || column >= kGrid.grid_w) continue;
              answer += x(batch.x, b, 1 + row * kGrid.grid_w + column, ch) / 3;
            }
        }
        x(batch.wanted, b, i, ch) = answer, x(batch.asked, b, i, ch) = 1;
        x(batch.judged, b, i, ch) = task != Task::far_copy || i == 0;
      }
    }
  return batch;
}

/// Loops this short are slower on more threads, most of all where cores are shared.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

/// Share of the answer's variance that is left after training; 1 = nothing learned.
double left_after(const std::string& name, const Lesson& lesson) {
  OneThread one;
  const auto& [task, options] = lesson;
  constexpr int steps = kSteps;
  auto mixer = filled(name, kGrid, options);
  Optimizer optimizer(*mixer, {.lr = 1e-2, .weight_decay = 0, .clip = 1});
  Rng rng(11);
  double left = 0, variance = 0;
  for (int step = 0; step < steps; ++step) {
    const Batch batch = make_batch(task, rng);
    Tensor error = mul(sub((*mixer)(batch.x), batch.wanted), batch.asked);
    Tensor loss = sum(mul(error, error));
    // The last tenth of the way, averaged: all batches are new.
    if (step >= steps * 9 / 10) {
      left += inner_product(mul(error, batch.judged), error);
      variance += inner_product(mul(batch.wanted, batch.judged), batch.wanted);
    }
    optimizer.zero_grad();
    backward(loss);
    optimizer.step(1e-2 * std::min(1.0, 2 - 2 * double(step) / steps));
  }
  return left / variance;
}

TEST_P(MixerZoo, LearnsItsTask) { EXPECT_LE(left_after(GetParam(), lesson_of(GetParam())), 0.1); }

// The tasks need what they are for: an average over everything or a window of three cannot fetch one token,
// and an average over everything knows no neighbours.
TEST(MixerTasks, AreBeyondWhatLacksTheirMeans) {
  EXPECT_GE(left_after("pool", {Task::far_copy}), 0.5);
  EXPECT_GE(left_after("dwconv", {Task::far_copy}), 0.5);
  EXPECT_GE(left_after("pool", {Task::local_average}), 0.5);
  EXPECT_GE(left_after("pool", {Task::lag}), 0.5);
  EXPECT_GE(left_after("dwconv", {Task::row_end}), 0.3);
}

}  // namespace
}  // namespace occam
