#pragma once
// Choices made by measurement, kept in a file for each device and library, so that every run makes the same
// ones: $OCCAM_CACHE, else $XDG_CACHE_HOME/occam, else ~/.cache/occam. A file that cannot be read or written
// costs new measurements, never an error.
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "core/io/json.h"

namespace occam::cuda {

class AlgorithmStore {
 public:
  /// An algorithm as its library packs it.
  using Words = std::array<uint64_t, 8>;
  struct Choice {
    Words words{};
    uint64_t workspace = 0;
  };

  /// `name` becomes the file's: "gemm-NVIDIA_H100_80GB_HBM3-130100.json".
  explicit AlgorithmStore(const std::string& name);
  std::optional<Choice> find(const std::string& problem);
  /// Keeps the choice here and in the file, beside what other processes have put there.
  void put(const std::string& problem, const Choice& choice);

  /// What this process found, put or pinned, for a checkpoint: {"of": name, "algorithms": {problem: choice}}.
  Json used();
  /// Choices that used() gave, of this process or an earlier one, come before the file's from now on; the
  /// file stays as it is. False, and nothing happens, when they are of another device or library.
  bool pin(const Json& choices);

 private:
  using Choices = std::map<std::string, Choice>;
  void read();

  std::string name_;
  std::string path_;  // empty: no folder to write to
  std::mutex mutex_;
  Choices choices_, pinned_;
  std::set<std::string> used_;
};

/// used() and pin() of the products on a device (cublaslt.h); after the latter algorithms are looked up anew.
Json gemm_choices(int device);
bool restore_gemm_choices(int device, const Json& choices);

}  // namespace occam::cuda
