#pragma once
// From decoded pixels to a batch on the device where it is wanted: cut, mirror, normalise, erase and mix at
// once. Workers draw and decode ahead (plan), the pixels come last (render).
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/mix/mix.h"
#include "data/render/pixels.h"
#include "data/render/store.h"
#include "data/transforms/transform.h"

namespace occam {

/// Whether decoded pixels stay on the device: where that pays, always (an error where it cannot be), never.
enum class Resident : uint8_t { automatic, always, never };

/// What became of that wish.
struct Residence {
  bool resident = false;
  std::string text;  // "resident on cuda:0, 153.6 MB", or why not
};

/// The work of a batch that the host does: what is drawn, and pixels that no store holds yet.
struct PlannedBatch {
  Tensor block;                  // u8: the plans, then rows of pixels; page-locked for a GPU
  int64_t count = 0, fresh = 0;  // plans; rows of pixels
  int64_t pixels_at = 0;         // byte where those begin
  uint64_t noise_key = 0;
  MixPlan mix;
  kernels::ImagePlan* plans() const { return reinterpret_cast<kernels::ImagePlan*>(block.data<uint8_t>()); }
};

/// Where the result goes. Tensors that are there are written in place when shape, dtype and device fit, else
/// replaced.
struct RenderedBatch {
  Tensor images;   // [b, c, size, size]
  Tensor labels;   // i64 [b]
  Tensor targets;  // f32 [b, classes], with mixing only
};

struct RenderOptions {
  Device device = kCPU;
  DType dtype = DType::f32;  // of the images; or bf16
  Resident resident = Resident::automatic;
  int64_t passes = 1;   // over the data set, to come
  int64_t classes = 0;  // width of the targets
  bool targets = false;
};

class Renderer {
 public:
  /// Throws Error{usage} with Resident::always and a set that cannot be resident.
  Renderer(DatasetPtr data, const Transform& transform, RenderOptions options);
  const Residence& residence() const { return residence_; }

  // From here to plan(): any thread, one thread a row.
  /// Room for the plans of these images, and for the pixels of those that are in no store.
  PlannedBatch begin(const std::vector<int64_t>& indices) const;
  /// Draws for image `index`, row `row` of a batch; reads it unless a store holds it. `rng` is the image's
  /// stream of this epoch, its step the index.
  void plan(PlannedBatch& batch, int64_t row, int64_t index, Rng& rng) const;
  /// Leaves out the rows that are not marked.
  static void drop(PlannedBatch& batch, const std::vector<bool>& keep);

  /// Copies a planned batch to the device, on its copy stream. Nothing on the CPU.
  PlannedBatch upload(PlannedBatch batch) const;
  /// Makes the batch, on the current stream of the device, and puts its fresh pixels into the store.
  void render(const PlannedBatch& batch, const std::vector<int64_t>& indices, RenderedBatch& out) const;
  /// What render() hands to the loop or the kernel; `out` holds fitting tensors.
  kernels::RenderArgs arguments(const PlannedBatch& batch, const RenderedBatch& out) const;

 private:
  std::string refusal() const;
  void open_store();
  void make_filter_table();

  DatasetPtr data_;
  Transform transform_;
  RenderOptions options_;
  int64_t width_ = 0, height_ = 0, channels_ = 0;  // of a row of pixels
  int64_t row_bytes_ = 0;
  bool cuts_here_ = true;  // else plan() cuts, and every batch has other pixels
  int64_t taps_ = 0;
  Tensor levels_;                             // f32 [channels, 256]
  Tensor tap_first_, tap_count_, tap_value_;  // i32; see RenderArgs
  std::shared_ptr<PixelStore> store_;
  Residence residence_;
};

}  // namespace occam
