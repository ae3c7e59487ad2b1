#include "core/ragged.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/stream.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

void check_sequences(const char* op, const Sequences& s, const Tensor& x) {
  if (!s) return;
  OCCAM_CHECK(s.offsets.dtype() == DType::i32 && s.offsets.rank() == 1 && s.offsets.numel() > 0 &&
                  s.offsets.is_contiguous() && x.rank() > 0 && s.offsets.device() == x.device(),
              ErrorKind::shape, "{}: offsets are {}, expected contiguous i32 [b+1] on {}", op,
              s.offsets.str(), x.device().str());
  OCCAM_CHECK(s.longest >= 0 && s.longest <= INT32_MAX, ErrorKind::shape, "{}: no sequence can have {} rows",
              op, s.longest);
  if (x.is_cuda()) return;
  const std::vector<int64_t> offsets = s.offsets.to_vector<int64_t>();
  OCCAM_CHECK(offsets.front() == 0 && offsets.back() <= x.size(0), ErrorKind::shape,
              "{}: offsets run from {} to {}, there are {} rows", op, offsets.front(), offsets.back(),
              x.size(0));
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t length = offsets[i + 1] - offsets[i];
    OCCAM_CHECK(length >= 0 && length <= s.longest, ErrorKind::shape,
                "{}: sequence {} has {} rows, the longest {}", op, i, length, s.longest);
  }
}

SequenceRows sequence_rows(const Tensor& offsets, int64_t longest, int64_t n) {
  return {offsets.size(0) - 1, longest, offsets.data<int32_t>(), n};
}

void clear_unused_rows(const Tensor& x, const Tensor& offsets, int64_t n) {
  OCCAM_ASSERT(x.is_contiguous() && (n == 0 || x.numel() % n == 0));
  if (x.numel() == 0) return;
  const int64_t row_bytes = x.numel() / n * int64_t(size_of(x.dtype()));
  if (x.is_cuda()) {
    OCCAM_ON_CUDA(cuda::zero_rows_from(x.data_ptr(), row_bytes, n,
                                       offsets.data<int32_t>() + offsets.size(0) - 1,
                                       current_stream(x.device()).handle));
    return;
  }
  const int64_t first = offsets.data<int32_t>()[offsets.size(0) - 1];
  std::memset(static_cast<char*>(x.data_ptr()) + first * row_bytes, 0, size_t((n - first) * row_bytes));
}

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
    r.longest = std::max<int64_t>(r.longest, count - offsets.back());
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
  OCCAM_CHECK(r.longest >= 0, ErrorKind::shape, "ragged: longest is {}", r.longest);
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
    OCCAM_CHECK(offsets[i + 1] - offsets[i] <= r.longest, ErrorKind::shape,
                "ragged: sequence {} has {} rows, the longest {}", i, offsets[i + 1] - offsets[i], r.longest);
  for (size_t i = 0; i + 1 < offsets.size(); ++i)
    for (int64_t row = offsets[i] + 1; row < offsets[i + 1]; ++row)
      OCCAM_CHECK(index[size_t(row - 1)] < index[size_t(row)], ErrorKind::shape,
                  "ragged: token indices of sequence {} do not ascend at row {}", i, row);
}

}  // namespace occam
