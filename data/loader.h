#pragma once
// Batches of a data set, made ahead by worker threads and delivered in order.
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "data/dataset.h"
#include "data/mix/mix.h"
#include "data/render/render.h"
#include "data/transforms/transform.h"

namespace occam {

struct Batch {
  Tensor images;                 // LoaderOptions::dtype [b, c, size, size]
  Tensor labels;                 // i64 [b]
  Tensor targets;                // f32 [b, classes], mixed; undefined when LoaderOptions::mix is off
  std::vector<int64_t> indices;  // of the images in the data set
  int64_t epoch = 0, index = 0;  // the batch's place
  int64_t size() const { return int64_t(indices.size()); }
};

/// The next batch to come. Two integers are all there is to save.
struct LoaderState {
  int64_t epoch = 0, batch = 0;
  bool operator==(const LoaderState&) const = default;
};

struct LoaderOptions {
  int64_t batch = 64;
  bool shuffle = false;
  bool drop_last = false;
  uint64_t seed = 0;
  int64_t epochs = 1;    // batches of later epochs are not prepared
  int workers = -1;      // threads; 0 = the calling thread does the work; -1 = by the machine
  int64_t prefetch = 3;  // batches in the making or waiting; memory is this many batches
  MixOptions mix;
  int64_t classes = 0;  // width of `targets`; 0 = the data set's
  Device device = kCPU;
  DType dtype = DType::f32;  // of the images; bf16 rounds what f32 would hold
  Resident resident = Resident::automatic;
  bool skip_errors = false;  // leave out images that cannot be read, instead of stopping
  LoaderState start;
};

/// Order, augmentation and mixing are functions of (seed, epoch, place), never of the threads or of where
/// pixels are kept.
///
/// For a CUDA device workers prepare 8-bit pixels, or none where the device has them, and the draws of each
/// image; these are copied ahead on the copy stream, and a kernel on the current stream makes the batch. The
/// host never waits for a copy; it gets at most kStepsAhead steps ahead of the device.
class Loader {
 public:
  /// Throws Error{usage} on options that do not fit.
  Loader(DatasetPtr data, Transform transform, LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next batch; nothing once at the end of each epoch, and from then on after the last. An error met
  /// while making a batch is thrown here when its turn comes, and again at the next call. With skip_errors a
  /// batch may be smaller, and one without a readable image is passed over.
  ///
  /// With a CUDA device the tensors of `into` are written in place when shape, dtype and device fit, in the
  /// order of the current stream: a captured step finds its batch where it was.
  std::optional<Batch> next(const Batch* into = nullptr);
  LoaderState state() const;
  int64_t batches_per_epoch() const;
  /// Whether pixels stay on the device, or why not.
  Residence residence() const;
  /// Unreadable images left out so far, by index, with the reason.
  const std::map<int64_t, std::string>& skipped() const;

  static constexpr int kStepsAhead = 3;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace occam
