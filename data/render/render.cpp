#include "data/render/render.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "core/dispatch.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#include "core/cuda/memory.h"
#include "data/render/kernel.h"
#endif

namespace occam {

namespace {

static_assert(kernels::kFilterBits == kFilterBits);
constexpr int64_t kRowAlign = 16;
constexpr int64_t kMaxTapBytes = int64_t(32) << 20;

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

double megabytes(int64_t bytes) { return double(bytes) / 1e6; }

int64_t free_memory(Device device) {
#if OCCAM_CUDA
  if (device.is_cuda()) return cuda::free_bytes(device.index);
#endif
  return int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGE_SIZE));
}

bool fits(const Tensor& t, const Shape& shape, TensorOptions options) {
  return t && t.shape() == shape && t.dtype() == options.dtype && t.device() == options.device &&
         t.is_contiguous();
}

/// `t` when it fits, else a new tensor.
void ensure(Tensor& t, const Shape& shape, TensorOptions options) {
  if (fits(t, shape, options))
    t.impl().storage->bump_version();
  else
    t = empty(shape, options);
}

template <class T, int C>
void render_on_cpu(const kernels::RenderArgs& a, T* images) {
  for (int64_t i = 0; i < (a.count + 1) / 2; ++i)
    for (int32_t y = 0; y < a.size; ++y)
      for (int32_t x = 0; x < a.size; ++x) {
        if (a.taps > 0)
          kernels::render_run<C, 1, true>(a, a.levels, i, x, y, images);
        else
          kernels::render_run<C, 1, false>(a, a.levels, i, x, y, images);
      }
  for (int64_t i = 0; i < a.count; ++i) {
    a.labels[i] = a.images[i].label;
    for (int64_t k = 0; a.targets && k < a.classes; ++k)
      a.targets[i * a.classes + k] =
          kernels::target_value(a, k, a.images[i].label, a.images[a.count - 1 - i].label);
  }
}

}  // namespace

Renderer::Renderer(DatasetPtr data, const Transform& transform, RenderOptions options)
    : data_(std::move(data)), transform_(transform), options_(options) {
  const TransformOptions& t = transform_.options();
  OCCAM_CHECK(options_.dtype == DType::f32 || options_.dtype == DType::bf16, ErrorKind::usage,
              "loader: images of dtype {}; expected f32 or bf16", name_of(options_.dtype));
  width_ = height_ = t.size;
  channels_ = t.channels == 1 ? 1 : data_->channels();
  if (t.augment.crop == CropMode::resized) {
    Rect picture = data_->common_size();
    cuts_here_ = picture.width > 0;
    if (cuts_here_) width_ = picture.width, height_ = picture.height;
    if (cuts_here_) make_filter_table();
    if (!cuts_here_) width_ = height_ = t.size;
  }
  row_bytes_ = round_up(width_ * height_ * channels_, kRowAlign);
  std::vector<float> levels;
  for (const auto& channel : transform_.levels()) levels.insert(levels.end(), channel.begin(), channel.end());
  levels_ = from_vector(levels, {t.channels, 256}, options_.device);
  open_store();
}

/// For every length a cut may have. Leaves cutting to plan() when that is too much.
void Renderer::make_filter_table() {
  const TransformOptions& t = transform_.options();
  Filter filter = t.filter.value_or(Filter::bicubic);
  int64_t longest = std::max(width_, height_), taps = 0;
  for (int64_t length = 1; length <= longest; ++length)
    taps = std::max(taps, filter_weights(length, t.size, 0, 1, filter).taps);
  if (longest > kMaxTapBytes / 4 / t.size / taps) {
    cuts_here_ = false;
    return;
  }
  std::vector<int32_t> first, count, value(size_t(longest * t.size * taps), 0);
  for (int64_t length = 1; length <= longest; ++length) {
    FilterWeights w = filter_weights(length, t.size, 0, t.size, filter);
    for (int64_t i = 0; i < t.size; ++i) {
      first.push_back(int32_t(w.first[size_t(i)]));
      count.push_back(int32_t(w.count[size_t(i)]));
      std::copy_n(w.value.data() + i * w.taps, w.taps, value.data() + ((length - 1) * t.size + i) * taps);
    }
  }
  taps_ = taps;
  tap_first_ = from_vector(first, {longest, t.size}, options_.device);
  tap_count_ = from_vector(count, {longest, t.size}, options_.device);
  tap_value_ = from_vector(value, {longest, t.size, taps}, options_.device);
}

