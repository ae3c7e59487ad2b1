#pragma once
// The caching allocators behind backend.h, for capture.cpp and tests.
#include "core/caching_allocator.h"

namespace occam::cuda {

CachingAllocator& device_cache(int device);
CachingAllocator& pinned_cache();

/// Bytes that the device could still give; what the allocator keeps in reserve counts as given.
int64_t free_bytes(int device);

/// Device of one of backend.h's streams; for other handles the calling thread's current device.
int device_of(void* stream);

}  // namespace occam::cuda
