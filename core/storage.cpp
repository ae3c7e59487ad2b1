#include "core/storage.h"

namespace occam {

Storage::Storage(size_t bytes, Device device)
    : bytes_(bytes), device_(device), allocator_(&allocator_for(device)), stream_(current_stream(device)) {
  data_ = allocator_->alloc(bytes, stream_);
}

Storage::Storage(size_t bytes, Pinned) : bytes_(bytes), device_(kCPU), allocator_(&pinned_allocator()) {
  data_ = allocator_->alloc(bytes, stream_);
}

Storage::Storage(void* data, size_t bytes, Device device, std::shared_ptr<void> keep_alive)
    : data_(data), bytes_(bytes), device_(device), keep_alive_(std::move(keep_alive)) {}

Storage::~Storage() {
  if (allocator_ != nullptr) allocator_->free(data_, bytes_, stream_);
}

}  // namespace occam
