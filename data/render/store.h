#pragma once
// Decoded pixels of a whole data set in the memory of one device, filled as they are first used.
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/stream.h"
#include "core/tensor.h"

namespace occam {

struct PixelStore {
  /// Images of `row_bytes` each, a multiple of 16. Throws Error{memory}.
  PixelStore(int64_t images, int64_t row_bytes, Device device);

  Tensor pixels;  // u8 [images, row_bytes]
  /// True once the pixels are there: on a GPU once work that puts them there is queued. Never false again.
  std::unique_ptr<std::atomic<bool>[]> present;
  std::mutex filling;  // held while pixels are put there
  Stream filled_on;    // on which stream, under `filling`
};

/// The stores of one data set, by a key that tells how the pixels were prepared and where they are. Safe to
/// call from several threads.
class PixelStores {
 public:
  /// Null when there is none.
  std::shared_ptr<PixelStore> find(const std::string& key);
  /// The one that is there, or a new one.
  std::shared_ptr<PixelStore> make(const std::string& key, int64_t images, int64_t row_bytes, Device device);
  /// Counts a pass that keeps nothing; the number of those before.
  int64_t count_pass(const std::string& key);

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<PixelStore>> stores_;
  std::map<std::string, int64_t> passes_;
};

}  // namespace occam
