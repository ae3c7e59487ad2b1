// The allocator over a pretend device: what it asks of the system, what it hands out again and when.
#include "core/caching_allocator.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>

#include "core/scope.h"
#include "core/trace.h"
#include "tests/core/expect_error.h"

namespace occam {
namespace {

constexpr int64_t kMiB = int64_t(1) << 20;

/// Addresses without memory behind them; the allocator never reads or writes its blocks.
class PretendMemory : public SystemMemory {
 public:
  explicit PretendMemory(int64_t total) : total_(total) {}
  std::string name() const override { return "pretend:0"; }
  void* reserve(size_t bytes) noexcept override {
    if (used_ + int64_t(bytes) > total_) return nullptr;
    used_ += int64_t(bytes);
    next_ += 1 << 30;
    segments_[next_] = int64_t(bytes);
    return reinterpret_cast<void*>(next_);
  }
  void release(void* pointer) noexcept override {
    auto it = segments_.find(reinterpret_cast<uintptr_t>(pointer));
    ASSERT_NE(it, segments_.end()) << "released what was not reserved";
    used_ -= it->second;
    segments_.erase(it);
  }
  Room room() noexcept override { return {total_ - used_, total_}; }
  void* mark(void* stream) noexcept override {
    ++marks_;
    return stream;
  }
  bool passed(void* mark) override { return !busy.contains(mark); }
  void wait(void* mark) override { busy.erase(mark); }
  void drop(void*) noexcept override { --marks_; }
  bool is_capturing(void* stream) noexcept override { return capturing.contains(stream); }

  std::set<void*> busy, capturing;
  size_t segments() const { return segments_.size(); }
  int open_marks() const { return marks_; }

 private:
  int64_t total_, used_ = 0;
  uintptr_t next_ = 1 << 30;
  std::map<uintptr_t, int64_t> segments_;
  int marks_ = 0;
};

class CachingAllocatorTest : public ::testing::Test {
 protected:
  CachingAllocatorTest() { use(1024 * kMiB); }
  void use(int64_t total) {
    auto owned = std::make_unique<PretendMemory>(total);
    memory = owned.get();
    cache = std::make_unique<CachingAllocator>(std::move(owned));
  }
  void* alloc(int64_t bytes) { return cache->alloc(size_t(bytes), a); }
  void free(void* p) { cache->free(p, 0, a); }
  static char* at(void* p) { return static_cast<char*>(p); }

