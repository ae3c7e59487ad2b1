#pragma once
// Reading and writing of the safetensors format (https://github.com/huggingface/safetensors): eight bytes of
// header length, a JSON header, the tensors' bytes without gaps.
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace occam {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  /// CPU tensor that borrows the mapped file and keeps it alive; bytes are paged in on first use. A tensor
  /// that the file stores at an address its type cannot be read from is a copy. Writing to it never changes
  /// the file.
  Tensor tensor;
};

/// A checked file: every tensor lies inside the data, they neither overlap nor leave gaps, and each has as
/// many bytes as its shape and type need. What breaks that is Error{input} naming the file, the tensor and
/// the fix.
class Safetensors {
 public:
  explicit Safetensors(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  /// In the order of the header.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  /// The header's `__metadata__`.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// Throws Error{input} naming the file when there is no such tensor.
  const Tensor& get(std::string_view name) const;

 private:
  const Tensor* find(std::string_view name) const;

  std::filesystem::path path_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, size_t, std::less<>> index_;
};

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Atomically. The header keeps the given order; data is laid out by falling element size, so that every
/// tensor is aligned. Any device, any strides. Throws Error{usage} for a duplicate or reserved name.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace occam
