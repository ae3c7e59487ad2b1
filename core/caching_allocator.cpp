#include "core/caching_allocator.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <tuple>

#include "core/check.h"
#include "core/scope.h"
#include "core/trace.h"

namespace occam {

namespace {

constexpr size_t kMiB = size_t(1) << 20;
constexpr size_t kRound = 512;
constexpr size_t kSmallRequest = kMiB;
constexpr size_t kSmallSegment = 2 * kMiB;
constexpr size_t kMiddleRequest = 10 * kMiB;
constexpr size_t kMiddleSegment = 20 * kMiB;
constexpr size_t kLargeRound = 2 * kMiB;
constexpr size_t kLargestRequest = size_t(1) << 60;  // keeps the rounding away from overflow
constexpr size_t kListedBlocks = 10;
constexpr int64_t kCommonPool = 0;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t segment_size(size_t size) {
  if (size <= kSmallRequest) return kSmallSegment;
  if (size <= kMiddleRequest) return kMiddleSegment;
  return round_up(size, kLargeRound);
}

std::string human(int64_t bytes) {
  double value = double(bytes);
  if (bytes >= int64_t(1) << 30) return fmt::format("{:.2f} GiB", value / double(1 << 30));
  if (bytes >= int64_t(1) << 20) return fmt::format("{:.1f} MiB", value / double(1 << 20));
  return fmt::format("{} B", bytes);
}

}  // namespace

struct CachingAllocator::Block {
  char* data = nullptr;
  size_t size = 0;
  void* stream = nullptr;
  int64_t pool = kCommonPool;
  bool small = false;  // of a small segment
  bool free = false;   // in its pool's free set
  int marks = 0;       // guards that have not been passed
  Block* previous = nullptr;
  Block* next = nullptr;
  std::vector<void*> uses;  // other streams
  std::string scope;        // at allocation
  const char* op = nullptr;
};

bool CachingAllocator::BySize::operator()(const Block* a, const Block* b) const {
  std::less<const void*> before;
  if (a->stream != b->stream) return before(a->stream, b->stream);
  if (a->size != b->size) return a->size < b->size;
  return before(a->data, b->data);
}

CachingAllocator::CachingAllocator(std::unique_ptr<SystemMemory> system) : system_(std::move(system)) {
  pools_[kCommonPool] = std::make_unique<Pool>();
}

CachingAllocator::~CachingAllocator() {
  for (const Guarded& g : guarded_) system_->drop(g.mark);
  for (auto& [id, pool] : pools_) {
    for (Block* block : pool->segments) {
      system_->release(block->data);
      while (block != nullptr) delete std::exchange(block, block->next);
    }
  }
}

CachingAllocator::Pool& CachingAllocator::pool_of(const Block& block) { return *pools_.at(block.pool); }

int64_t CachingAllocator::pool_of_this_thread() const {
  auto it = captures_.find(std::this_thread::get_id());
  return it == captures_.end() ? kCommonPool : it->second;
}

CachingAllocator::FreeSet& CachingAllocator::free_set(Pool& pool, size_t size) const {
  return size <= kSmallRequest ? pool.small : pool.large;
}

void* CachingAllocator::alloc(size_t bytes, Stream stream) {
  std::lock_guard lock(mutex_);
  return alloc_from(pool_of_this_thread(), bytes, stream.handle, false);
}

void* CachingAllocator::alloc_to_stay(size_t bytes, Stream stream) {
  std::lock_guard lock(mutex_);
  return alloc_from(kCommonPool, bytes, stream.handle, true);
}

void* CachingAllocator::alloc_from(int64_t pool, size_t bytes, void* stream, bool to_stay) {
  if (bytes == 0) return nullptr;
  if (bytes > kLargestRequest) fail_out_of_memory(bytes);
  const size_t size = round_up(bytes, kRound);
  collect(false);
  Block* block = to_stay ? nullptr : take(pool, size, stream);
  if (block == nullptr) block = add_segment(pool, size, stream);
  if (block == nullptr && captures_.empty()) {
    collect(true);
    if (!to_stay) block = take(pool, size, stream);
    if (block == nullptr) {
      release_segments();
      block = add_segment(pool, size, stream);
    }
  }
  if (block == nullptr) fail_out_of_memory(bytes);
  cut(*block, size);
  block->scope = Scope::path();
  block->op = TraceSpan::name();
  live_[block->data] = block;
  stats_.allocated += int64_t(block->size);
  stats_.peak_allocated = std::max(stats_.peak_allocated, stats_.allocated);
  ++stats_.count;
  return block->data;
}

CachingAllocator::Block* CachingAllocator::take(int64_t pool, size_t size, void* stream) {
  FreeSet& set = free_set(*pools_.at(pool), size);
  Block key;
  key.stream = stream;
  key.size = size;
  auto it = set.lower_bound(&key);  // the smallest that fits
  if (it == set.end() || (*it)->stream != stream) return nullptr;
  Block* block = *it;
  set.erase(it);
  block->free = false;
  return block;
}

CachingAllocator::Block* CachingAllocator::add_segment(int64_t pool, size_t size, void* stream) {
  const size_t bytes = segment_size(size);
  void* data = system_->reserve(bytes);
  if (data == nullptr) return nullptr;
  auto block = std::make_unique<Block>();
  block->data = static_cast<char*>(data);
  block->size = bytes;
  block->stream = stream;
  block->pool = pool;
  block->small = size <= kSmallRequest;
  pools_.at(pool)->segments.push_back(block.get());
  stats_.reserved += int64_t(bytes);
  return block.release();
}

void CachingAllocator::cut(Block& block, size_t size) {
  const size_t rest = block.size - size;
  if (block.small ? rest < kRound : rest <= kSmallRequest) return;
  auto tail = std::make_unique<Block>();
  tail->data = block.data + size;
  tail->size = rest;
  tail->stream = block.stream;
  tail->pool = block.pool;
  tail->small = block.small;
  tail->previous = &block;
  tail->next = block.next;
  if (tail->next != nullptr) tail->next->previous = tail.get();
  block.next = tail.get();
  block.size = size;
  give(tail.release());
}

void CachingAllocator::free(void* pointer, size_t, Stream stream) noexcept {
  if (pointer == nullptr) return;
  std::lock_guard lock(mutex_);
  auto it = live_.find(static_cast<const char*>(pointer));
  if (it == live_.end()) {
    std::fprintf(stderr, "occam: free of %p, which is not a live block of %s\n", pointer,
                 system_->name().c_str());
    return;
  }
  Block* block = it->second;
  live_.erase(it);
  stats_.allocated -= int64_t(block->size);
  std::vector<void*> uses = std::move(block->uses);
  block->uses.clear();
  if (stream.handle != block->stream && std::find(uses.begin(), uses.end(), stream.handle) == uses.end())
    uses.push_back(stream.handle);

  // Captured work that used the block runs again at every replay, so nobody else may get the memory before
  // the graph is gone. Inside the graph's own pool and on the block's own stream the order of the graph is
  // enough. When the capture is another allocator's, its end is unknown here and the block stays with the
  // common pool, unused.
  auto own = captures_.find(std::this_thread::get_id());
  int64_t capture = kCommonPool;
  if (own != captures_.end())
    capture = own->second;
  else if (!captures_.empty())
    capture = captures_.begin()->second;
  const bool foreign_use =
      std::any_of(uses.begin(), uses.end(), [&](void* s) { return system_->is_capturing(s); });
  const bool outlives =
      capture != kCommonPool && block->pool != capture && system_->is_capturing(block->stream);
  if (foreign_use || outlives) {
    pools_.at(capture)->held.push_back(block);
    return;
  }
  for (void* s : uses) {
    void* mark = system_->mark(s);
    if (mark == nullptr) continue;
    guarded_.push_back({mark, block});
    ++block->marks;
  }
  if (block->marks == 0) give(block);
}

void CachingAllocator::give(Block* block) noexcept {
  if (block->previous != nullptr && block->previous->free) block = merge(block->previous, block);
  if (block->next != nullptr && block->next->free) block = merge(block, block->next);
  Pool& pool = pool_of(*block);
  block->free = true;
  (block->small ? pool.small : pool.large).insert(block);
}

/// `next` follows `block` in memory. Either may be in the free set; the result is in none.
CachingAllocator::Block* CachingAllocator::merge(Block* block, Block* next) noexcept {
  Pool& pool = pool_of(*block);
  FreeSet& set = block->small ? pool.small : pool.large;
  if (block->free) set.erase(block);
  if (next->free) set.erase(next);
  block->free = false;
  block->size += next->size;
  block->next = next->next;
  if (block->next != nullptr) block->next->previous = block;
  delete next;
  return block;
}

void CachingAllocator::collect(bool wait) {
  for (size_t i = 0; i < guarded_.size();) {
    Guarded g = guarded_[i];
    if (wait) system_->wait(g.mark);
    if (!wait && !system_->passed(g.mark)) {
      ++i;
      continue;
    }
    guarded_.erase(guarded_.begin() + std::ptrdiff_t(i));
    system_->drop(g.mark);
    if (--g.block->marks == 0) give(g.block);
  }
}

void CachingAllocator::release_segments() {
  Pool& pool = *pools_.at(kCommonPool);
  std::erase_if(pool.segments, [&](Block* block) {
    if (!block->free || block->next != nullptr) return false;
    (block->small ? pool.small : pool.large).erase(block);
    stats_.reserved -= int64_t(block->size);
    system_->release(block->data);
    delete block;
    return true;
  });
}

void CachingAllocator::trim() {
  std::lock_guard lock(mutex_);
  if (!captures_.empty()) return;
  collect(true);
  release_segments();
}

AllocStats CachingAllocator::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

void CachingAllocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak_allocated = stats_.allocated;
}

