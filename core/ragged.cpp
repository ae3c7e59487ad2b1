#include "core/ragged.h"

#include <cstring>

#include "core/check.h"

namespace occam {

Ragged make_ragged(const Tensor& data, const Tensor& keep, int64_t capacity) {
  OCCAM_CHECK(data.rank() == 3 && keep.shape() == Shape({data.size(0), data.size(1)}), ErrorKind::shape,
              "make_ragged: data {} needs a mask [b,t], not {}", data.shape().str(), keep.shape().str());
  OCCAM_CHECK(data.is_cpu() && keep.is_cpu() && capacity >= 0 && capacity <= INT32_MAX, ErrorKind::shape,
              "make_ragged: CPU tensors and a capacity in [0, 2^31), not {}", capacity);
  int64_t b = data.size(0), t = data.size(1), c = data.size(2);
  Tensor rows = raw::contiguous(data);
  std::vector<int64_t> mask = keep.to_vector<int64_t>();
  Ragged r;
  r.data = zeros({capacity, c}, options_of(data));
  std::vector<int32_t> offsets{0}, index(size_t(capacity), 0);
  int32_t count = 0, overflow = 0;
  size_t row_bytes = size_t(c) * size_of(data.dtype());
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t j = 0; j < t; ++j) {
      if (mask[size_t(i * t + j)] == 0) continue;
      if (count == capacity) {
        overflow = 1;
        continue;
      }
      std::memcpy(static_cast<char*>(r.data.data_ptr()) + size_t(count) * row_bytes,
                  static_cast<const char*>(rows.data_ptr()) + size_t(i * t + j) * row_bytes, row_bytes);
      index[size_t(count++)] = int32_t(j);
    }
    offsets.push_back(count);
  }
  r.offsets = from_vector(offsets);
  r.token_index = from_vector(index);
  r.count = from_vector(std::vector<int32_t>{count});
  r.overflow = from_vector(std::vector<int32_t>{overflow});
  return r;
}

void check_structure(const Ragged& r) {
  auto part = [&](const Tensor& t, const char* name, int64_t size) {
    OCCAM_CHECK(t.defined() && t.dtype() == DType::i32 && t.rank() == 1 && (size < 0 || t.size(0) == size) &&
                    t.device() == r.data.device(),
                ErrorKind::shape, "ragged: {} is {}, expected i32 [{}] on {}", name, t.str(),
                size < 0 ? "b+1" : std::to_string(size), r.data.device().str());
  };
  OCCAM_CHECK(r.data.defined() && r.data.rank() == 2, ErrorKind::shape,
              "ragged: data is {}, expected [capacity, c]", r.data.str());
  part(r.offsets, "offsets", -1);
  OCCAM_CHECK(r.offsets.size(0) >= 1, ErrorKind::shape, "ragged: offsets are empty; an empty batch has one");
  part(r.token_index, "token_index", r.capacity());
  part(r.count, "count", 1);
  part(r.overflow, "overflow", 1);
}

void check_contents(const Ragged& r) {
  check_structure(r);
  std::vector<int64_t> offsets = r.offsets.to_vector<int64_t>(), index = r.token_index.to_vector<int64_t>();
  auto count = int64_t(r.count.item());
  OCCAM_CHECK(offsets.front() == 0 && offsets.back() == count && count <= r.capacity(), ErrorKind::shape,
              "ragged: offsets run from {} to {}, count is {}, capacity {}", offsets.front(), offsets.back(),
              count, r.capacity());
  for (size_t i = 0; i + 1 < offsets.size(); ++i)
    OCCAM_CHECK(offsets[i] <= offsets[i + 1], ErrorKind::shape,
                "ragged: offsets fall from {} to {} at sequence {}", offsets[i], offsets[i + 1], i);
  for (size_t i = 0; i + 1 < offsets.size(); ++i)
    for (int64_t row = offsets[i] + 1; row < offsets[i + 1]; ++row)
      OCCAM_CHECK(index[size_t(row - 1)] < index[size_t(row)], ErrorKind::shape,
                  "ragged: token indices of sequence {} do not ascend at row {}", i, row);
}

}  // namespace occam
