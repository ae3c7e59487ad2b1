#pragma once
// Goldens written by tests/tools/make_data_goldens.py: a line of text, then raw bytes, again and again.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "data/image/image.h"

namespace occam::testing {

inline const std::filesystem::path kGolden = std::filesystem::path(OCCAM_SOURCE_DIR) / "tests/data/golden";

/// The picture of the golden script.
inline Image picture(int64_t width, int64_t height, int64_t channels) {
  Image image(width, height, channels);
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c) {
        uint32_t h = uint32_t(x) * 73856093u ^ uint32_t(y) * 19349663u ^ uint32_t(c) * 83492791u;
        h ^= h >> 13;
        h *= 0x5bd1e995u;
        h ^= h >> 15;
        auto ramp = uint32_t(x * 9 + y * 5 + c * 40);
        image.row(y)[x * channels + c] = uint8_t((x / 5 + y / 3) % 2 == 1 ? h : ramp);
      }
  return image;
}

inline std::vector<uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const std::filesystem::path& path, const std::vector<uint8_t>& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), long(bytes.size()));
}

inline ::testing::AssertionResult has(const std::string& text, const std::string& part) {
  if (text.find(part) != text.npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "'" << text << "' does not hold '" << part << "'";
}

/// A vector of what the arguments are: int64_t for integers, double, or std::string.
template <class... T>
auto list(const T&... values) {
  if constexpr ((std::is_integral_v<T> && ...))
    return std::vector<int64_t>{int64_t(values)...};
  else if constexpr ((std::is_floating_point_v<T> && ...))
    return std::vector<double>{double(values)...};
  else
    return std::vector<std::string>{values...};
}

/// One record after the other of a golden file.
class GoldenReader {
 public:
  explicit GoldenReader(const std::string& name) : file_(kGolden / name, std::ios::binary) {}
  /// The next header line; false at the end.
  bool next(std::istringstream& header) {
    std::string line;
    if (!std::getline(file_, line)) return false;
    header = std::istringstream(line);
    return true;
  }
  template <class T>
  std::vector<T> read(int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    file_.read(reinterpret_cast<char*>(values.data()), std::streamsize(values.size() * sizeof(T)));
    return values;
  }

 private:
  std::ifstream file_;
};

/// A new empty folder below the system's temporary one, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "occam-data-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace occam::testing
