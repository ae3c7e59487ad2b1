#include "ops/short_conv/op.h"

#include <algorithm>
#include <vector>

#include "core/vmath.h"
#include "ops/op.h"
#include "ops/ragged.h"
#include "ops/reduce/op.h"
#include "ops/short_conv/kernel.h"

namespace occam {
namespace {

/// One (sequence, direction) with taps as rows of c, so that loops over channels vectorise.
template <class T>
struct Lane {
  kernels::ShortConvForward<T> a;
  int64_t sequence = 0, direction = 0, begin = 0, length = 0;
  std::vector<T> taps;  // [taps, c]

  Lane(const kernels::ShortConvForward<T>& args, int64_t lane)
      : a(args),
        sequence(lane / args.s.directions),
        direction(lane % args.s.directions),
        begin(args.s.begin(sequence)),
        length(args.s.length(sequence)),
        taps(size_t(a.s.taps * a.s.c)) {
    for (int64_t i = 0; i < a.s.taps; ++i)
      for (int64_t c = 0; c < a.s.c; ++c)
        taps[size_t(i * a.s.c + c)] = a.w[(direction * a.s.c + c) * a.s.taps + i];
  }
  int64_t token(int64_t step) const { return direction == 0 ? step : length - 1 - step; }
  const T* x(int64_t step) const {
    return a.x + a.x_at(sequence) + token(step) * a.stride_t + direction * a.stride_r;
  }
  int64_t packed(int64_t step) const { return ((begin + token(step)) * a.s.directions + direction) * a.s.c; }
  /// The step that tap i of `step` reads, and the taps whose step the sequence has.
  int64_t source(int64_t step, int64_t i) const { return step - (a.s.taps - 1) + i + a.s.ahead(); }
  int64_t first_tap(int64_t step) const { return std::max<int64_t>(0, -source(step, 0)); }
  int64_t end_tap(int64_t step) const { return std::min(a.s.taps, length - source(step, 0)); }
  /// bias + sum of taps.
  void sum(int64_t step, T* to) const {
    std::copy_n(a.bias + direction * a.s.c, a.s.c, to);
    for (int64_t i = first_tap(step); i < end_tap(step); ++i)
      add_product(taps.data() + i * a.s.c, x(source(step, i)), to, a.s.c);
  }
  OCCAM_VECTORIZED static void add_product(const T* p, const T* q, T* to, int64_t c) {
    for (int64_t j = 0; j < c; ++j) to[j] += p[j] * q[j];
  }
};

template <class T>
OCCAM_VECTORIZED void silu_rows(const T* x, T* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * sigmoid_of(x[i]);
}
template <class T>
OCCAM_VECTORIZED void silu_slope_rows(const T* x, T* g, const T* gy, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T s = sigmoid_of(x[i]);
    g[i] = gy[i] * s * (1 + x[i] * (1 - s));
  }
}

template <class T>
void forward_cpu(const kernels::ShortConvForward<T>& a) {
#pragma omp parallel for if (a.s.rows() * a.s.c > 8192)
  for (int64_t n = 0; n < a.s.b * a.s.directions; ++n) {
    Lane<T> lane(a, n);
    std::vector<T> sum(size_t(a.s.c));
    for (int64_t step = 0; step < lane.length; ++step) {
      lane.sum(step, sum.data());
      silu_rows(sum.data(), a.y + lane.packed(step), a.s.c);
    }
  }
}

/// partial [b,directions,c,taps+1].
template <class T>
void backward_cpu(const kernels::ShortConvForward<T>& a, const T* gy, T* gx, T* partial) {
#pragma omp parallel for if (a.s.rows() * a.s.c > 8192)
  for (int64_t n = 0; n < a.s.b * a.s.directions; ++n) {
    Lane<T> lane(a, n);
    const size_t c = size_t(a.s.c);
    std::vector<T> sum(c), g(c), gw(size_t(a.s.taps + 1) * c, T(0)), ones(c, T(1));
    for (int64_t step = 0; step < lane.length; ++step) std::fill_n(gx + lane.packed(step), a.s.c, T(0));
    for (int64_t step = 0; step < lane.length; ++step) {
      lane.sum(step, sum.data());
      silu_slope_rows(sum.data(), g.data(), gy + lane.packed(step), a.s.c);
      for (int64_t i = lane.first_tap(step); i < lane.end_tap(step); ++i) {
        const int64_t from = lane.source(step, i);
        Lane<T>::add_product(lane.taps.data() + i * a.s.c, g.data(), gx + lane.packed(from), a.s.c);
        Lane<T>::add_product(lane.x(from), g.data(), gw.data() + i * a.s.c, a.s.c);
      }
      Lane<T>::add_product(ones.data(), g.data(), gw.data() + a.s.taps * a.s.c, a.s.c);
    }
    for (int64_t i = 0; i <= a.s.taps; ++i)
      for (int64_t j = 0; j < a.s.c; ++j)
        partial[(n * a.s.c + j) * (a.s.taps + 1) + i] = gw[size_t(i * a.s.c + j)];
  }
}

struct ShortConvOp {
  struct Attrs {
    int64_t longest;
  };
  static constexpr OpInfo info{.name = "short_conv",
                               .contract = "x: b t r c, w: r c k, bias: r c, offsets?: s -> b t r c",
                               .layout = Layout::strided,
                               .hint = "r = 2 directions, or 1 for taps round each token"};

