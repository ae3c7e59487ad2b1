#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

/// `sets` of lines: along rows or (first_by_column) columns, then of both along columns. A token has
/// [h,sets,q] numbers, or where it is shared by the sets [h,q]; a step of a line has [sets,h,q].
struct LinesShape {
  int64_t b = 0, prefix = 0, rows = 0, columns = 0, h = 0, q = 0;
  int sets = 1;
  bool first_by_column = false, shared = false;

  OCCAM_HD bool by_column(int set) const { return first_by_column || set == 1; }
  OCCAM_HD int64_t lines() const { return first_by_column ? columns : rows; }
  OCCAM_HD int64_t length() const { return prefix + (first_by_column ? rows : columns); }
  OCCAM_HD int64_t tokens() const { return prefix + rows * columns; }
  OCCAM_HD int64_t step_width() const { return sets * h * q; }
  OCCAM_HD int64_t token_width() const { return shared ? h * q : sets * h * q; }
  /// Token at a step of a line.
  OCCAM_HD int64_t token(int set, int64_t line, int64_t step) const {
    if (step < prefix) return step;
    return by_column(set) ? prefix + (step - prefix) * columns + line : line * columns + step;
  }
  /// The row, line * length() + step of an image, where a patch is.
  OCCAM_HD int64_t row(int set, int64_t patch) const {
    const int64_t r = patch / columns, c = patch % columns;
    return by_column(set) ? c * length() + prefix + r : r * length() + prefix + c;
  }
};

/// lines [b n, length, sets, h, q] from tokens [b, t, token_width]; prefix tokens times `scale`.
template <class T>
void lines_of_tokens(const T* tokens, T* lines, const LinesShape& s, float scale, void* stream);
/// tokens from lines: sums over the sets where they are shared; of a prefix token over the lines, times
/// `scale`.
template <class T>
void tokens_of_lines(const T* lines, T* tokens, const LinesShape& s, float scale, void* stream);

/// heads [b, t, h, outputs] = the tokens of lines [b n, length, 2, h, q] times w [h, outputs, 2 q], and bias
/// [h, outputs] or null: bf16, both sets of 128 states, outputs a multiple of 64.
struct GridProject {
  LinesShape s;
  int64_t outputs = 0;
  const bf16 *lines = nullptr, *w = nullptr, *bias = nullptr;
  bf16* heads = nullptr;
};
bool grid_project_fits(const GridProject& a);
void grid_project(const GridProject& a, void* stream);

}  // namespace occam::kernels
