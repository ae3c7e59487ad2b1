#include "ops/diagonal_scan/op.h"

#include "autograd/node.h"
#include "core/grad_mode.h"
#include "ops/blas.h"
#include "ops/clear_unused/op.h"
#include "ops/diagonal_scan/kernel.h"
#include "ops/grouped_linear/op.h"
#include "ops/op.h"
#include "ops/ragged.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

using kernels::Cell;
using kernels::DiagonalScanShape;

Cell kernel_cell(GatedCell cell) { return cell == GatedCell::min_gru ? Cell::min_gru : Cell::min_lstm; }

/// Points the parts of `a` into gates [b,t,h,2,parts w].
template <class Args, class T>
void split(T* (&part)[3], Args& a, T* gates) {
  const int parts = kernels::parts_of(a.cell);
  for (int i = 0; i < parts; ++i) part[i] = gates + i * a.s.w;
  a.stride = parts * a.s.w;
}

Tensor workspace(int64_t floats, const Tensor& like) { return empty({floats}, {DType::f32, like.device()}); }

template <class T>
void scan(const kernels::DiagonalScan<T>& a, const Tensor& like) {
  if (a.s.chains() * a.s.t == 0) return;
  if (like.is_cpu()) {
    if constexpr (!std::is_same_v<T, bf16>) kernels::diagonal_scan_fwd_cpu(a);
  } else if constexpr (!std::is_same_v<T, double>) {
    OCCAM_ON_CUDA(Tensor room = workspace(kernels::diagonal_scan_workspace(a.s), like);
                  kernels::diagonal_scan_fwd(a, room.data<float>(), current_stream(like.device()).handle));
  }
}
template <class T>
void scan_back(const kernels::DiagonalScanBackward<T>& a, const Tensor& like) {
  if (a.s.chains() * a.s.t == 0) return;
  if (like.is_cpu()) {
    if constexpr (!std::is_same_v<T, bf16>) kernels::diagonal_scan_bwd_cpu(a);
  } else if constexpr (!std::is_same_v<T, double>) {
    OCCAM_ON_CUDA(Tensor room = workspace(kernels::diagonal_scan_workspace(a.s), like);
                  kernels::diagonal_scan_bwd(a, room.data<float>(), current_stream(like.device()).handle));
  }
}
template <class F>
void dispatch(const Tensor& like, F&& f) {
  if (like.is_cuda())
    dispatch_cuda(like.dtype(), f);
  else
    dispatch_float(like.dtype(), f);
}

struct DiagonalScanOp {
  struct Attrs {
    int64_t longest;
  };
  static constexpr OpInfo info{.name = "diagonal_scan",
                               .contract = "a: b t h 2 w, b: b t h 2 w, offsets?: s -> b t h 2 w"};

  static DiagonalScanShape sizes(const Shape& a, const Tensor& offsets, int64_t longest) {
    return {rows_of(a, offsets, longest), a[2], a[4]};
  }
  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &a = in[0], &b = in[1], &offsets = in[2];
    const DiagonalScanShape s = sizes(a.shape(), offsets, attrs.longest);
    Tensor y = empty_like(a);
    dispatch(a, [&]<class T>() {
      scan<T>({Cell::plain, s, {a.data<T>(), b.data<T>()}, a.size(4), nullptr, y.data<T>()}, a);
    });
    if (offsets) clear_unused_rows(y, offsets, s.rows());
    c.save({a, y, offsets});
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor a = c.saved(0), y = c.saved(1), offsets = c.saved(2), ga = empty_like(a), gb = empty_like(a);
    const DiagonalScanShape s = sizes(a.shape(), offsets, c.attrs<Attrs>().longest);
    dispatch(a, [&]<class T>() {  // the gradients do not read b
      scan_back<T>({Cell::plain,
                    s,
                    {a.data<T>(), a.data<T>()},
                    a.size(4),
                    nullptr,
                    y.data<T>(),
                    gy[0].data<T>(),
                    {ga.data<T>(), gb.data<T>()}},
                   a);
    });
    for (const Tensor& g : {ga, gb})
      if (offsets) clear_unused_rows(g, offsets, s.rows());
    return {c.needs(0) ? ga : Tensor(), c.needs(1) ? gb : Tensor(), Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double states = double(in[0].numel());
    return {2 * states, 3 * states * double(size_of(dtype))};
  }
};

