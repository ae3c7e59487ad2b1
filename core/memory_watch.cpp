#include "core/memory_watch.h"

#include <algorithm>
#include <utility>

#include "core/allocator.h"
#include "core/scope.h"
#include "core/trace.h"

namespace occam {

MemoryWatch::MemoryWatch(Device device) : device_(device) {
  watch_memory(device, this);
  std::lock_guard lock(mutex_);
  old_ += allocator_for(device).stats().allocated - bytes_;
  bytes_ += old_;
  peak_bytes_ = bytes_, peak_old_ = old_, peak_time_ = clock_;
}

MemoryWatch::~MemoryWatch() { watch_memory(device_, nullptr); }

void MemoryWatch::allocated(const void* pointer, size_t bytes) {
  if (pointer == nullptr) return;
  std::lock_guard lock(mutex_);
  live_[pointer] = {int64_t(bytes), ++clock_, TraceSpan::name(), Scope::path()};
  bytes_ += int64_t(bytes);
  if (bytes_ <= peak_bytes_) return;
  peak_bytes_ = bytes_, peak_old_ = old_, peak_time_ = clock_;
  gone_.clear();
}

void MemoryWatch::freed(const void* pointer, size_t bytes) {
  if (pointer == nullptr) return;
  std::lock_guard lock(mutex_);
  bytes_ -= int64_t(bytes);
  auto it = live_.find(pointer);
  if (it == live_.end()) {
    old_ -= int64_t(bytes);
    return;
  }
  if (it->second.born <= peak_time_) gone_.push_back(std::move(it->second));
  live_.erase(it);
}

MemoryWatch::Peak MemoryWatch::peak(bool merge_blocks) const {
  std::lock_guard lock(mutex_);
  std::map<std::pair<std::string, std::string>, Piece> found;
  auto add = [&](const Block& block) {
    if (block.born > peak_time_) return;
    const std::string op = block.op ? block.op : "", path = merge_blocks ? place_of(block.path) : block.path;
    Piece& piece = found[{op, path}];
    piece.op = op, piece.path = path;
    piece.bytes += block.bytes;
    ++piece.count;
  };
  for (const auto& [pointer, block] : live_) add(block);
  for (const Block& block : gone_) add(block);
  Peak peak{peak_bytes_, peak_old_, {}};
  for (auto& [key, piece] : found) peak.pieces.push_back(std::move(piece));
  std::stable_sort(peak.pieces.begin(), peak.pieces.end(),
                   [](const Piece& a, const Piece& b) { return a.bytes > b.bytes; });
  return peak;
}

}  // namespace occam