/// Why the pixels cannot be kept or, with Resident::automatic, are not; empty when they can.
std::string Renderer::refusal() const {
  const bool always = options_.resident == Resident::always;
  if (options_.resident == Resident::never) return "data.resident=false";
  if (!always && options_.device.is_cpu()) return "on a CPU pixels are kept with data.resident=true only";
  if (!cuts_here_)
    return data_->common_size().width > 0
               ? "the tables that resize cuts of such large pictures would be too large"
               : "data.aug.crop=resized cuts the pictures themselves, and their sizes may differ";
  if (data_->size() > std::numeric_limits<int64_t>::max() / row_bytes_) return "the data set is too large";
  const int64_t bytes = data_->size() * row_bytes_, room = free_memory(options_.device);
  if (bytes > (always ? room : room / 4))
    return fmt::format(
        "{} images take {:.1f} MB, {}{:.1f} MB are free on {}", data_->size(), megabytes(bytes),
        always ? "" : "more than a quarter of what is free: ", megabytes(room), options_.device.str());
  return "";
}

void Renderer::open_store() {
  const TransformOptions& t = transform_.options();
  std::string key = fmt::format("{} {}x{}x{} ", options_.device.str(), width_, height_, channels_);
  if (t.augment.crop == CropMode::resized)
    key += "pictures";
  else
    key += fmt::format("size {} crop {} filter {}", t.size, t.crop_pct, t.filter ? int(*t.filter) : -1);
  if (options_.resident != Resident::never && cuts_here_) store_ = data_->stores().find(key);
  std::string reason = store_ ? "" : refusal();
  OCCAM_CHECK(reason.empty() || options_.resident != Resident::always, ErrorKind::usage,
              "data.resident=true: {}", reason);
  // One pass reads every image once; a second one tells that there may be more.
  if (!store_ && reason.empty() && options_.resident == Resident::automatic && options_.passes <= 1 &&
      data_->stores().count_pass(key) == 0)
    reason = "the first pass over the data set, and no other was announced";
  if (!reason.empty()) {
    residence_.text = reason;
    return;
  }
  if (!store_) store_ = data_->stores().make(key, data_->size(), row_bytes_, options_.device);
  residence_ = {true, fmt::format("resident on {}, {:.1f} MB", options_.device.str(),
                                  megabytes(store_->pixels.numel()))};
}

PlannedBatch Renderer::begin(const std::vector<int64_t>& indices) const {
  PlannedBatch batch;
  batch.count = int64_t(indices.size());
  std::vector<int64_t> place;
  for (int64_t index : indices) {
    bool there = store_ && store_->present[size_t(index)].load(std::memory_order_acquire);
    place.push_back(there ? -1 : batch.fresh++);
  }
  batch.pixels_at = round_up(batch.count * int64_t(sizeof(kernels::ImagePlan)), kRowAlign);
  Shape bytes{batch.pixels_at + batch.fresh * row_bytes_};
  batch.block = options_.device.is_cuda() ? empty_pinned(bytes, DType::u8) : empty(bytes, {DType::u8, kCPU});
  for (size_t row = 0; row < place.size(); ++row) batch.plans()[row].fresh = place[row];
  return batch;
}

void Renderer::plan(PlannedBatch& batch, int64_t row, int64_t index, Rng& rng) const {
  kernels::ImagePlan& p = batch.plans()[row];
  p.index = index;
  Image base;
  if (p.fresh >= 0) {
    Sample sample = data_->get(index);
    p.label = sample.label;
    base = transform_.base(sample.image);
    OCCAM_CHECK(!cuts_here_ || (base.width() == width_ && base.height() == height_), ErrorKind::internal,
                "{}: {} x {} pixels, the data set promised {} x {}", data_->path(index), base.width(),
                base.height(), width_, height_);
  } else {
    p.label = data_->label(index);
  }
  Draw draw =
      cuts_here_ ? transform_.draw(width_, height_, rng) : transform_.draw(base.width(), base.height(), rng);
  if (!cuts_here_) base = transform_.cut(std::move(base), draw);
  if (p.fresh >= 0) {
    base = with_channels(std::move(base), channels_);
    std::memcpy(batch.block.data<uint8_t>() + batch.pixels_at + p.fresh * row_bytes_, base.data(),
                size_t(base.size()));
  }
  int64_t size = transform_.options().size;
  Rect part = cuts_here_ ? draw.part : Rect{0, 0, size, size};
  p.x = int32_t(part.x), p.y = int32_t(part.y);
  p.width = int32_t(part.width), p.height = int32_t(part.height);
  p.rows_first = resizes_rows_first(part.width, part.height, size, size);
  p.flip = draw.flip;
  p.erase_x = int32_t(draw.erase.x), p.erase_y = int32_t(draw.erase.y);
  p.erase_width = int32_t(draw.erase.width), p.erase_height = int32_t(draw.erase.height);
  p.noise_at = draw.noise_at;
}

void Renderer::drop(PlannedBatch& batch, const std::vector<bool>& keep) {
  kernels::ImagePlan* plans = batch.plans();
  int64_t to = 0;
  for (size_t row = 0; row < keep.size(); ++row)
    if (keep[row]) plans[to++] = plans[row];
  batch.count = to;
}

