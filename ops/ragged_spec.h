#pragma once
// Samples of ragged forms: rows of sequences one after another, NaN in the rows of none. Their oracles are
// those of the padded form, called with each sequence alone.
#include <algorithm>
#include <limits>

#include "ops/concat/op.h"
#include "ops/ragged.h"
#include "ops/slice/op.h"
#include "ops/spec.h"

namespace occam::spec {

/// Sequences of these lengths in `n` rows. The last input of a ragged sample is offsets(), and `tokens` says
/// which of the others have rows on their first axis.
struct Packed {
  std::vector<int64_t> lengths;
  int64_t n;
  int64_t longest;  // at least that of `lengths`
  std::vector<size_t> tokens;

  int64_t used() const { return begin(lengths.size()); }
  int64_t begin(size_t sequence) const {
    int64_t at = 0;
    for (size_t i = 0; i < sequence; ++i) at += lengths[i];
    return at;
  }
  Sequences sequences(const Tensor& offsets) const { return {offsets, longest}; }

  Input offsets() const {
    std::vector<double> v;
    for (size_t i = 0; i <= lengths.size(); ++i) v.push_back(double(begin(i)));
    return values({int64_t(v.size())}, v, DType::i32);
  }
  /// `of_rows` [n, ...] with NaN where nothing may be read.
  Input rows(Input of_rows) const {
    const int64_t end = n == 0 ? 0 : used() * (of_rows.shape.numel() / n);
    of_rows.value = [plain = of_rows.value, end](int64_t i, Rng& rng) {
      const double v = plain(i, rng);
      return i < end ? v : std::numeric_limits<double>::quiet_NaN();
    };
    return of_rows;
  }

  Naive naive(Naive padded) const {
    return [=, *this](const Arrays& in) {
      Arrays whole;
      for (size_t i = 0; i <= lengths.size(); ++i) {  // the last, of no rows, for the shape
        const int64_t length = i < lengths.size() ? lengths[i] : 0;
        Arrays one(in.begin(), in.end() - 1);
        for (size_t k : tokens) one[k] = part(in[k], begin(i), length);
        const Arrays y = padded(one);
        whole.resize(y.size());
        for (size_t k = 0; k < y.size(); ++k) {
          whole[k].shape = y[k].shape.without(0).with(0, n);
          whole[k].v.insert(whole[k].v.end(), y[k].v.begin(), y[k].v.end());
        }
      }
      for (Array& y : whole) y.v.resize(size_t(y.shape.numel()), 0.0);
      return whole;
    };
  }
  /// There must be a row.
  Call alone(Call padded) const {
    return [=, *this](const std::vector<Tensor>& in) {
      std::vector<std::vector<Tensor>> parts;
      for (size_t i = 0; i < lengths.size(); ++i) {
        if (lengths[i] == 0) continue;
        std::vector<Tensor> one(in.begin(), in.end() - 1);
        for (size_t k : tokens) one[k] = as_image(slice(in[k], 0, begin(i), lengths[i]), {in.back()});
        const std::vector<Tensor> y = padded(one);
        parts.resize(y.size());
        for (size_t k = 0; k < y.size(); ++k) parts[k].push_back(as_rows(y[k], {in.back()}));
      }
      std::vector<Tensor> whole;
      for (std::vector<Tensor>& p : parts) {
        if (n > used()) p.push_back(zeros(p[0].shape().with(0, n - used()), options_of(p[0])));
        whole.push_back(concat(p, 0));
      }
      return whole;
    };
  }

 private:
  static Array part(const Array& rows, int64_t begin, int64_t length) {
    const int64_t row = rows.shape.without(0).numel();
    Array a;
    a.shape = {1, length};
    for (int64_t size : rows.shape.without(0)) a.shape.push_back(size);
    a.v.assign(rows.v.begin() + begin * row, rows.v.begin() + (begin + length) * row);
    return a;
  }
};

/// The cases that every ragged form is tried on.
inline std::vector<std::pair<std::string, Packed>> packed_cases(const std::vector<size_t>& tokens) {
  return {{"ragged", {{3, 0, 1, 5, 0}, 12, 7, tokens}},
          {"ragged-one-of-all", {{6}, 6, 6, tokens}},
          {"ragged-no-rows", {{0, 0}, 3, 4, tokens}},
          {"ragged-no-sequences", {{}, 2, 0, tokens}}};
}

}  // namespace occam::spec