CachingAllocator::Block* CachingAllocator::find_live(const void* pointer) const {
  const char* at = static_cast<const char*>(pointer);
  auto it = live_.upper_bound(at);
  if (it == live_.begin()) return nullptr;
  Block* block = std::prev(it)->second;
  return at < block->data + block->size ? block : nullptr;
}

bool CachingAllocator::record_use(const void* pointer, void* stream) {
  std::lock_guard lock(mutex_);
  Block* block = find_live(pointer);
  if (block == nullptr) return false;
  if (stream != block->stream &&
      std::find(block->uses.begin(), block->uses.end(), stream) == block->uses.end())
    block->uses.push_back(stream);
  return true;
}

int64_t CachingAllocator::begin_capture_pool() {
  std::lock_guard lock(mutex_);
  const auto thread = std::this_thread::get_id();
  OCCAM_CHECK(!captures_.contains(thread), ErrorKind::device,
              "capture on {}: this thread is already capturing another graph", system_->name());
  const int64_t id = next_pool_++;
  pools_[id] = std::make_unique<Pool>();
  captures_[thread] = id;
  return id;
}

void CachingAllocator::end_capture_pool(int64_t pool) {
  std::lock_guard lock(mutex_);
  std::erase_if(captures_, [&](const auto& entry) { return entry.second == pool; });
}