struct GatedScanOp {
  struct Attrs {
    GatedCell cell;
    int64_t longest;
  };
  static constexpr OpInfo info{.name = "gated_scan",
                               .contract = "gates: b t h 2 g, offsets?: s -> b t h o",
                               .hint = "g = k w: k gates, each as wide as the state"};

  static DiagonalScanShape sizes(const Shape& gates, const Tensor& offsets, const Attrs& attrs) {
    const int64_t k = gates_of(attrs.cell);
    OCCAM_CHECK(gates[4] % k == 0, ErrorKind::shape,
                "gated_scan: gates {} do not divide into {} of one width", gates.str(), k);
    return {rows_of(gates, offsets, attrs.longest), gates[2], gates[4] / k};
  }
  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &gates = in[0], &offsets = in[1];
    const DiagonalScanShape s = sizes(gates.shape(), offsets, attrs);
    Tensor y = empty({gates.size(0), gates.size(1), s.h, 2 * s.w}, options_of(gates));
    dispatch(gates, [&]<class T>() {
      kernels::DiagonalScan<T> a{.cell = kernel_cell(attrs.cell), .s = s, .y = y.data<T>()};
      split(a.part, a, const_cast<const T*>(gates.data<T>()));
      scan(a, gates);
    });
    if (offsets) clear_unused_rows(y, offsets, s.rows());
    c.save({gates, y, offsets});
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor gates = c.saved(0), y = c.saved(1), offsets = c.saved(2), g = empty_like(gates);
    const DiagonalScanShape s = sizes(gates.shape(), offsets, c.attrs<Attrs>());
    dispatch(gates, [&]<class T>() {
      kernels::DiagonalScanBackward<T> a{
          .cell = kernel_cell(c.attrs<Attrs>().cell), .s = s, .y = y.data<T>(), .gy = gy[0].data<T>()};
      split(a.part, a, const_cast<const T*>(gates.data<T>()));
      split(a.g_part, a, g.data<T>());
      scan_back(a, gates);
    });
    if (offsets) clear_unused_rows(g, offsets, s.rows());
    return {g, Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs& attrs) {
    const double k = double(gates_of(attrs.cell)), states = double(in[0].numel()) / k;
    return {12 * double(in[0].numel()), (k + 1) * states * double(size_of(dtype))};
  }
};

struct HeadGatedScanOp {
  using Attrs = GatedScanOp::Attrs;
  static constexpr OpInfo info{.name = "head_gated_scan",
                               .contract = "x: b t h i, w: 2 h g i, bias: 2 h g, offsets?: s -> b t h o",
                               .bound = Bound::compute,
                               .hint = "g = k w: k gates, each as wide as the state"};

