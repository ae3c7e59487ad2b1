#pragma once
// Small data sets on disk for the tests.
#include <zlib.h>

#include <filesystem>
#include <vector>

#include "core/rng.h"
#include "tests/data/golden.h"

namespace occam::testing {

inline void put32(std::vector<uint8_t>& out, uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(uint8_t(v >> shift));
}

inline std::vector<uint8_t> idx_images(uint32_t count, uint32_t rows, uint32_t columns) {
  std::vector<uint8_t> out;
  for (uint32_t v : {0x803u, count, rows, columns}) put32(out, v);
  Rng rng(1, "idx");
  for (uint32_t i = 0; i < count * rows * columns; ++i) out.push_back(uint8_t(rng.next_u32()));
  return out;
}

inline std::vector<uint8_t> idx_labels(uint32_t count, uint32_t classes) {
  std::vector<uint8_t> out;
  for (uint32_t v : {0x801u, count}) put32(out, v);
  for (uint32_t i = 0; i < count; ++i) out.push_back(uint8_t(i * 7 % classes));
  return out;
}

inline void write_gz(const std::filesystem::path& path, const std::vector<uint8_t>& bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), unsigned(bytes.size()));
  gzclose(file);
}

/// Records of CIFAR-10 (one label byte) or CIFAR-100 (two).
inline std::vector<uint8_t> cifar_records(int64_t count, int64_t label_bytes, uint64_t seed) {
  std::vector<uint8_t> out;
  Rng rng(seed, "cifar");
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < label_bytes; ++k) out.push_back(uint8_t((i * 3 + k) % (k == 0 ? 10 : 100)));
    for (int64_t k = 0; k < 3072; ++k) out.push_back(uint8_t(rng.next_u32()));
  }
  return out;
}

inline void copy_image(const std::string& golden, const std::filesystem::path& to) {
  std::filesystem::create_directories(to.parent_path());
  std::filesystem::copy_file(kGolden / "images" / golden, to);
}

}  // namespace occam::testing