  template <class T>
  static kernels::ShortConvForward<T> arguments(const Tensor& x, const Tensor& w, const Tensor& bias,
                                                const Tensor& offsets, int64_t longest) {
    return {{rows_of(x.shape(), offsets, longest), x.size(3), w.size(2), x.size(2)},
            x.data<T>(),
            x.strides()[0],
            x.strides()[1],
            x.strides()[2],
            w.data<T>(),
            bias.data<T>()};
  }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    OCCAM_CHECK(in[1].size(2) > 0 && in[1].size(2) <= kernels::kMostTaps, ErrorKind::shape,
                "short_conv: w {} has {} taps, where 1 to {} are supported", in[1].shape().str(),
                in[1].size(2), kernels::kMostTaps);
    OCCAM_CHECK(in[0].size(2) == 1 || in[0].size(2) == 2, ErrorKind::shape,
                "short_conv: x {} has {} directions", in[0].shape().str(), in[0].size(2));
    Tensor x = in[0].strides()[3] == 1 ? in[0] : raw::contiguous(in[0]), w = raw::contiguous(in[1]),
           bias = raw::contiguous(in[2]), y = empty(x.shape(), options_of(x)),
           offsets = in[3] ? raw::contiguous(in[3]) : Tensor();
    if (y.numel() == 0) {
    } else if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        auto a = arguments<T>(x, w, bias, offsets, attrs.longest);
        a.y = y.data<T>();
        OCCAM_ON_CUDA(kernels::short_conv_fwd(a, current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        auto a = arguments<T>(x, w, bias, offsets, attrs.longest);
        a.y = y.data<T>();
        forward_cpu(a);
      });
    }
    if (offsets) clear_unused_rows(y, offsets, x.size(0) * x.size(1));
    c.save({x, w, bias, offsets});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy_given) {
    Tensor x = c.saved(0), w = c.saved(1), bias = c.saved(2), offsets = c.saved(3),
           gy = raw::contiguous(gy_given[0]);
    const int64_t directions = x.size(2), channels = x.size(3), taps = w.size(2),
                  longest = c.attrs<Attrs>().longest;
    const bool parameters = c.needs(1) || c.needs(2);
    Tensor gx = c.needs(0) || x.device().is_cpu() ? empty(x.shape(), options_of(x)) : Tensor(), partial;
    if (x.numel() == 0) {
      partial = zeros({1, directions, channels, taps + 1}, {DType::f32, x.device()});
    } else if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          kernels::ShortConvBackward<T> a{arguments<T>(x, w, bias, offsets, longest), gy.data<T>(),
                                          gx ? gx.data<T>() : nullptr};
          if (parameters) {
            partial = empty({kernels::short_conv_parts(a), directions, channels, taps + 1},
                            {DType::f32, x.device()});
            a.partial = partial.data<float>();
          }
          kernels::short_conv_bwd(a, current_stream(x.device()).handle);
        });
      });
    } else {
      partial =
          empty({rows_of(x.shape(), offsets, longest).b, directions, channels, taps + 1}, options_of(x));
      dispatch_float(x.dtype(), [&]<class T>() {
        backward_cpu(arguments<T>(x, w, bias, offsets, longest), gy.data<T>(), gx.data<T>(),
                     partial.data<T>());
      });
    }
    if (offsets && gx) clear_unused_rows(gx, offsets, x.size(0) * x.size(1));
    Grads grads{c.needs(0) ? gx : Tensor(), {}, {}, {}};
    if (parameters) {
      Tensor sum = raw::reshape(raw::sum_to_shape(partial, {1, directions, channels, taps + 1}),
                                {directions, channels, taps + 1});
      if (c.needs(1)) grads[1] = raw::contiguous(raw::slice(sum, 2, 0, taps));
      if (c.needs(2)) grads[2] = raw::contiguous(raw::select(sum, 2, taps));
    }
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    double n = double(in[0].numel());
    return {n * (2 * double(in[1][2]) + 10), (2 * n + double(in[1].numel())) * double(size_of(dtype))};
  }
};

}  // namespace

Tensor short_conv(const Tensor& x, const Tensor& w, const Tensor& bias, const Sequences& rows) {
  check_sequences("short_conv", rows, x);
  return as_rows(apply<ShortConvOp>({as_image(x, rows), w, bias, rows.offsets}, {rows.longest})[0], rows);
}

OCCAM_REGISTER(short_conv, ShortConvOp);

}  // namespace occam
