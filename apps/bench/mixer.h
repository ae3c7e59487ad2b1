#pragma once
// Mixers against attention over sequence lengths and batch sizes.
#include <functional>
#include <optional>

#include "apps/bench/timing.h"
#include "core/io/json.h"
#include "core/report/html.h"
#include "nn/mixers/mixer.h"

namespace occam {

/// Steps of a cell at least: what measure() needs to warm up, and a step a sample.
constexpr int64_t least_steps(int64_t samples) { return 7 + samples; }

struct MixerSweep {
  int64_t dim = 0, heads = 0, mlp_hidden = 0;  // of the block round the mixer
  std::vector<std::string> mixers;             // attention and identity come first, always
  std::vector<int64_t> tokens;                 // one class token and a square of patches
  std::vector<int64_t> batches;
  bool backward = false;  // forward and backward, else forward alone
  DType dtype = DType::f32;
  Device device;
  double cell_s = 2;  // a cell whose least_steps() are predicted to take longer is left out
  TimingOptions timing;

  std::string pass() const { return backward ? "forward and backward" : "forward"; }
};

/// Throws Error{usage} for tokens that are not one more than a square, and for an unknown mixer.
void check_sweep(const MixerSweep& sweep);

/// Times a transformer block (norms, mixer, MLP, residuals) with one mixer at one batch size and every
/// length, short ones first: a line a cell with ms, img_s, peak_gb and the mixer's ledger, or with `skipped`,
/// which says why. `keep` gets each line at once.
void run_mixer_cells(const MixerSweep& sweep, const std::string& mixer, int64_t batch,
                     const std::function<void(const Json&)>& keep);

/// The length from which on a mixer's block takes less time than attention's at `batch`, between measured
/// lengths by a straight line in log(ms) over log(tokens); 0: at every length measured; none: at none.
std::optional<double> crossover(const MixerSweep& sweep, const std::vector<Json>& lines,
                                const std::string& mixer, int64_t batch);

/// Times over length, and the table of crossovers.
void mixer_report(HtmlReport& report, const MixerSweep& sweep, const std::vector<Json>& lines);
/// Crossovers as a table for the terminal.
Table crossover_table(const MixerSweep& sweep, const std::vector<Json>& lines);

}  // namespace occam
