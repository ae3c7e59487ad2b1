// The sum in a kernel of its own, then a thread a row: neighbouring threads read addresses a row apart, so
// most of each 32-byte sector is thrown away, three times.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/layer_norm/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
__global__ void sum_of_elements(LayerNorm a) {
  OCCAM_GRID_LOOP(i, a.rows * a.c) a.sum[i] = from_acc<bf16>(to_acc(a.x[i]) + to_acc(a.branch[i]));
}

__global__ void norm_by_thread(LayerNorm a) {
  OCCAM_GRID_LOOP(row, a.rows) {
    const bf16* in = a.sum + row * a.c;
    float sum = 0, squares = 0;
    for (int64_t i = 0; i < a.c; ++i) sum += to_acc(in[i]);
    const float m = sum / float(a.c);
    for (int64_t i = 0; i < a.c; ++i) squares += (to_acc(in[i]) - m) * (to_acc(in[i]) - m);
    const float r = 1 / sqrtf(squares / float(a.c) + a.eps);
    for (int64_t i = 0; i < a.c; ++i)
      a.y[row * a.c + i] = from_acc<bf16>((to_acc(in[i]) - m) * r * to_acc(a.weight[i]) + to_acc(a.bias[i]));
    a.mean[row] = m, a.rstd[row] = r;
  }
}
}  // namespace

void layer_norm_sum(const LayerNorm& a, void* stream) {
  sum_of_elements<<<grid_for(a.rows * a.c, 256), 256, 0, as_stream(stream)>>>(a);
  check_launch("layer_norm_sum", stream);
}

void layer_norm_v1_naive(const LayerNorm& a, void* stream) {
  layer_norm_sum(a, stream);
  norm_by_thread<<<grid_for(a.rows, 128), 128, 0, as_stream(stream)>>>(a);
  check_launch("layer_norm_v1_naive", stream);
}

}  // namespace occam::kernels::ladder
