#pragma once
#include "core/tensor.h"

namespace occam {

/// Tokens of an image: `prefix` others, then the patches of a grid row by row.
struct PatchGrid {
  int64_t prefix = 0, rows = 0, columns = 0;
  int64_t tokens() const { return prefix + rows * columns; }
};

/// Which lines of the grid; both are sets side by side, of a square grid.
enum class Along : uint8_t { rows, columns, both };

/// Every line of every image as a sequence of its own that the prefix tokens begin: x [b,t,c] ->
/// [b n, prefix + l, s, c] for n lines of l patches in s sets (2 of Along::both: rows, then columns). Throws
/// Error{shape} when t is not the grid's, and for both sets of a grid that is not square.
Tensor grid_lines(const Tensor& x, const PatchGrid& grid, Along along);

/// The way back: y [b n, prefix + l, s, h, q] -> [b,t,h,s,q]. A prefix token becomes the mean over the lines
/// that it began.
Tensor grid_tokens(const Tensor& y, const PatchGrid& grid, Along along);

/// grid_tokens, its sets side by side, and a product for each head (grouped_linear): w [h, o, s q], bias
/// [h, o] or absent -> [b,t,h,o]. Without gradients in one pass where a GPU has it.
Tensor grid_project(const Tensor& y, const PatchGrid& grid, Along along, const Tensor& w,
                    const Tensor& bias = {});

}  // namespace occam
