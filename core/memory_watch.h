#pragma once
// What was in a device's memory when most of it was in use.
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/device.h"

namespace occam {

/// Notes every allocation of a device while it lives; one at a time for each device. Costs a map entry an
/// allocation: the peak is not copied when it rises, but put together from who was alive at its time.
class MemoryWatch {
 public:
  /// Throws Error{usage} when the device is being watched already.
  explicit MemoryWatch(Device device);
  ~MemoryWatch();
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;

  /// Tensors made by one op in one place.
  struct Piece {
    std::string op, path;  // as the scopes and spans had them; empty outside
    int64_t bytes = 0, count = 0;
  };
  struct Peak {
    int64_t bytes = 0;          // asked for, without the allocator's rounding
    int64_t before = 0;         // of them made before the watch began
    std::vector<Piece> pieces;  // the rest, largest first
  };
  /// With `merge_blocks`, places that differ by a number only ("blocks.3.mlp") make one piece.
  Peak peak(bool merge_blocks) const;

  /// For the allocator.
  void allocated(const void* pointer, size_t bytes);
  void freed(const void* pointer, size_t bytes);

 private:
  struct Block {
    int64_t bytes = 0, born = 0;
    const char* op = nullptr;
    std::string path;
  };

  Device device_;
  mutable std::mutex mutex_;
  std::map<const void*, Block> live_;
  std::vector<Block> gone_;  // freed since the peak, which they saw
  int64_t clock_ = 0, peak_time_ = 0;
  int64_t bytes_ = 0, old_ = 0;  // live; of them from before
  int64_t peak_bytes_ = 0, peak_old_ = 0;
};

}  // namespace occam
