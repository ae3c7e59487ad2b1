#include "ops/grid_lines/op.h"

#include <algorithm>

#include "autograd/node.h"
#include "core/grad_mode.h"
#include "ops/grid_lines/kernel.h"
#include "ops/grouped_linear/op.h"
#include "ops/op.h"
#include "ops/view/op.h"

namespace occam {
namespace {

using kernels::LinesShape;

struct Attrs {
  PatchGrid grid;
  Along along = Along::both;

  LinesShape shape(int64_t images, int64_t h, int64_t q, bool shared) const {
    return {images, grid.prefix, grid.rows, grid.columns, h, q, sets(), along == Along::columns, shared};
  }
  int sets() const { return along == Along::both ? 2 : 1; }
  int64_t lines() const { return along == Along::columns ? grid.columns : grid.rows; }
  void check(const char* op) const {
    OCCAM_CHECK(grid.prefix >= 0 && grid.rows > 0 && grid.columns > 0, ErrorKind::shape,
                "{}: a grid of {} x {} patches after {} tokens", op, grid.rows, grid.columns, grid.prefix);
    OCCAM_CHECK(along != Along::both || grid.rows == grid.columns, ErrorKind::shape,
                "{}: rows and columns at once need a square grid, not {} x {}", op, grid.rows, grid.columns);
  }
};

template <class T>
void add_row(const T* from, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

template <class T>
void lines_cpu(const T* tokens, T* lines, const LinesShape& s, T scale) {
  const int64_t count = s.b * s.lines(), length = s.length();
#pragma omp parallel for if (count * length * s.step_width() > 32768)
  for (int64_t n = 0; n < count; ++n)
    for (int64_t step = 0; step < length; ++step)
      for (int set = 0; set < s.sets; ++set) {
        const int64_t token = n / s.lines() * s.tokens() + s.token(set, n % s.lines(), step);
        for (int64_t head = 0; head < s.h; ++head) {
          const T* from = tokens + token * s.token_width() + (s.shared ? head : head * s.sets + set) * s.q;
          T* to = lines + (((n * length + step) * s.sets + set) * s.h + head) * s.q;
          std::copy_n(from, s.q, to);
          for (int64_t i = 0; step < s.prefix && i < s.q; ++i) to[i] *= scale;
        }
      }
}

template <class T>
void tokens_cpu(const T* lines, T* tokens, const LinesShape& s, T scale) {
  const int64_t count = s.b * s.tokens();
#pragma omp parallel for if (count * s.token_width() > 32768)
  for (int64_t n = 0; n < count; ++n) {
    const int64_t token = n % s.tokens(), width = s.token_width();
    const bool before = token < s.prefix;
    T* to = tokens + n * width;
    std::fill_n(to, width, T(0));
    for (int set = 0; set < s.sets; ++set) {
      const int64_t row = before ? token : s.row(set, token - s.prefix);
      for (int64_t line = 0; line < (before ? s.lines() : 1); ++line)
        for (int64_t head = 0; head < s.h; ++head)
          add_row(lines +
                      (((n / s.tokens() * s.lines() + line) * s.length() + row) * s.sets + set) * s.h * s.q +
                      head * s.q,
                  to + (s.shared ? head : head * s.sets + set) * s.q, s.q);
    }
    for (int64_t i = 0; before && i < width; ++i) to[i] *= scale;
  }
}

/// lines [b n, length, ...] of tokens [b, t, ...].
Tensor lines_of(const Tensor& tokens, const Shape& shape, const LinesShape& s, double scale) {
  Tensor lines = empty(shape, options_of(tokens));
  if (lines.numel() == 0) return lines;
  if (tokens.is_cuda())
    dispatch_cuda(tokens.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::lines_of_tokens(tokens.data<T>(), lines.data<T>(), s, float(scale),
                                             current_stream(tokens.device()).handle));
    });
  else
    dispatch_float(tokens.dtype(),
                   [&]<class T>() { lines_cpu(tokens.data<T>(), lines.data<T>(), s, T(scale)); });
  return lines;
}
Tensor tokens_of(const Tensor& lines, const Shape& shape, const LinesShape& s, double scale) {
  Tensor tokens = empty(shape, options_of(lines));
  if (tokens.numel() == 0) return tokens;
  if (lines.is_cuda())
    dispatch_cuda(lines.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::tokens_of_lines(lines.data<T>(), tokens.data<T>(), s, float(scale),
                                             current_stream(lines.device()).handle));
    });
  else
    dispatch_float(lines.dtype(),
                   [&]<class T>() { tokens_cpu(lines.data<T>(), tokens.data<T>(), s, T(scale)); });
  return tokens;
}

