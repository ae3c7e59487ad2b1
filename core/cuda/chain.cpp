#include "core/cuda/chain.h"

#include <mutex>
#include <vector>

#include "core/cuda/launch.h"

namespace occam::cuda {

namespace {

constexpr size_t kMostWritten = 512;  // a search through them is quicker than a launch

struct Chain {
  void* stream = nullptr;
  uint64_t work = 0;  // work_count() behind its newest kernel
  std::vector<Memory> written;
};

std::mutex& chain_mutex() {
  static std::mutex mutex;
  return mutex;
}
Chain& chain() {
  static auto* newest = new Chain;
  return *newest;
}

thread_local uint64_t seen = 0;  // work_count() when this thread asked joins_chain()

bool overlap(const Memory& a, const Memory& b) {
  const auto x = reinterpret_cast<uintptr_t>(a.begin), y = reinterpret_cast<uintptr_t>(b.begin);
  return x < y + uintptr_t(b.bytes) && y < x + uintptr_t(a.bytes);
}

}  // namespace

bool joins_chain(void* stream, const ChainMemory& memory) {
  if (device_limits().capability < 90) return false;
  std::lock_guard lock(chain_mutex());
  seen = work_count();
  if (chain().stream != stream || chain().work != seen) return false;
  if (chain().written.size() >= kMostWritten) return false;
  for (const Memory& early : memory.early)
    for (const Memory& written : chain().written)
      if (overlap(early, written)) return false;
  return true;
}

void extend_chain(void* stream, const ChainMemory& memory, bool joined) {
  std::lock_guard lock(chain_mutex());
  Chain& newest = chain();
  if (!joined) newest.written.clear();
  // Its launch is the one piece of work since; where another thread queued some too, nothing joins this
  // kernel.
  const bool alone = work_count() == seen + 1;
  newest.stream = alone ? stream : nullptr;
  newest.work = seen + 1;
  newest.written.insert(newest.written.end(), memory.written.begin(), memory.written.end());
}

}  // namespace occam::cuda
