#include "apps/bench/rows.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/bench/model.h"
#include "apps/bench/op.h"
#include "apps/common/model.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/config.h"

namespace occam {
namespace {

const char* timm_name(char size) {
  return size == 'T'   ? "deit_tiny_patch16_224"
         : size == 'S' ? "deit_small_patch16_224"
                       : "deit_base_patch16_224";
}

ModelConfig tiny_model() {
  ModelConfig m;
  m.name = "vit", m.image_size = 16, m.patch = 8, m.dim = 128, m.depth = 2, m.heads = 2, m.classes = 10;
  return m;
}

/// The same with a BiLSTM in the place of every attention.
ModelConfig student_of(ModelConfig m, int64_t depth) {
  Replacement all;
  for (int64_t i = 0; i < depth; ++i) all.blocks.push_back(i);
  m.replace = {all};
  return m;
}

ModelConfig deit(char size) {
  ModelConfig m;
  m.name = timm_name(size);
  return m;
}

/// 65 tokens of 192 channels, for 32 x 32 images.
ModelConfig small_model() {
  ModelConfig m;
  m.name = "vit", m.image_size = 32, m.patch = 4, m.dim = 192, m.depth = 12, m.heads = 3, m.classes = 100;
  return m;
}

/// apps/demo/teacher.yaml
ModelConfig demo_model() {
  ModelConfig m;
  m.name = "vit", m.image_size = 28, m.patch = 4, m.channels = 1, m.dim = 64, m.depth = 6, m.heads = 4;
  m.classes = 10;
  return m;
}

LoopConfig demo_loop() {
  LoopConfig loop;
  loop.optim.lr = 0.003;
  loop.optim.clip = 1;
  loop.ema = 0.999;
  return loop;
}

/// As many images as CIFAR-100 trains on, with DeiT's mixing.
DataConfig small_data(bool tiny) {
  DataConfig data;
  data.name = "synthetic";
  data.images = tiny ? 60 : 50'000;
  data.classes = tiny ? 10 : 100;
  data.aug.crop = "pad";
  data.aug.padding = 4;
  data.aug.flip = 0.5;
  data.aug.mixup = 0.8;
  data.aug.cutmix = 1;
  return data;
}

/// A row of a whole model.
BenchRow model_row(std::string name, ModelJob job) {
  BenchRow row{.name = std::move(name)};
  row.run = [job = std::move(job)](const RowContext& c) {
    ModelJob j = job;
    j.device = c.device;
    j.precision = c.precision;
    j.tiny = c.tiny;
    if (c.tiny) {
      j.model = j.model.replace.empty() ? tiny_model() : student_of(tiny_model(), 2);
      j.batch = std::min<int64_t>(j.batch, 4);
      if (j.data) j.data = small_data(true);
    }
    return time_model(j, c.timing);
  };
  return row;
}

/// One layer's op, its pass forward and backward: ms is of both, as the peer times them.
BenchRow op_row(std::string name, const char* op, char size, int64_t batch) {
  BenchRow row{.name = std::move(name)};
  row.run = [op, size, batch](const RowContext& c) {
    OpSizes sizes;
    sizes.batch = c.tiny ? 4 : batch;
    sizes.heads = size == 'T' ? 3 : size == 'S' ? 6 : 12;
    if (c.tiny) sizes.tokens = 5, sizes.heads = 2, sizes.image = 16, sizes.patch = 8;
    sizes.dim = 64 * sizes.heads;
    const DType dtype = compute_dtype_of(c.precision);
    const OpCase timed = op_cases(op, sizes, c.device, dtype).at(0);
    allocator_for(c.device).reset_peak();
    const std::vector<Json> passes = time_op(timed, c.device, dtype, c.timing, c.tiny);
    Json line = {{"who", "occam"},
                 {"what", op},
                 {"model", c.tiny ? "vit" : timm_name(size)},
                 {"B", sizes.batch},
                 {"precision", c.precision},
                 {"mode", passes[0].at("by")}};
    double floor_ms = 0, matmul_ms = 0;
    for (const char* key : {"ms", "ms_low", "ms_high"})
      line[key] = passes[0].at(key).get<double>() + passes[1].at(key).get<double>();
    std::vector<double> sums = passes[1].at("samples_ms");
    const std::vector<double> forward = passes[0].at("samples_ms");
    for (size_t i = 0; i < std::min(sums.size(), forward.size()); ++i) sums[i] += forward[i];
    for (const Json& pass : passes) {
      floor_ms += pass.at("floor_ms").get<double>();
      if (pass.at("bound") == "compute") matmul_ms += pass.at("floor_ms").get<double>();
    }
    const double ms = line.at("ms");
    line.update({{"samples_ms", sums},
                 {"fwd_ms", passes[0].at("ms")},
                 {"img_s", 1e3 * double(sizes.batch) / ms},
                 {"peak_gb", peak_gb(c.device)},
                 {"floor_ms", floor_ms},
                 {"share_of_ceiling", floor_ms / ms},
                 {"device", c.device.is_cuda() ? device_name() : "cpu"}});
    return line;
  };
  return row;
}

std::vector<BenchRow> make_rows() {
  std::vector<BenchRow> rows;
  auto add = [&](BenchRow row, double must) -> BenchRow& {
    row.must = must;
    rows.push_back(std::move(row));
    return rows.back();
  };
  auto deit_row = [&](const char* kind, char size, int64_t batch, ModelJob job, double must) -> BenchRow& {
    job.model = deit(size);
    job.batch = batch;
    return add(model_row(fmt::format("{}_{}_{}", kind, size, batch), std::move(job)), must);
  };
  const std::vector<std::pair<char, double>> train{{'S', 1.25}, {'T', 1.3}, {'B', 1.1}};
  for (auto [size, must] : train) deit_row("train", size, 256, {.mode = "train"}, must).must_memory = true;
  for (char size : {'S', 'T', 'B'}) deit_row("infer", size, 256, {.mode = "infer"}, size == 'B' ? 1.15 : 1.3);
  for (char size : {'S', 'T', 'B'}) deit_row("infer", size, 1, {.mode = "infer"}, 1.25);
  auto profile = [&](char size, bool order, double own) {
    BenchRow& row = deit_row(order ? "profile_all" : "profile_stream", size, 64,
                             {.mode = "profile", .order_metrics = order}, 8);
    row.against = "eager";
    row.must_own = own;
  };
  profile('S', false, 1.3);
  profile('S', true, 2.5);
  const std::vector<std::pair<char, double>> students{{'S', 4}, {'T', 4}, {'B', 2.7}};
  for (auto [size, must] : students)
    for (int64_t batch : {256, 1}) {
      ModelJob job{.model = student_of(deit(size), 12), .mode = "infer", .batch = batch};
      add(model_row(fmt::format("student_{}_{}", size, batch), std::move(job)), batch > 1     ? must
                                                                                : size == 'S' ? 7.3
                                                                                              : 0);
    }
  deit_row("distill", 'S', 128, {.mode = "distill"}, 3);
  ModelJob small{.model = small_model(), .mode = "train", .batch = 1024, .data = small_data(false)};
  add(model_row("small_train_1024", small), 1.6);
  for (int threads : {2, 16}) {
    deit_row("cpu_infer", 'T', 8, {.mode = "infer"}, 1);
    ModelJob demo{
        .model = demo_model(), .mode = "train", .batch = 256, .loop = demo_loop(), .label_smoothing = 0.05};
    add(model_row("cpu_train_demo_256", demo), 1);
    for (BenchRow* row : {&rows[rows.size() - 2], &rows.back()}) {
      row->on_gpu = false;
      row->threads = threads;
      row->name += fmt::format("_{}t", threads);
    }
  }
  add(op_row("lstm_S_256", "lstm", 'S', 256), 0);
  for (char size : {'S', 'T', 'B'})
    add(op_row(fmt::format("attention_{}_256", size), "attention", size, 256), 0);
  for (char size : {'T', 'B'}) deit_row("distill", size, 128, {.mode = "distill"}, 3);
  for (char size : {'T', 'B'})
    for (bool order : {false, true}) profile(size, order, 0);
  for (char size : {'S', 'T', 'B'}) deit_row("infer", size, 64, {.mode = "infer"}, 0);
  return rows;
}

}  // namespace

Json BenchRow::describe() const {
  return {{"row", name},          {"on_gpu", on_gpu},           {"must", must},      {"against", against},
          {"must_own", must_own}, {"must_memory", must_memory}, {"threads", threads}};
}

Json BenchRow::time(const RowContext& context) const {
  RowContext c = context;
  if (!on_gpu) c.device = kCPU, c.precision = "f32";
  OCCAM_CHECK(!on_gpu || c.device.is_cuda() || c.tiny, ErrorKind::usage,
              "row {} is one for a GPU, and there is none; bench.tiny=true tries it at a small size", name);
  if (threads > 0) omp_set_num_threads(c.tiny ? std::min(threads, 2) : threads);
  Json line = {{"row", name}};
  line.update(run(c));
  if (threads > 0) line["threads"] = threads;
  return line;
}

const std::vector<BenchRow>& bench_rows() {
  static const std::vector<BenchRow> rows = make_rows();
  return rows;
}

const BenchRow& find_row(const std::string& name) {
  std::vector<std::string> names;
  for (const BenchRow& row : bench_rows()) {
    if (row.name == name) return row;
    names.push_back(row.name);
  }
  fail(ErrorKind::usage, fmt::format("there is no row '{}'; {}", name, name_hint(name, names)));
}

}  // namespace occam
