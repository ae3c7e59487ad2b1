#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "core/allocator.h"

namespace occam {

/// A block of memory with a version that every in-place write bumps; views share it.
class Storage {
 public:
  Storage(size_t bytes, Device device);
  /// Page-locked host memory.
  struct Pinned {};
  Storage(size_t bytes, Pinned);
  /// Borrows memory; `keep_alive` is released with the storage (an mmap, say).
  Storage(void* data, size_t bytes, Device device, std::shared_ptr<void> keep_alive);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  uint64_t version() const { return version_.load(std::memory_order_relaxed); }
  void bump_version() { version_.fetch_add(1, std::memory_order_relaxed); }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_;
  Allocator* allocator_ = nullptr;
  Stream stream_;
  std::shared_ptr<void> keep_alive_;
  std::atomic<uint64_t> version_{0};
};

}  // namespace occam