  static DiagonalScanShape sizes(const Shape& x, const Shape& w, const Tensor& offsets, const Attrs& attrs) {
    const int64_t k = gates_of(attrs.cell);
    OCCAM_CHECK(
        w[2] % k == 0 && x[3] > 0 && w[2] > 0, ErrorKind::shape,
        "head_gated_scan: w {} has {} gate rows, which do not divide into {} of one width\n  contract  {}",
        w.str(), w[2], k, info.contract);
    return {rows_of(x, offsets, attrs.longest), x[2], w[2] / k};
  }
  /// w x of both directions, [b,t,h,2,g].
  static Tensor products(const Tensor& x, const Tensor& w) {
    const int64_t b = x.size(0), t = x.size(1), h = x.size(2), i = x.size(3), g = w.size(2);
    Tensor gates = empty({b, t, h, 2, g}, options_of(x));
    for (int64_t r = 0; r < 2 && gates.numel() > 0; ++r)
      matrix_product({.device = x.device(),
                      .dtype_ab = x.dtype(),
                      .dtype_d = x.dtype(),
                      .trans_b = true,
                      .m = b * t,
                      .n = g,
                      .k = i,
                      .lda = h * i,
                      .ldd = h * 2 * g,
                      .batch = h,
                      .stride_a = i,
                      .stride_b = g * i,
                      .stride_d = 2 * g},
                     x.data_ptr(), raw::select(w, 0, r).data_ptr(), raw::select(gates, 3, r).data_ptr());
    return gates;
  }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &x = in[0], &w = in[1], &bias = in[2], &offsets = in[3];
    const DiagonalScanShape s = sizes(x.shape(), w.shape(), offsets, attrs);
    Tensor y = empty({x.size(0), x.size(1), s.h, 2 * s.w}, options_of(x));
    c.save({x, w, bias, y, offsets});
    if (y.numel() == 0) return {y};
    if (x.is_cuda() && x.dtype() == DType::bf16 && s.w == 64 && x.size(3) == 64) {
      kernels::HeadScan a{.cell = kernel_cell(attrs.cell),
                          .s = s,
                          .x = x.data<bf16>(),
                          .weight = w.data<bf16>(),
                          .bias = bias.data<bf16>(),
                          .y = y.data<bf16>()};
      OCCAM_ON_CUDA(if (kernels::head_scan_fits(a)) {
        Tensor room = workspace(kernels::head_scan_workspace(a), x);
        kernels::head_scan_fwd(a, room.data<float>(), current_stream(x.device()).handle);
        if (offsets) clear_unused_rows(y, offsets, s.rows());
        return {y};
      });
    }
    Tensor gates = products(x, w);
    dispatch(x, [&]<class T>() {
      kernels::DiagonalScan<T> a{
          .cell = kernel_cell(attrs.cell), .s = s, .bias = bias.data<T>(), .y = y.data<T>()};
      split(a.part, a, const_cast<const T*>(gates.data<T>()));
      scan(a, x);
    });
    if (offsets) clear_unused_rows(y, offsets, s.rows());
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), w = c.saved(1), bias = c.saved(2), y = c.saved(3), offsets = c.saved(4);
    const DiagonalScanShape s = sizes(x.shape(), w.shape(), offsets, c.attrs<Attrs>());
    const int64_t rows = s.rows(), i = x.size(3), g = w.size(2);
    Grads grads(4);
    auto parameter_dtype = [&](size_t n) { return c.grad_dtype_of(n); };
    if (x.is_cuda() && x.dtype() == DType::bf16 && s.w == 64 && i == 64 && x.numel() > 0) {
      for (size_t n = 0; n < 3; ++n)
        grads[n] = empty(c.shape_of(n), {n == 0 ? x.dtype() : parameter_dtype(n), x.device()});
      kernels::HeadScanBackward a{.cell = kernel_cell(c.attrs<Attrs>().cell),
                                  .s = s,
                                  .x = x.data<bf16>(),
                                  .weight = w.data<bf16>(),
                                  .bias = bias.data<bf16>(),
                                  .y = y.data<bf16>(),
                                  .gy = gy[0].data<bf16>(),
                                  .gx = grads[0].data<bf16>(),
                                  .g_weight = grads[1].data_ptr(),
                                  .g_bias = grads[2].data_ptr(),
                                  .f32_weight = grads[1].dtype() == DType::f32,
                                  .f32_bias = grads[2].dtype() == DType::f32};
      OCCAM_ON_CUDA(if (kernels::head_scan_fits(a)) {
        Tensor room = workspace(kernels::head_scan_workspace(a), x);
        kernels::head_scan_bwd(a, room.data<float>(), current_stream(x.device()).handle);
        if (offsets) clear_unused_rows(grads[0], offsets, rows);
        for (size_t n = 0; n < 3; ++n)
          if (!c.needs(n)) grads[n] = Tensor();
        return grads;
      });
    }
    Tensor gates = products(x, w);  // becomes its own gradient
    dispatch(x, [&]<class T>() {
      kernels::DiagonalScanBackward<T> a{.cell = kernel_cell(c.attrs<Attrs>().cell),
                                         .s = s,
                                         .bias = bias.data<T>(),
                                         .y = y.data<T>(),
                                         .gy = gy[0].data<T>()};
      split(a.part, a, const_cast<const T*>(gates.data<T>()));
      split(a.g_part, a, gates.data<T>());
      scan_back(a, x);
    });
    if (offsets) {
      clear_unused_rows(gates, offsets, rows);
      if (c.needs(1)) {  // a product over all rows: what is unused there may be anything, 0 times it too
        x = raw::clone(x);
        clear_unused_rows(x, offsets, rows);
      }
    }
    if (c.needs(0)) {
      grads[0] = empty_like(x);
      for (int64_t r = 0; r < 2 && x.numel() > 0; ++r)
        matrix_product({.device = x.device(),
                        .dtype_ab = x.dtype(),
                        .dtype_d = x.dtype(),
                        .m = rows,
                        .n = i,
                        .k = g,
                        .lda = s.h * 2 * g,
                        .ldd = s.h * i,
                        .batch = s.h,
                        .stride_a = 2 * g,
                        .stride_b = g * i,
                        .stride_d = i,
                        .beta = r == 0 ? 0.0 : 1.0},
                       raw::select(gates, 3, r).data_ptr(), raw::select(w, 0, r).data_ptr(),
                       grads[0].data_ptr());
    }
    if (c.needs(1)) {
      grads[1] = empty(w.shape(), {parameter_dtype(1), x.device()});
      if (rows == 0) grads[1].zero_();
      for (int64_t r = 0; r < 2 && rows > 0; ++r)
        matrix_product({.device = x.device(),
                        .dtype_ab = x.dtype(),
                        .dtype_d = grads[1].dtype(),
                        .trans_a = true,
                        .m = g,
                        .n = i,
                        .k = rows,
                        .lda = s.h * 2 * g,
                        .ldb = s.h * i,
                        .batch = s.h,
                        .stride_a = 2 * g,
                        .stride_b = i,
                        .stride_d = g * i},
                       raw::select(gates, 3, r).data_ptr(), x.data_ptr(),
                       raw::select(grads[1], 0, r).data_ptr());
    }
    if (c.needs(2)) {
      Tensor by_head =
          raw::sum_to_shape(raw::reshape(gates, {rows, s.h, 2, g}), {1, s.h, 2, g}, parameter_dtype(2));
      grads[2] = raw::contiguous(raw::transpose(raw::reshape(by_head, {s.h, 2, g}), 0, 1));
    }
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs& attrs) {
    const double rows = double(in[0][0]) * double(in[0][1]);
    const double gates = rows * 2 * double(in[1][1]) * double(in[1][2]);
    return {2 * rows * double(in[1].numel()) + 12 * gates,
            bytes_of(in, dtype) + gates / double(gates_of(attrs.cell)) * double(size_of(dtype))};
  }
};

