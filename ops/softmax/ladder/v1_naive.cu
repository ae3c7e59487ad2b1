// A thread a row: neighbouring threads read addresses a row apart, so most of each 32-byte sector is thrown
// away.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/softmax/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
__global__ void row_by_thread(const bf16* x, bf16* y, int64_t rows, int64_t n) {
  OCCAM_GRID_LOOP(row, rows) {
    const bf16* in = x + row * n;
    bf16* out = y + row * n;
    float largest = -infinity_<float>(), sum = 0;
    for (int64_t i = 0; i < n; ++i) largest = max_(largest, to_acc(in[i]));
    for (int64_t i = 0; i < n; ++i) sum += exp_(to_acc(in[i]) - largest);
    for (int64_t i = 0; i < n; ++i) out[i] = from_acc<bf16>(exp_(to_acc(in[i]) - largest) / sum);
  }
}
}  // namespace

void softmax_v1_naive(const bf16* x, bf16* y, int64_t rows, int64_t n, void* stream) {
  row_by_thread<<<grid_for(rows, 128), 128, 0, as_stream(stream)>>>(x, y, rows, n);
  check_launch("softmax_v1_naive", stream);
}

}  // namespace occam::kernels::ladder
