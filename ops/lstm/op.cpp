#include "ops/lstm/op.h"

#include "ops/blas.h"
#include "ops/lstm/kernel.h"
#include "ops/op.h"
#include "ops/ragged.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

using kernels::Cell;

struct Weights {
  Tensor w_ih, w_hh, b_ih, b_hh;
};

/// The kernels know four rows a unit: an LSTM's gates, or what kernels::Cell says of a GRU.
template <Cell kCell>
struct Recurrence {
  struct Attrs {
    int64_t longest;
  };
  static constexpr bool kLstm = kCell == Cell::lstm;
  static constexpr int64_t kGates = kLstm ? 4 : 3;
  static constexpr OpInfo info{
      .name = kLstm ? "lstm" : "gru",
      .contract =
          "x: b t h i, w_ih: 2 h g i, w_hh: 2 h g w, b_ih: 2 h g, b_hh: 2 h g, offsets?: s -> b t h o",
      .bound = Bound::compute,
      .hint = kLstm ? "g = 4w: the gates i, f, g, o" : "g = 3w: the gates r, z, n"};

  static kernels::LstmShape sizes(const Shape& x, const Shape& w_hh, const Tensor& offsets,
                                  const Attrs& attrs) {
    return {rows_of(x, offsets, attrs.longest), x[2], w_hh[3], kCell};
  }
  static bool has_steps(const kernels::LstmShape& s) { return s.rows() > 0 && s.b > 0 && s.t > 0 && s.h > 0; }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &x = in[0], &w_hh = in[2], &offsets = in[5];
    const kernels::LstmShape s = sizes(x.shape(), w_hh.shape(), offsets, attrs);
    OCCAM_CHECK(w_hh.size(2) == kGates * s.w && x.size(3) > 0 && s.w > 0, ErrorKind::shape,
                "{}: w_hh {} has {} gate rows for states of width {}; {} x {} are needed\n  contract  {}",
                info.name, w_hh.shape().str(), w_hh.size(2), s.w, kGates, s.w, info.contract);
    Tensor y = empty({x.size(0), x.size(1), s.h, 2 * s.w}, options_of(x)),
           cells = kLstm && c.recording() ? empty_like(y) : Tensor();
    if (has_steps(s) && !persistent(s, in, y, cells)) {
      const Weights p = packed(in[1], in[2], in[3], in[4]);
      if (x.is_cuda()) {
        Tensor z = input_part(x, p.w_ih);
        dispatch_cuda(x.dtype(), [&]<class T>() {
          OCCAM_ON_CUDA(
              kernels::lstm_fwd<T>({s, p.w_hh.data<T>(), p.b_ih.data<T>(), p.b_hh.data<T>(), z.data<float>(),
                                    y.data<T>(), cells ? cells.data<T>() : nullptr},
                                   current_stream(x.device()).handle));
        });
      } else {
        dispatch_float(x.dtype(), [&]<class T>() {
          kernels::lstm_fwd_cpu<T>({s, x.size(3), x.data<T>(), p.w_ih.data<T>(), p.w_hh.data<T>(),
                                    p.b_ih.data<T>(), p.b_hh.data<T>(), y.data<T>(),
                                    cells ? cells.data<T>() : nullptr});
        });
      }
    }
    if (offsets) clear_unused_rows(y, offsets, s.rows());
    c.save({x, in[1], in[2], in[3], in[4], y, cells, offsets});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0);
    const Tensor y = c.saved(5), cells = kLstm ? c.saved(6) : y, offsets = c.saved(7);
    const kernels::LstmShape s = sizes(x.shape(), c.saved(2).shape(), offsets, c.attrs<Attrs>());
    if (x.is_cuda() && x.dtype() == DType::bf16 && has_steps(s)) {
      kernels::LstmFusedBackward a{.s = s,
                                   .x = x.data<bf16>(),
                                   .w_ih = c.saved(1).data<bf16>(),
                                   .w_hh = c.saved(2).data<bf16>(),
                                   .b_ih = c.saved(3).data<bf16>(),
                                   .b_hh = c.saved(4).data<bf16>(),
                                   .y = y.data<bf16>(),
                                   .cells = cells.data<bf16>(),
                                   .gy = gy[0].data<bf16>()};
      OCCAM_ON_CUDA(a.images = kernels::lstm_bwd_images(a, x.size(3)));
      if (a.images > 0) return backward_fused(c, x, a);
    }
    const Weights p = packed(c.saved(1), c.saved(2), c.saved(3), c.saved(4));
    const Tensor &w_ih = p.w_ih, &w_hh = p.w_hh, &b_ih = p.b_ih, &b_hh = p.b_hh;
    // Products over all rows: those of no sequence have to be 0 in both factors.
    const auto make = offsets ? zeros : empty;
    Tensor g_gates = make({2, s.h, s.rows(), 4 * s.w}, options_of(x)),
           before = make({2, s.h, s.rows(), s.w}, options_of(x));
    if (offsets && c.needs(1)) {
      x = raw::clone(x);
      clear_unused_rows(x, offsets, s.rows());
    }
    if (has_steps(s)) {
      states_before(s, y, before);
      Tensor z = input_part(x, w_ih);
      matrix_product({.device = x.device(),
                      .dtype_ab = x.dtype(),
                      .dtype_d = z.dtype(),
                      .trans_b = true,
                      .m = s.rows(),
                      .n = 4 * s.w,
                      .k = s.w,
                      .batch = 2 * s.h,
                      .stride_a = s.rows() * s.w,
                      .stride_b = 4 * s.w * s.w,
                      .stride_d = s.rows() * 4 * s.w,
                      .beta = 1},
                     before.data_ptr(), w_hh.data_ptr(), z.data_ptr());
      if (x.is_cuda()) {
        dispatch_cuda(x.dtype(), [&]<class T>() {
          OCCAM_ON_CUDA(
              kernels::lstm_bwd<T>({s, w_hh.data<T>(), b_ih.data<T>(), b_hh.data<T>(), z.data<float>(),
                                    cells.data<T>(), gy[0].data<T>(), g_gates.data<T>()},
                                   current_stream(x.device()).handle));
        });
      } else {
        dispatch_float(x.dtype(), [&]<class T>() {
          kernels::lstm_bwd_cpu<T>({s, w_hh.data<T>(), b_ih.data<T>(), b_hh.data<T>(), z.data<T>(),
                                    cells.data<T>(), gy[0].data<T>(), g_gates.data<T>()});
        });
      }
    }
    Grads grads(6);
    if (c.needs(0)) {  // gx = sum over directions of g_gates w_ih
      grads[0] = empty(x.shape(), options_of(x));
      for (int64_t direction = 0; direction < 2; ++direction)
        matrix_product({.device = x.device(),
                        .dtype_ab = x.dtype(),
                        .dtype_d = x.dtype(),
                        .m = s.rows(),
                        .n = x.size(3),
                        .k = 4 * s.w,
                        .ldd = s.h * x.size(3),
                        .batch = s.h,
                        .stride_a = s.rows() * 4 * s.w,
                        .stride_b = 4 * s.w * x.size(3),
                        .stride_d = x.size(3),
                        .beta = direction == 0 ? 0.0 : 1.0},
                       raw::select(g_gates, 0, direction).data_ptr(),
                       raw::select(w_ih, 0, direction).data_ptr(), grads[0].data_ptr());
    }
    // g_gates^T x by direction, g_gates^T h_{t-1} for all (direction, head) at once.
    if (c.needs(1)) {
      grads[1] = weight_grad(c, 1, w_ih.shape(), g_gates);
      for (int64_t direction = 0; direction < 2 && s.rows() > 0; ++direction)
        matrix_product({.device = x.device(),
                        .dtype_ab = x.dtype(),
                        .dtype_d = grads[1].dtype(),
                        .trans_a = true,
                        .m = 4 * s.w,
                        .n = x.size(3),
                        .k = s.rows(),
                        .ldb = s.h * x.size(3),
                        .batch = s.h,
                        .stride_a = s.rows() * 4 * s.w,
                        .stride_b = x.size(3),
                        .stride_d = 4 * s.w * x.size(3)},
                       raw::select(g_gates, 0, direction).data_ptr(), x.data_ptr(),
                       raw::select(grads[1], 0, direction).data_ptr());
    }
    if (c.needs(2)) {
      grads[2] = weight_grad(c, 2, w_hh.shape(), g_gates);
      if (s.rows() > 0)
        matrix_product({.device = x.device(),
                        .dtype_ab = x.dtype(),
                        .dtype_d = grads[2].dtype(),
                        .trans_a = true,
                        .m = 4 * s.w,
                        .n = s.w,
                        .k = s.rows(),
                        .batch = 2 * s.h,
                        .stride_a = s.rows() * 4 * s.w,
                        .stride_b = s.rows() * s.w,
                        .stride_d = 4 * s.w * s.w},
                       g_gates.data_ptr(), before.data_ptr(), grads[2].data_ptr());
    }
    for (size_t i : {3, 4})
      if (c.needs(i)) {
        DType dtype = c.grad_dtype_of(i);
        grads[i] = raw::reshape(raw::sum_to_shape(g_gates, {2, s.h, 1, 4 * s.w}, dtype), b_ih.shape());
      }
    for (size_t i = 1; i < 5; ++i)
      if (grads[i]) grads[i] = unpacked(grads[i], i);
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    double rows = double(in[0][0]) * double(in[0][1]), weights = double(in[1].numel() + in[2].numel());
    double state = rows * double(in[0][2]) * double(in[2][3]);
    return {2 * rows * weights + 60 * state, bytes_of(in, dtype) + 2 * state * double(size_of(dtype))};
  }

 private:
  /// With four rows a unit: of n's gate a GRU's part of x and part of h have rows of their own.
  static Weights packed(const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh) {
    if (kLstm) return {w_ih, w_hh, b_ih, b_hh};
    auto pack = [w = w_hh.size(3)](const Tensor& from, int64_t n_row) {
      Tensor to = zeros(from.shape().with(2, 4 * w), options_of(from));
      raw::slice(to, 2, 0, 2 * w).copy_(raw::slice(from, 2, 0, 2 * w));
      raw::slice(to, 2, n_row * w, w).copy_(raw::slice(from, 2, 2 * w, w));
      return to;
    };
    return {pack(w_ih, 2), pack(w_hh, 3), pack(b_ih, 2), pack(b_hh, 3)};
  }
  /// The way back, of the gradient of input i.
  static Tensor unpacked(const Tensor& from, size_t i) {
    if (kLstm) return from;
    const int64_t w = from.size(2) / 4, n_row = i % 2 == 1 ? 2 : 3;
    Tensor to = empty(from.shape().with(2, 3 * w), options_of(from));
    raw::slice(to, 2, 0, 2 * w).copy_(raw::slice(from, 2, 0, 2 * w));
    raw::slice(to, 2, 2 * w, w).copy_(raw::slice(from, 2, n_row * w, w));
    return to;
  }

  static Grads backward_fused(Ctx& c, const Tensor& x, kernels::LstmFusedBackward a) {
    const TensorOptions f32{DType::f32, x.device()};
    const int64_t parts = (a.s.b + a.images - 1) / a.images, rows = 2 * a.s.h * 4 * a.s.w;
    Grads grads(6);
    if (c.needs(0)) grads[0] = empty_like(x);
    for (size_t i = 1; i < 5; ++i)
      if (c.needs(i)) grads[i] = empty(c.shape_of(i), f32);
    Tensor gx, weights, biases;
    if (grads[0]) gx = empty({2 * x.numel()}, options_of(x));
    if (grads[1] || grads[2]) weights = empty({parts, rows, 2 * a.s.w}, f32);
    if (grads[3] || grads[4]) biases = empty({parts, rows}, f32);
    auto f32_of = [](const Tensor& t) { return t ? t.data<float>() : nullptr; };
    if (gx) a.gx = grads[0].data<bf16>(), a.gx_parts = gx.data<bf16>();
    a.gw_ih = f32_of(grads[1]), a.gw_hh = f32_of(grads[2]), a.gw_parts = f32_of(weights);
    a.gb_ih = f32_of(grads[3]), a.gb_hh = f32_of(grads[4]), a.gb_parts = f32_of(biases);
    OCCAM_ON_CUDA(kernels::lstm_bwd_fused(a, current_stream(x.device()).handle));
    if (gx && a.s.offsets != nullptr) clear_unused_rows(grads[0], c.saved(7), a.s.rows());
    for (size_t i = 1; i < 5; ++i)
      if (grads[i] && c.grad_dtype_of(i) != DType::f32) grads[i] = raw::to(grads[i], x.dtype());
    return grads;
  }

  /// Runs the persistent form where it fits.
  static bool persistent(const kernels::LstmShape& s, In in, Tensor& y, Tensor& cells) {
    const Tensor &x = in[0], &w_hh = in[2];
    if (!x.is_cuda() || x.dtype() != DType::bf16) return false;
    [[maybe_unused]] kernels::LstmPersistentForward a{.s = s,
                                                      .x = x.data<bf16>(),
                                                      .w_ih = in[1].data<bf16>(),
                                                      .w_hh = w_hh.data<bf16>(),
                                                      .b_ih = in[3].data<bf16>(),
                                                      .b_hh = in[4].data<bf16>(),
                                                      .y = y.data<bf16>(),
                                                      .cells = cells ? cells.data<bf16>() : nullptr};
    bool fits = false;
    OCCAM_ON_CUDA(if ((fits = kernels::lstm_fits_persistent(a, x.size(3))))
                      kernels::lstm_fwd_persistent(a, current_stream(x.device()).handle));
    return fits;
  }

  /// w_ih x of every row, [2,h,b t,4w]; f32 beside bf16.
  static Tensor input_part(const Tensor& x, const Tensor& w_ih) {
    int64_t tokens = x.size(0) * x.size(1), heads = x.size(2), width = x.size(3), gates = w_ih.size(2);
    DType dtype = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
    Tensor z = empty({2, heads, tokens, gates}, {dtype, x.device()});
    for (int64_t direction = 0; direction < 2; ++direction)
      matrix_product({.device = x.device(),
                      .dtype_ab = x.dtype(),
                      .dtype_d = dtype,
                      .trans_b = true,
                      .m = tokens,
                      .n = gates,
                      .k = width,
                      .lda = heads * width,
                      .batch = heads,
                      .stride_a = width,
                      .stride_b = gates * width,
                      .stride_d = tokens * gates},
                     x.data_ptr(), raw::select(w_ih, 0, direction).data_ptr(),
                     raw::select(z, 0, direction).data_ptr());
    return z;
  }

  static void states_before(const kernels::LstmShape& s, const Tensor& y, Tensor& before) {
    if (y.is_cuda()) {
      dispatch_cuda(y.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::lstm_states_before<T>(s, y.data<T>(), before.data<T>(),
                                                     current_stream(y.device()).handle));
      });
    } else {
      dispatch_float(y.dtype(), [&]<class T>() {
        kernels::lstm_states_before_cpu<T>(s, y.data<T>(), before.data<T>());
      });
    }
  }

  static Tensor weight_grad(Ctx& c, size_t i, const Shape& shape, const Tensor& g_gates) {
    Tensor g = empty(shape, {c.grad_dtype_of(i), g_gates.device()});
    if (g_gates.numel() == 0) g.zero_();
    return g;
  }
};

}  // namespace

template <Cell kCell>
static Tensor run(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                  const Tensor& b_hh, const Sequences& rows) {
  using Op = Recurrence<kCell>;
  check_sequences(Op::info.name, rows, x);
  return as_rows(apply<Op>({as_image(x, rows), w_ih, w_hh, b_ih, b_hh, rows.offsets}, {rows.longest})[0],
                 rows);
}

Tensor lstm(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
            const Sequences& rows) {
  return run<Cell::lstm>(x, w_ih, w_hh, b_ih, b_hh, rows);
}

Tensor gru(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
           const Sequences& rows) {
  return run<Cell::gru>(x, w_ih, w_hh, b_ih, b_hh, rows);
}

OCCAM_REGISTER(lstm, Recurrence<Cell::lstm>, Recurrence<Cell::gru>);

}  // namespace occam