struct HeadGatedScanProject {
  using Attrs = GatedScanOp::Attrs;
  static constexpr OpInfo info{
      .name = "head_gated_scan_project",
      .contract =
          "x: b t h i, w: 2 h g i, bias: 2 h g, project: h o s, project_bias?: h o, offsets?: e -> b t h o",
      .bound = Bound::compute,
      .hint = "s: the states of both directions"};
  static constexpr NonDifferentiable kNoGradient{
      "with gradients its two ops run apart: backward needs the states"};

  static Outs forward(Ctx&, In in, const Attrs& attrs) {
    const Tensor &x = in[0], &w = in[1], &bias = in[2], &project = in[3], &project_bias = in[4],
                 &offsets = in[5];
    const DiagonalScanShape s = HeadGatedScanOp::sizes(x.shape(), w.shape(), offsets, attrs);
    if (x.is_cuda() && x.dtype() == DType::bf16 && s.w == 64 && x.size(3) == 64 && project.size(1) == 64 &&
        project.size(2) == 128 && x.numel() > 0) {
      Tensor y = empty(x.shape(), options_of(x));
      kernels::HeadScan a{.cell = kernel_cell(attrs.cell),
                          .s = s,
                          .x = x.data<bf16>(),
                          .weight = w.data<bf16>(),
                          .bias = bias.data<bf16>(),
                          .project = project.data<bf16>(),
                          .project_bias = project_bias ? project_bias.data<bf16>() : nullptr,
                          .y = y.data<bf16>()};
      OCCAM_ON_CUDA(if (kernels::head_scan_fits(a)) {
        Tensor room = workspace(kernels::head_scan_workspace(a), x);
        kernels::head_scan_fwd(a, room.data<float>(), current_stream(x.device()).handle);
        if (offsets) clear_unused_rows(y, offsets, s.rows());
        return {y};
      });
    }
    Tensor y = grouped_linear(apply<HeadGatedScanOp>({x, w, bias, offsets}, attrs)[0], project, project_bias);
    if (offsets) clear_unused_rows(y, offsets, s.rows());
    return {y};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs& attrs) {
    const Cost scan = HeadGatedScanOp::cost(in, dtype, attrs);
    const double rows = double(in[0][0]) * double(in[0][1]), out = double(in[3][0]) * double(in[3][1]);
    return {scan.flops + 2 * rows * double(in[3].numel()),
            bytes_of(in, dtype) + rows * out * double(size_of(dtype))};
  }
};

}  // namespace

