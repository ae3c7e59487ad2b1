#pragma once
// Memory by device. CPU memory is 64-byte aligned; CUDA memory comes from a caching allocator.
#include <cstddef>
#include <cstdint>

#include "core/device.h"
#include "core/stream.h"

namespace occam {

struct AllocStats {
  int64_t allocated = 0;       // bytes in live blocks
  int64_t peak_allocated = 0;  // highest `allocated` since reset_peak
  int64_t reserved = 0;        // bytes held from the system, cached ones included
  int64_t count = 0;           // allocations so far
};

class Allocator {
 public:
  virtual ~Allocator() = default;
  /// At least `bytes` (0 allowed: returns null). Throws Error{memory}.
  virtual void* alloc(size_t bytes, Stream stream) = 0;
  /// Never throws; `stream` is the one the memory was allocated on.
  virtual void free(void* pointer, size_t bytes, Stream stream) noexcept = 0;
  virtual AllocStats stats() const = 0;
  virtual void reset_peak() = 0;
  /// Gives cached memory back to the system.
  virtual void trim() {}
};

/// The allocator in use for a device, test wrapper included.
Allocator& allocator_for(Device device);
/// Page-locked host memory; plain host memory when there is no GPU.
Allocator& pinned_allocator();

class MemoryWatch;
/// Tells `watch` (core/memory_watch.h) of every allocation on the device; null: nobody.
void watch_memory(Device device, MemoryWatch* watch);

/// Switches for tests; they act on every allocation of every device until turned off.
struct AllocTestMode {
  bool poison = false;      // fill new memory with 0xFF bytes (a NaN in every floating type)
  bool red_zones = false;   // guard bytes round each block, checked on free and by check_red_zones()
  int64_t fail_after = -1;  // throw Error{memory} at the n-th allocation from now; -1 = never
};
void set_alloc_test_mode(const AllocTestMode& mode);
/// Number of live or freed blocks whose guard bytes were changed since the last call.
int64_t check_red_zones();

}  // namespace occam
