#include "ops/patch_embed/op.h"

#include <algorithm>

#include "ops/linear/op.h"
#include "ops/op.h"
#include "ops/patch_embed/kernel.h"
#include "ops/view/op.h"

namespace occam {
namespace {

/// copy(element of the patches, pixel) for every row of a patch: p pixels that follow one another.
template <class Copy>
void for_rows_of_patches(const kernels::PatchGrid& grid, const Copy& copy) {
  const int64_t rows = grid.count() / grid.p;
#pragma omp parallel for schedule(static) if (grid.count() > 16384)
  for (int64_t row = 0; row < rows; ++row) copy(row * grid.p, grid.pixel(row * grid.p));
}

/// [b, c, H, W] -> [b, (H/p)(W/p), c p p]: the matrix that turns the convolution into a product.
struct Patchify {
  struct Attrs {
    int64_t p = 1;
  };
  static constexpr OpInfo info{.name = "patchify", .contract = "x: b c H W -> b n k"};

  static Outs forward(Ctx&, In in, const Attrs& a) {
    const Tensor& x = in[0];
    kernels::PatchGrid grid{x.size(0), x.size(1), x.size(2) / a.p, x.size(3) / a.p, a.p};
    Tensor y = empty({grid.b, grid.rows * grid.columns, grid.c * a.p * a.p}, options_of(x));
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(
            kernels::patches_from_image(x.data<T>(), y.data<T>(), grid, current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        const T* from = x.data<T>();
        T* to = y.data<T>();
        for_rows_of_patches(grid,
                            [&](int64_t i, int64_t pixel) { std::copy_n(from + pixel, grid.p, to + i); });
      });
    }
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const Shape& s = c.shape_of(0);
    int64_t p = c.attrs<Attrs>().p;
    kernels::PatchGrid grid{s[0], s[1], s[2] / p, s[3] / p, p};
    Tensor gx = empty(s, options_of(gy[0]));
    if (gx.is_cuda()) {
      dispatch_cuda(gx.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::image_from_patches(gy[0].data<T>(), gx.data<T>(), grid,
                                                  current_stream(gx.device()).handle));
      });
    } else {
      dispatch_float(gx.dtype(), [&]<class T>() {
        const T* from = gy[0].data<T>();
        T* to = gx.data<T>();
        for_rows_of_patches(grid,
                            [&](int64_t i, int64_t pixel) { std::copy_n(from + i, grid.p, to + pixel); });
      });
    }
    return {gx};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) { return {0, 2 * bytes_of(in, dtype)}; }
};

}  // namespace

Tensor patch_embed(const Tensor& x, const Tensor& w, const Tensor& b) {
  OCCAM_CHECK(x.rank() == 4 && w.rank() == 4 && w.size(1) == x.size(1) && w.size(2) == w.size(3),
              ErrorKind::shape,
              "patch_embed: x {} and w {}\n  contract  x: b c H W, w: d c p p, b?: d -> b n d",
              x.shape().str(), w.shape().str());
  int64_t p = w.size(2);
  OCCAM_CHECK(p > 0 && x.size(2) % p == 0 && x.size(3) % p == 0, ErrorKind::shape,
              "patch_embed: images are {} by {} pixels, not a multiple of the patch size {}", x.size(2),
              x.size(3), p);
  Tensor patches = apply<Patchify>({x}, {p})[0];
  return linear(patches, reshape(w, {w.size(0), w.size(1) * p * p}), b);
}

OCCAM_REGISTER(patch_embed, Patchify);

}  // namespace occam