int64_t gates_of(GatedCell cell) { return kernels::parts_of(kernel_cell(cell)); }

Tensor diagonal_scan(const Tensor& a, const Tensor& b, const Sequences& rows) {
  check_sequences("diagonal_scan", rows, a);
  return as_rows(
      apply<DiagonalScanOp>({as_image(a, rows), as_image(b, rows), rows.offsets}, {rows.longest})[0], rows);
}
Tensor gated_scan(const Tensor& gates, GatedCell cell, const Sequences& rows) {
  check_sequences("gated_scan", rows, gates);
  return as_rows(apply<GatedScanOp>({as_image(gates, rows), rows.offsets}, {cell, rows.longest})[0], rows);
}
Tensor head_gated_scan(const Tensor& x, const Tensor& w, const Tensor& bias, GatedCell cell,
                       const Sequences& rows) {
  check_sequences("head_gated_scan", rows, x);
  return as_rows(apply<HeadGatedScanOp>({as_image(x, rows), w, bias, rows.offsets}, {cell, rows.longest})[0],
                 rows);
}

Tensor head_gated_scan_project(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& project,
                               const Tensor& project_bias, GatedCell cell, const Sequences& rows) {
  bool records = false;
  for (const Tensor* t : {&x, &w, &bias, &project, &project_bias})
    records = records || (t->defined() && requires_grad(*t));
  if (records && grad_enabled())
    return clear_unused(grouped_linear(head_gated_scan(x, w, bias, cell, rows), project, project_bias), rows);
  check_sequences("head_gated_scan_project", rows, x);
  return as_rows(
      apply<HeadGatedScanProject>({as_image(x, rows), w, bias, project, project_bias, rows.offsets},
                                  {cell, rows.longest})[0],
      rows);
}

OCCAM_REGISTER(diagonal_scan, DiagonalScanOp, GatedScanOp, HeadGatedScanOp, HeadGatedScanProject);

}  // namespace occam
