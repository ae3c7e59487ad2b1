#pragma once
// Choices made by measurement, kept in a file for each device and library, so that every run makes the same
// ones: $OCCAM_CACHE, else $XDG_CACHE_HOME/occam, else ~/.cache/occam. A file that cannot be read or written
// costs new measurements, never an error.
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

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

 private:
  void read();

  std::string path_;  // empty: no folder to write to
  std::mutex mutex_;
  std::map<std::string, Choice> choices_;
};

}  // namespace occam::cuda
