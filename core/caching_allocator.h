#pragma once
// Caching allocator over any memory that streams use asynchronously: GPU memory and page-locked host memory.
// The algorithm knows no CUDA, so its tests need no GPU.
//
// Requests are rounded to 512 B. Up to 1 MiB they are cut from 2 MiB segments, up to 10 MiB from 20 MiB
// segments, above that from a segment of their own, rounded to 2 MiB. Best fit; a block is split when the
// rest is worth keeping (512 B in small segments, 1 MiB in large ones) and merged with free neighbours when
// it comes back.
//
// A block belongs to the stream it was allocated on: freed, it can be handed out again on that stream at
// once, because the stream keeps the order. Use on any other stream must be told by record_use(); such a
// block comes back only when those streams have passed the point of its release.
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/allocator.h"

namespace occam {

/// What the allocator asks of the system. Marks are points in a stream's queue (CUDA events).
class SystemMemory {
 public:
  virtual ~SystemMemory() = default;
  /// "cuda:0", for error messages.
  virtual std::string name() const = 0;
  /// Null when there is no room. The address is a multiple of 512.
  virtual void* reserve(size_t bytes) noexcept = 0;
  /// Waits for work that may still use the memory.
  virtual void release(void* pointer) noexcept = 0;
  /// Bytes the system could still give, and all it has; zeros when unknown.
  struct Room {
    int64_t free = 0, total = 0;
  };
  virtual Room room() noexcept = 0;
  /// Behind all work queued on `stream` so far; null when the system is shutting down.
  virtual void* mark(void* stream) noexcept = 0;
  virtual bool passed(void* mark) = 0;
  virtual void wait(void* mark) = 0;
  virtual void drop(void* mark) noexcept = 0;
  /// True while work queued on `stream` is recorded into a graph instead of run.
  virtual bool is_capturing(void* stream) noexcept = 0;
};

class CachingAllocator final : public Allocator {
 public:
  explicit CachingAllocator(std::unique_ptr<SystemMemory> system);
  ~CachingAllocator() override;

  /// Multiples of 512 B. When there is no room: waits for blocks guarded by marks, gives cached segments
  /// back, retries, then throws Error{memory} with requested, free and reserved bytes and the ten largest
  /// live blocks with the scope path at their allocation.
  void* alloc(size_t bytes, Stream stream) override;
  /// The same for memory that stays: a new segment, so that none which trim() could give back is cut for it,
  /// and of the common pool even while this thread captures.
  void* alloc_to_stay(size_t bytes, Stream stream);
  void free(void* pointer, size_t bytes, Stream stream) noexcept override;
  AllocStats stats() const override;
  void reset_peak() override;
  /// Nothing happens while a capture is open: giving memory back waits for the device, which a capture
  /// forbids.
  void trim() override;

  /// `stream` uses the live block around `pointer`. False when no live block is there.
  bool record_use(const void* pointer, void* stream);

  /// From begin to end, what this thread allocates here comes from a private pool, whose memory is handed out
  /// to nobody else until release_pool(): a graph replays on the same addresses. Blocks of other pools that
  /// are freed meanwhile by the captured work are held until then too. Returns the pool's id.
  int64_t begin_capture_pool();
  void end_capture_pool(int64_t pool);
  /// The graph's work must have ended. Blocks still live stay valid and become ordinary.
  void release_pool(int64_t pool) noexcept;
  /// Bytes of the segments of a pool.
  int64_t pool_bytes(int64_t pool) const;

 private:
  struct Block;
  struct BySize {
    bool operator()(const Block* a, const Block* b) const;
  };
  using FreeSet = std::set<Block*, BySize>;
  struct Pool {
    FreeSet small, large;
    std::vector<Block*> segments;  // the first block of each
    std::vector<Block*> held;      // freed inside a capture, not reusable before the pool is released
  };
  struct Guarded {
    void* mark;
    Block* block;
  };

  void* alloc_from(int64_t pool, size_t bytes, void* stream, bool to_stay);
  Pool& pool_of(const Block& block);
  int64_t pool_of_this_thread() const;
  FreeSet& free_set(Pool& pool, size_t size) const;
  Block* take(int64_t pool, size_t size, void* stream);
  Block* add_segment(int64_t pool, size_t size, void* stream);
  void cut(Block& block, size_t size);
  void give(Block* block) noexcept;
  Block* merge(Block* block, Block* next) noexcept;
  void collect(bool wait);
  void release_segments();
  [[noreturn]] void fail_out_of_memory(size_t requested) const;
  Block* find_live(const void* pointer) const;

  std::unique_ptr<SystemMemory> system_;
  mutable std::mutex mutex_;
  std::map<int64_t, std::unique_ptr<Pool>> pools_;  // 0 is the common pool
  std::map<std::thread::id, int64_t> captures_;     // open ones
  std::map<const char*, Block*> live_;              // by address
  std::deque<Guarded> guarded_;
  int64_t next_pool_ = 1;
  AllocStats stats_;
};

}  // namespace occam