kernels::RenderArgs Renderer::arguments(const PlannedBatch& batch, const RenderedBatch& out) const {
  const TransformOptions& t = transform_.options();
  const MixPlan& mix = batch.mix;
  kernels::RenderArgs a{};
  a.images = batch.plans();
  a.count = batch.count;
  a.store = store_ ? store_->pixels.data<uint8_t>() : nullptr;
  a.fresh = batch.block.data<uint8_t>() + batch.pixels_at;
  a.row_bytes = row_bytes_;
  a.source_width = int32_t(width_), a.source_height = int32_t(height_);
  a.source_channels = int32_t(channels_);
  a.size = int32_t(t.size), a.channels = int32_t(t.channels);
  a.levels = levels_.data<float>();
  if (taps_ > 0) {
    a.tap_first = tap_first_.data<int32_t>(), a.tap_count = tap_count_.data<int32_t>();
    a.tap_value = tap_value_.data<int32_t>();
    a.taps = int32_t(taps_);
  }
  a.noise_key = batch.noise_key;
  a.mix = mix.lambda != 1, a.cutmix = mix.cutmix;
  a.top = int32_t(mix.top), a.bottom = int32_t(mix.bottom);
  a.left = int32_t(mix.left), a.right = int32_t(mix.right);
  a.keep = float(mix.lambda), a.give = float(1 - mix.lambda);
  a.classes = options_.classes;
  a.labels = out.labels.data<int64_t>();
  a.targets = options_.targets ? out.targets.data<float>() : nullptr;
  return a;
}

PlannedBatch Renderer::upload(PlannedBatch batch) const {
#if OCCAM_CUDA
  if (options_.device.is_cuda()) {
    // Memory of the copy stream: the copy waits for nobody. render() tells who reads it.
    Stream copy = stream_of(options_.device, StreamRole::copy);
    StreamGuard guard(copy);
    Tensor there = empty(batch.block.shape(), {DType::u8, options_.device});
    cuda::memcpy_async(there.data_ptr(), batch.block.data_ptr(), size_t(batch.block.numel()), copy.handle);
    batch.block = there;
  }
#endif
  return batch;
}

void Renderer::render(const PlannedBatch& batch, const std::vector<int64_t>& indices,
                      RenderedBatch& out) const {
  const TransformOptions& t = transform_.options();
  OCCAM_ASSERT(batch.count == int64_t(indices.size()));
  ensure(out.images, {batch.count, t.channels, t.size, t.size}, {options_.dtype, options_.device});
  ensure(out.labels, {batch.count}, {DType::i64, options_.device});
  if (options_.targets)
    ensure(out.targets, {batch.count, options_.classes}, {DType::f32, options_.device});
  else
    out.targets = {};
  kernels::RenderArgs a = arguments(batch, out);
  std::unique_lock<std::mutex> filling;
  const bool fills = store_ && batch.fresh > 0;
  if (fills) filling = std::unique_lock(store_->filling);
#if OCCAM_CUDA
  if (options_.device.is_cuda()) {
    Stream current = current_stream(options_.device);
    stream_wait(current, stream_of(options_.device, StreamRole::copy));
    cuda::record_use(batch.block.data_ptr(), current.handle);
    if (store_) {
      if (!filling) filling = std::unique_lock(store_->filling);
      stream_wait(current, store_->filled_on);
      cuda::record_use(store_->pixels.data_ptr(), current.handle);
    }
    dispatch_cuda(options_.dtype,
                  [&]<class T>() { kernels::render(a, out.images.data<T>(), current.handle); });
    if (fills) {
      kernels::keep_fresh(a.images, a.count, a.fresh, store_->pixels.data<uint8_t>(), row_bytes_,
                          current.handle);
      store_->filled_on = current;
      for (int64_t index : indices) store_->present[size_t(index)].store(true, std::memory_order_release);
    }
    return;
  }
#endif
  dispatch_cuda(options_.dtype, [&]<class T>() {
    T* images = out.images.data<T>();
    a.channels == 3 ? render_on_cpu<T, 3>(a, images) : render_on_cpu<T, 1>(a, images);
  });
  if (!fills) return;
  for (int64_t i = 0; i < batch.count; ++i) {
    const kernels::ImagePlan& p = a.images[i];
    std::atomic<bool>& present = store_->present[size_t(p.index)];
    if (p.fresh < 0 || present.load(std::memory_order_relaxed)) continue;
    std::memcpy(store_->pixels.data<uint8_t>() + p.index * row_bytes_, a.fresh + p.fresh * row_bytes_,
                size_t(row_bytes_));
    present.store(true, std::memory_order_release);
  }
}

}  // namespace occam