  char queue_a, queue_b;
  Stream a{cuda_device(0), &queue_a}, b{cuda_device(0), &queue_b};
  PretendMemory* memory = nullptr;
  std::unique_ptr<CachingAllocator> cache;
};

TEST_F(CachingAllocatorTest, RoundsTo512AndPacksSmallRequestsIntoOneSegment) {
  void* p = alloc(1);
  void* q = alloc(513);
  void* r = alloc(512);
  EXPECT_EQ(at(q) - at(p), 512);
  EXPECT_EQ(at(r) - at(q), 1024);
  EXPECT_EQ(cache->stats().allocated, 2048);
  EXPECT_EQ(cache->stats().reserved, 2 * kMiB);
  EXPECT_EQ(cache->stats().count, 3);
  EXPECT_EQ(cache->alloc(0, a), nullptr);
  free(nullptr);
}

TEST_F(CachingAllocatorTest, SegmentSizesFollowTheRequest) {
  alloc(kMiB);  // the largest small one
  EXPECT_EQ(cache->stats().reserved, 2 * kMiB);
  alloc(kMiB + 1);
  EXPECT_EQ(cache->stats().reserved, 22 * kMiB);
  alloc(10 * kMiB);  // fits what is left of the 20 MiB
  EXPECT_EQ(cache->stats().reserved, 22 * kMiB);
  alloc(10 * kMiB);
  EXPECT_EQ(cache->stats().reserved, 42 * kMiB);
  alloc(51 * kMiB);
  EXPECT_EQ(cache->stats().reserved, 94 * kMiB);
}

TEST_F(CachingAllocatorTest, MergesNeighboursBackIntoTheWholeSegment) {
  std::vector<void*> blocks;
  for (int i = 0; i < 20; ++i) blocks.push_back(alloc(100 * 1024));
  EXPECT_EQ(memory->segments(), 1u);
  for (int i : {3, 1, 2, 0, 19, 17, 18}) free(blocks[size_t(i)]);
  for (int i = 4; i < 17; ++i) free(blocks[size_t(i)]);
  EXPECT_EQ(cache->stats().allocated, 0);
  cache->trim();  // gives back only segments that are one free block
  EXPECT_EQ(memory->segments(), 0u);
  EXPECT_EQ(cache->stats().reserved, 0);
}

TEST_F(CachingAllocatorTest, TakesTheSmallestBlockThatFits) {
  void* large = alloc(40 * kMiB);
  void* fitting = alloc(30 * kMiB);
  free(large);
  free(fitting);
  EXPECT_EQ(alloc(29 * kMiB), fitting);
  EXPECT_EQ(alloc(29 * kMiB), large);
}

TEST_F(CachingAllocatorTest, SplitsLargeBlocksOnlyWhenMoreThanOneMiBStays) {
  void* p = alloc(30 * kMiB);
  free(p);
  EXPECT_EQ(alloc(29 * kMiB), p);
  EXPECT_EQ(cache->stats().allocated, 30 * kMiB) << "a rest of 1 MiB stays with the block";
  free(p);
  EXPECT_EQ(alloc(28 * kMiB), p);
  EXPECT_EQ(cache->stats().allocated, 28 * kMiB);
  EXPECT_EQ(at(alloc(2 * kMiB)) - at(p), 28 * kMiB);
}

TEST_F(CachingAllocatorTest, PeakFollowsAllocatedAndResets) {
  void* p = alloc(4096);
  void* q = alloc(8192);
  free(q);
  EXPECT_EQ(cache->stats().peak_allocated, 12288);
  EXPECT_EQ(cache->stats().allocated, 4096);
  cache->reset_peak();
  EXPECT_EQ(cache->stats().peak_allocated, 4096);
  free(p);
}

TEST_F(CachingAllocatorTest, ABlockComesBackOnItsOwnStreamOnly) {
  void* p = alloc(4096);
  free(p);
  EXPECT_NE(cache->alloc(4096, b), p);
  EXPECT_EQ(alloc(4096), p);
}

TEST_F(CachingAllocatorTest, UseByAnotherStreamHoldsTheBlockUntilItPassed) {
  void* p = alloc(4096);
  EXPECT_TRUE(cache->record_use(at(p) + 100, &queue_b));
  memory->busy.insert(&queue_b);
  free(p);
  void* other = alloc(4096);
  EXPECT_NE(other, p);
  free(other);
  memory->busy.clear();
  EXPECT_EQ(alloc(4096), p);
  EXPECT_EQ(memory->open_marks(), 0);
  EXPECT_FALSE(cache->record_use(&queue_a, &queue_b)) << "not a block of this allocator";
}

TEST_F(CachingAllocatorTest, FreeOnAnotherStreamIsAUseOfIt) {
  void* p = alloc(4096);
  memory->busy.insert(&queue_b);
  cache->free(p, 4096, b);
  EXPECT_NE(alloc(4096), p);
  memory->busy.clear();
  EXPECT_EQ(alloc(4096), p);
}

TEST_F(CachingAllocatorTest, WhenFullWaitsForMarksThenGivesCachedSegmentsBack) {
  use(100 * kMiB);
  void* p = alloc(60 * kMiB);
  cache->record_use(p, &queue_b);
  memory->busy.insert(&queue_b);
  free(p);
  EXPECT_EQ(alloc(60 * kMiB), p) << "the only way is to wait for stream b";
  free(p);
  void* q = alloc(80 * kMiB);  // needs the cached 60 MiB back
  EXPECT_NE(q, nullptr);
  EXPECT_EQ(cache->stats().reserved, 80 * kMiB);
}

TEST_F(CachingAllocatorTest, OutOfMemoryNamesSizesAndTheTenLargestBlocks) {
  use(100 * kMiB);
  std::vector<void*> blocks;
  for (int i = 0; i < 12; ++i) {
    Scope scope("blocks." + std::to_string(i));
    std::optional<TraceSpan> op;
    if (i == 4) op.emplace("linear", kCPU);
    blocks.push_back(alloc((i < 2 ? 1 : 3 + i % 2) * kMiB));
  }
  try {
    alloc(90 * kMiB);
    FAIL() << "there is no room for this";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::memory);
    EXPECT_EQ(e.exit_code(), 4);
    const std::string text = e.what();
    EXPECT_NE(
        text.find("out of memory on pretend:0: 90.0 MiB requested, 58.0 MiB free of 100.0 MiB; this process "
                  "holds 42.0 MiB, 37.0 MiB of it in live tensors"),
        std::string::npos)
        << text;
    EXPECT_NE(text.find("4.0 MiB  blocks.3\n"), std::string::npos) << text;
    EXPECT_NE(text.find("3.0 MiB  blocks.10\n"), std::string::npos) << text;
    EXPECT_NE(text.find("3.0 MiB  blocks.4: linear\n"), std::string::npos) << text;
    EXPECT_EQ(text.find("blocks.0\n"), std::string::npos) << "only the ten largest are listed\n" << text;
  }
  free(blocks[5]);
  EXPECT_EQ(cache->stats().allocated, 33 * kMiB) << "the failure must leave the allocator usable";
  EXPECT_EQ(alloc(4 * kMiB), blocks[5]);
}

TEST_F(CachingAllocatorTest, SizesNearOverflowAreRefused) {
  EXPECT_THROW(cache->alloc(~size_t(0), a), Error);
  EXPECT_THROW(cache->alloc(size_t(1) << 62, a), Error);
  EXPECT_EQ(cache->stats().reserved, 0);
}

TEST_F(CachingAllocatorTest, ACaptureAllocatesFromItsOwnPool) {
  void* before = alloc(4096);
  free(before);
  memory->capturing.insert(&queue_a);
  int64_t pool = cache->begin_capture_pool();
  void* p = alloc(4096);
  EXPECT_NE(p, before) << "the common pool's free blocks are not the capture's";
  free(p);
  EXPECT_EQ(alloc(4096), p) << "within the capture, stream order allows reuse";
  free(p);
  cache->end_capture_pool(pool);
  memory->capturing.clear();
  EXPECT_EQ(alloc(4096), before) << "after the capture, others must not get the graph's memory";
  void* q = alloc(4096);
  EXPECT_NE(q, p);
  EXPECT_EQ(cache->pool_bytes(pool), 2 * kMiB);
  cache->release_pool(pool);
  EXPECT_EQ(cache->pool_bytes(pool), 0);
  free(before);
  free(q);
  cache->trim();
  EXPECT_EQ(memory->segments(), 0u) << "the pool's segments became ordinary";
}

TEST_F(CachingAllocatorTest, WhatStaysIsCutFromNothingAndNoPartOfAGraph) {
  free(alloc(256 * kMiB));
  memory->capturing.insert(&queue_a);
  int64_t pool = cache->begin_capture_pool();
  void* p = cache->alloc_to_stay(32 * kMiB, a);
  EXPECT_EQ(cache->pool_bytes(pool), 0);
  EXPECT_EQ(cache->stats().allocated, 32 * kMiB);
  EXPECT_EQ(cache->stats().reserved, 288 * kMiB);
  cache->end_capture_pool(pool);
  memory->capturing.clear();
  cache->release_pool(pool);
  cache->trim();
  EXPECT_EQ(cache->stats().reserved, 32 * kMiB);
  free(p);
  EXPECT_EQ(alloc(32 * kMiB), p);
}

TEST_F(CachingAllocatorTest, BlocksLiveAfterTheirPoolStayValid) {
  memory->capturing.insert(&queue_a);
  int64_t pool = cache->begin_capture_pool();
  void* p = alloc(4096);
  cache->end_capture_pool(pool);
  memory->capturing.clear();
  cache->release_pool(pool);
  EXPECT_EQ(cache->stats().allocated, 4096);
  free(p);
  EXPECT_EQ(alloc(4096), p);
}

TEST_F(CachingAllocatorTest, OlderBlocksFreedInsideACaptureWaitForThePool) {
  void* p = alloc(4096);
  memory->capturing.insert(&queue_a);
  int64_t pool = cache->begin_capture_pool();
  free(p);  // captured work may read it at every replay
  cache->end_capture_pool(pool);
  memory->capturing.clear();
  EXPECT_NE(alloc(4096), p);
  cache->release_pool(pool);
  EXPECT_EQ(alloc(4096), p);
}

TEST_F(CachingAllocatorTest, OneCaptureAThreadAndNoTrimMeanwhile) {
  void* p = alloc(4096);
  free(p);
  int64_t pool = cache->begin_capture_pool();
  EXPECT_OCCAM_ERROR(cache->begin_capture_pool(), ErrorKind::device, "already capturing");
  cache->trim();
  EXPECT_EQ(memory->segments(), 1u);
  cache->end_capture_pool(pool);
  cache->release_pool(pool);
  cache->trim();
  EXPECT_EQ(memory->segments(), 0u);
}

}  // namespace
}  // namespace occam