void CachingAllocator::release_pool(int64_t id) noexcept {
  std::lock_guard lock(mutex_);
  auto it = pools_.find(id);
  if (it == pools_.end() || id == kCommonPool) return;
  std::erase_if(captures_, [&](const auto& entry) { return entry.second == id; });
  std::unique_ptr<Pool> pool = std::move(it->second);
  Pool& common = *pools_.at(kCommonPool);
  for (Block* first : pool->segments) {
    for (Block* block = first; block != nullptr; block = block->next) block->pool = kCommonPool;
    common.segments.push_back(first);
  }
  common.small.merge(pool->small);
  common.large.merge(pool->large);
  pools_.erase(it);
  for (Block* block : pool->held) give(block);
}

int64_t CachingAllocator::pool_bytes(int64_t id) const {
  std::lock_guard lock(mutex_);
  int64_t bytes = 0;
  auto it = pools_.find(id);
  if (it == pools_.end()) return 0;
  for (const Block* first : it->second->segments)
    for (const Block* block = first; block != nullptr; block = block->next) bytes += int64_t(block->size);
  return bytes;
}

void CachingAllocator::fail_out_of_memory(size_t requested) const {
  const SystemMemory::Room room = system_->room();
  const bool known = requested <= size_t(std::numeric_limits<int64_t>::max());
  const std::string wanted = known ? human(int64_t(requested)) : fmt::format("{} B", requested);
  std::string text = fmt::format("out of memory on {}: {} requested", system_->name(), wanted);
  if (room.total > 0) text += fmt::format(", {} free of {}", human(room.free), human(room.total));
  text += fmt::format("; this process holds {}, {} of it in live tensors", human(stats_.reserved),
                      human(stats_.allocated));
  std::vector<const Block*> blocks;
  for (const auto& [data, block] : live_) blocks.push_back(block);
  const size_t listed = std::min(blocks.size(), kListedBlocks);
  std::partial_sort(
      blocks.begin(), blocks.begin() + std::ptrdiff_t(listed), blocks.end(),
      [](const Block* a, const Block* b) { return std::tie(b->size, a->data) < std::tie(a->size, b->data); });
  if (listed > 0) text += "\n  largest live tensors, and where they were made:";
  for (size_t i = 0; i < listed; ++i)
    text += fmt::format("\n    {:>10}  {}{}{}", human(int64_t(blocks[i]->size)),
                        blocks[i]->scope.empty() ? "(outside all scopes)" : blocks[i]->scope,
                        blocks[i]->op ? ": " : "", blocks[i]->op ? blocks[i]->op : "");
  text += "\n  fix: a smaller batch or image, precision bf16, or another GPU";
  if (!captures_.empty()) text += "; a graph is being captured, so cached memory could not be given back";
  fail(ErrorKind::memory, text);
}

}  // namespace occam