struct GridLines {
  using Attrs = occam::Attrs;
  static constexpr OpInfo info{.name = "grid_lines", .contract = "x: b t c -> n l s c"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    a.check(info.name);
    const Shape& x = in[0].shape();
    OCCAM_CHECK(x[1] == a.grid.tokens(), ErrorKind::shape,
                "grid_lines: {} tokens, but a grid of {} x {} patches after {} tokens", x[1], a.grid.rows,
                a.grid.columns, a.grid.prefix);
    const LinesShape s = a.shape(x[0], 1, x[2], true);
    c.save({});
    return {lines_of(in[0], {x[0] * s.lines(), s.length(), s.sets, x[2]}, s, 1)};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    const Shape& x = c.shape_of(0);
    return {tokens_of(gy[0], x, c.attrs<Attrs>().shape(x[0], 1, x[2], true), 1)};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs& a) {
    const LinesShape s = a.shape(in[0][0], 1, in[0][2], true);
    const double lines = double(s.b * s.lines() * s.length()) * double(s.step_width());
    return {0, bytes_of(in, dtype) + lines * double(size_of(dtype))};
  }
};

struct GridTokens {
  using Attrs = occam::Attrs;
  static constexpr OpInfo info{.name = "grid_tokens", .contract = "y: n l s h q -> b t h s q"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    const LinesShape s = shape(in[0].shape(), a, info.name);
    c.save({});
    return {tokens_of(in[0], {s.b, s.tokens(), s.h, s.sets, s.q}, s, 1 / double(s.lines()))};
  }
  static LinesShape shape(const Shape& y, const Attrs& a, const char* op) {
    a.check(op);
    const LinesShape s = a.shape(y[0] / a.lines(), y[3], y[4], false);
    OCCAM_CHECK(y[0] % a.lines() == 0 && y[1] == s.length() && y[2] == s.sets, ErrorKind::shape,
                "{}: y is {}, but a grid of {} x {} patches after {} tokens has lines [{} b, {}, {}, h, q]",
                op, y.str(), a.grid.rows, a.grid.columns, a.grid.prefix, s.lines(), s.length(), s.sets);
    return s;
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    const Shape& y = c.shape_of(0);
    const LinesShape s = c.attrs<Attrs>().shape(gy[0].size(0), y[3], y[4], false);
    return {lines_of(gy[0], y, s, 1 / double(s.lines()))};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs& a) {
    const double tokens = double(in[0][0] / a.lines() * a.grid.tokens() * in[0][2] * in[0][3] * in[0][4]);
    return {double(in[0].numel()), bytes_of(in, dtype) + tokens * double(size_of(dtype))};
  }
};

/// [b,t,h,s q].
Tensor tokens_by_head(const Tensor& y, const PatchGrid& grid, Along along) {
  const Tensor tokens = grid_tokens(y, grid, along);
  return reshape(tokens, {tokens.size(0), tokens.size(1), tokens.size(2), tokens.size(3) * tokens.size(4)});
}

struct GridProject {
  using Attrs = occam::Attrs;
  static constexpr OpInfo info{.name = "grid_project",
                               .contract = "y: n l s h q, w: h o i, bias?: h o -> b t h o",
                               .bound = Bound::compute,
                               .hint = "i = s q"};
  static constexpr NonDifferentiable kNoGradient{
      "with gradients its two ops run apart: backward needs the tokens"};

  static Outs forward(Ctx&, In in, const Attrs& a) {
    const Tensor &y = in[0], &w = in[1], &bias = in[2];
    const LinesShape s = GridTokens::shape(y.shape(), a, info.name);
    OCCAM_CHECK(w.size(2) == y.size(2) * y.size(4), ErrorKind::shape,
                "grid_project: w {} for {} sets of {} states", w.shape().str(), y.size(2), y.size(4));
    if (y.is_cuda() && y.dtype() == DType::bf16 && y.numel() > 0) {
      Tensor heads = empty({s.b, s.tokens(), s.h, w.size(1)}, options_of(y));
      const kernels::GridProject p{.s = s,
                                   .outputs = w.size(1),
                                   .lines = y.data<bf16>(),
                                   .w = w.data<bf16>(),
                                   .bias = bias ? bias.data<bf16>() : nullptr,
                                   .heads = heads.data<bf16>()};
      OCCAM_ON_CUDA(if (kernels::grid_project_fits(p)) {
        kernels::grid_project(p, current_stream(y.device()).handle);
        return {heads};
      });
    }
    return {grouped_linear(tokens_by_head(y, a.grid, a.along), w, bias)};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs& a) {
    const double heads = double(in[0][0] / a.lines() * a.grid.tokens()) * double(in[1][0] * in[1][1]);
    return {2 * heads * double(in[1][2]), bytes_of(in, dtype) + heads * double(size_of(dtype))};
  }
};

}  // namespace

Tensor grid_lines(const Tensor& x, const PatchGrid& grid, Along along) {
  return apply<GridLines>({x}, {grid, along})[0];
}
Tensor grid_tokens(const Tensor& y, const PatchGrid& grid, Along along) {
  return apply<GridTokens>({y}, {grid, along})[0];
}
Tensor grid_project(const Tensor& y, const PatchGrid& grid, Along along, const Tensor& w,
                    const Tensor& bias) {
  const bool records = requires_grad(y) || requires_grad(w) || (bias && requires_grad(bias));
  if (records && grad_enabled()) return grouped_linear(tokens_by_head(y, grid, along), w, bias);
  return apply<GridProject>({y, w, bias}, {grid, along})[0];
}

OCCAM_REGISTER(grid_lines, GridLines, GridTokens, GridProject);

}  // namespace occam
