#include "core/allocator.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "core/check.h"
#include "core/memory_watch.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kZone = 256;
constexpr unsigned char kZoneByte = 0xA5;

class HostAllocator : public Allocator {
 public:
  void* alloc(size_t bytes, Stream) override {
    if (bytes == 0) return nullptr;
    size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* pointer = rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
    OCCAM_CHECK(pointer, ErrorKind::memory, "out of host memory: {} bytes requested, {} in use", bytes,
                live_.load());
    int64_t now = live_.fetch_add(int64_t(bytes)) + int64_t(bytes);
    int64_t peak = peak_.load();
    while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
    }
    ++count_;
    return pointer;
  }
  void free(void* pointer, size_t bytes, Stream) noexcept override {
    if (pointer == nullptr) return;
    std::free(pointer);
    live_.fetch_sub(int64_t(bytes));
  }
  AllocStats stats() const override { return {live_, peak_, live_, count_}; }
  void reset_peak() override { peak_ = live_.load(); }
#ifdef __GLIBC__
  void trim() override { malloc_trim(0); }
#endif

 private:
  std::atomic<int64_t> live_{0}, peak_{0}, count_{0};
};

void fill_bytes(Device device, void* at, int byte, size_t bytes, Stream stream) {
#if OCCAM_CUDA
  if (device.is_cuda()) return cuda::memset_async(at, byte, bytes, stream.handle);
#endif
  std::memset(at, byte, bytes);
}

bool zone_intact(Device device, const void* zone, Stream stream) {
  unsigned char copy[kZone];
#if OCCAM_CUDA
  if (device.is_cuda()) {
    cuda::memcpy_async(copy, zone, kZone, stream.handle);
    cuda::synchronize_stream(stream.handle);
  } else
#endif
    std::memcpy(copy, zone, kZone);
  return std::all_of(copy, copy + kZone, [](unsigned char b) { return b == kZoneByte; });
}

/// In front of every allocator: tells a MemoryWatch, and for tests adds poison, guard bytes and planned
/// failure. Blocks made before a switch was turned on are recognised by their absence from `blocks_`.
class FrontAllocator : public Allocator {
 public:
  FrontAllocator(Allocator& inner, Device device) : inner_(inner), device_(device) {}

  void set_mode(const AllocTestMode& mode) {
    std::lock_guard lock(mutex_);
    mode_ = mode;
    active_ = mode.poison || mode.red_zones || mode.fail_after >= 0 || !blocks_.empty();
  }

  void set_watch(MemoryWatch* watch) {
    std::lock_guard lock(watch_mutex_);
    OCCAM_CHECK(watch == nullptr || !watched_, ErrorKind::usage, "the memory of {} is watched already",
                device_.str());
    watch_ = watch;
    watched_ = watch != nullptr;
  }

  void* alloc(size_t bytes, Stream stream) override {
    void* pointer = take(bytes, stream);
    if (!watched_) return pointer;
    std::lock_guard lock(watch_mutex_);
    if (watch_ != nullptr) watch_->allocated(pointer, bytes);
    return pointer;
  }

  void free(void* pointer, size_t bytes, Stream stream) noexcept override {
    if (watched_) {
      std::lock_guard lock(watch_mutex_);
      if (watch_ != nullptr) watch_->freed(pointer, bytes);
    }
    put(pointer, bytes, stream);
  }

  int64_t take_damaged() {
    std::lock_guard lock(mutex_);
    for (const auto& block : blocks_) damaged_ += !intact(block);
    return std::exchange(damaged_, 0);
  }

  AllocStats stats() const override { return inner_.stats(); }
  void reset_peak() override { inner_.reset_peak(); }
  void trim() override { inner_.trim(); }

 private:
  struct Block {
    size_t bytes;
    Stream stream;
  };

  void* take(size_t bytes, Stream stream) {
    if (!active_) return inner_.alloc(bytes, stream);
    std::lock_guard lock(mutex_);
    if (mode_.fail_after >= 0 && mode_.fail_after-- == 0)
      fail(ErrorKind::memory, "out of memory: planned failure of a test");
    if (bytes == 0) return nullptr;
    size_t zone = mode_.red_zones ? kZone : 0;
    auto* base = static_cast<char*>(inner_.alloc(bytes + 2 * zone, stream));
    if (mode_.poison) fill_bytes(device_, base + zone, 0xFF, bytes, stream);
    if (zone == 0) return base;
    fill_bytes(device_, base, kZoneByte, zone, stream);
    fill_bytes(device_, base + zone + bytes, kZoneByte, zone, stream);
    blocks_[base + zone] = {bytes, stream};
    return base + zone;
  }

  void put(void* pointer, size_t bytes, Stream stream) noexcept {
    if (pointer == nullptr) return;
    if (active_) {
      std::lock_guard lock(mutex_);
      if (auto it = blocks_.find(pointer); it != blocks_.end()) {
        try {
          damaged_ += !intact(*it);
        } catch (const std::exception&) {
          ++damaged_;
        }
        blocks_.erase(it);
        return inner_.free(static_cast<char*>(pointer) - kZone, bytes + 2 * kZone, stream);
      }
    }
    inner_.free(pointer, bytes, stream);
  }

  bool intact(const std::pair<void* const, Block>& b) {
    auto* start = static_cast<char*>(b.first);
    return zone_intact(device_, start - kZone, b.second.stream) &&
           zone_intact(device_, start + b.second.bytes, b.second.stream);
  }

  Allocator& inner_;
  Device device_;
  std::atomic<bool> active_{false};
  std::mutex mutex_;
  AllocTestMode mode_;
  std::map<void*, Block> blocks_;
  int64_t damaged_ = 0;
  std::atomic<bool> watched_{false};
  std::mutex watch_mutex_;
  MemoryWatch* watch_ = nullptr;
};

std::vector<FrontAllocator*>& all_allocators() {
  // Never destroyed: tensors of static lifetime may be freed after it would be.
  static auto* allocators = [] {
    auto* list = new std::vector<FrontAllocator*>{new FrontAllocator(*new HostAllocator, kCPU)};
#if OCCAM_CUDA
    for (int i = 0; i < cuda::device_count(); ++i)
      list->push_back(new FrontAllocator(cuda::caching_allocator(i), cuda_device(i)));
#endif
    return list;
  }();
  return *allocators;
}

}  // namespace

namespace {
FrontAllocator& front_of(Device device) {
  auto& list = all_allocators();
  size_t slot = device.is_cpu() ? 0 : 1 + size_t(device.index);
  OCCAM_CHECK(slot < list.size(), ErrorKind::device, "{} is not there: {} GPU(s) usable", device.str(),
              list.size() - 1);
  return *list[slot];
}
}  // namespace

Allocator& allocator_for(Device device) { return front_of(device); }
void watch_memory(Device device, MemoryWatch* watch) { front_of(device).set_watch(watch); }

Allocator& pinned_allocator() {
#if OCCAM_CUDA
  if (cuda::device_count() > 0) return cuda::pinned_allocator();
#endif
  return allocator_for(kCPU);
}

void set_alloc_test_mode(const AllocTestMode& mode) {
  for (FrontAllocator* a : all_allocators()) a->set_mode(mode);
}

int64_t check_red_zones() {
  int64_t damaged = 0;
  for (FrontAllocator* a : all_allocators()) damaged += a->take_damaged();
  return damaged;
}

}  // namespace occam
