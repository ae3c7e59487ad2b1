#pragma once
// The rows of the comparison with PyTorch: what each is and what it must reach. torch_bench.py has the same
// names; compare.py runs both.
#include <functional>
#include <string>
#include <vector>

#include "apps/bench/timing.h"
#include "core/io/json.h"

namespace occam {

struct RowContext {
  Device device;
  std::string precision;  // of rows on a GPU; those on the CPU are in f32
  TimingOptions timing;
  bool tiny = false;  // small sizes on any device, for tests
};

struct BenchRow {
  std::string name;
  bool on_gpu = true;        // false: always on the CPU
  double must = 0;           // the peer's time over ours; 0: nothing is asked
  std::string against;       // the peer's mode that `must` means; empty: its fastest
  double must_own = 0;       // most times our own inference; 0: nothing is asked
  bool must_memory = false;  // at most the peer's peak memory
  int threads = 0;           // of the CPU
  std::function<Json(const RowContext&)> run;

  /// Keys row, on_gpu, must, against, must_own, must_memory, threads.
  Json describe() const;
  /// The row's line, with key "row". Throws Error{usage} when it needs a GPU and there is none.
  Json time(const RowContext& context) const;
};

/// The most telling ones first: a short slot runs a part.
const std::vector<BenchRow>& bench_rows();
/// Throws Error{usage} with the nearest name.
const BenchRow& find_row(const std::string& name);

}  // namespace occam
