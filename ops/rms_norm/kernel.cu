// Rows that a warp can hold in packs of 16 bytes (kMostPacks a lane) are read once, by as many neighbouring
// lanes as that takes; these keep their columns from row to row, so that the gradient of the weight is summed
// in registers. Other rows take the general form: a warp goes over a row twice, the second time from L1, and
// the gradient of the weight is a kernel of its own.
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/rms_norm/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128, kColumns = 128;

template <class T>
struct Row {
  int64_t token, r, gate;  // of [b t]; offset of the gate's row
  __device__ Row(const RmsNormArgs<T>& a, int64_t row) : token(row / a.r), r(row % a.r) {
    gate = token / a.t * a.gate_b + token % a.t * a.gate_t + r * a.gate_r;
  }
  /// Element i of (a, c) in a packed [b t, a, r, c].
  __device__ int64_t at(const RmsNormArgs<T>& a, int64_t i) const {
    return ((token * a.a + i / a.c) * a.r + r) * a.c + i % a.c;
  }
};

/// u of kWide elements from i on.
template <int kWide, class T>
__device__ __forceinline__ void gated(const RmsNormArgs<T>& a, const Row<T>& row, int64_t i,
                                      float (&u)[kWide]) {
  load_acc(a.x + row.at(a, i), u);
  if (a.gate == nullptr) return;
  float z[kWide];
  load_acc(a.gate + row.gate + i, z);
#pragma unroll
  for (int j = 0; j < kWide; ++j) u[j] *= silu(z[j]);
}

template <int kWide, class T>
__global__ void __launch_bounds__(kThreads) rms_norm_fwd_warp(RmsNormArgs<T> a) {
  const int64_t rows = a.b * a.t * a.r, width = a.a * a.c, lane = threadIdx.x % kWarp * kWide;
  for (int64_t n = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; n < rows;
       n += int64_t(gridDim.x) * (kThreads / kWarp)) {
    const Row<T> row(a, n);
    float squares = 0, u[kWide], w[kWide];
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
#pragma unroll
      for (int j = 0; j < kWide; ++j) squares += u[j] * u[j];
    }
    const float rstd = 1 / sqrtf(warp_sum(squares) / float(width) + float(a.eps));
    if (threadIdx.x % kWarp == 0) a.rstd[n] = rstd;
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
      load_acc(a.weight + row.r * width + i, w);
#pragma unroll
      for (int j = 0; j < kWide; ++j) u[j] *= rstd * w[j];
      store_acc(a.y + row.at(a, i), u);
    }
  }
}

template <int kWide, class T>
__global__ void __launch_bounds__(kThreads) rms_norm_bwd_warp(RmsNormArgs<T> a) {
  const int64_t rows = a.b * a.t * a.r, width = a.a * a.c, lane = threadIdx.x % kWarp * kWide;
  for (int64_t n = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; n < rows;
       n += int64_t(gridDim.x) * (kThreads / kWarp)) {
    const Row<T> row(a, n);
    const float rstd = a.rstd[n];
    float product = 0, u[kWide], w[kWide], g[kWide];
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
      load_acc(a.weight + row.r * width + i, w);
      load_acc(a.gy + row.at(a, i), g);
#pragma unroll
      for (int j = 0; j < kWide; ++j) product += g[j] * w[j] * u[j];
    }
    const float along = warp_sum(product) / float(width) * rstd * rstd;
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
      load_acc(a.weight + row.r * width + i, w);
      load_acc(a.gy + row.at(a, i), g);
#pragma unroll
      for (int j = 0; j < kWide; ++j) g[j] = rstd * (g[j] * w[j] - u[j] * along);  // of u
      if (a.gate != nullptr) {
        float x[kWide], z[kWide];
        load_acc(a.x + row.at(a, i), x);
        load_acc(a.gate + row.gate + i, z);
#pragma unroll
        for (int j = 0; j < kWide; ++j) x[j] *= g[j] * silu_grad(z[j]), g[j] *= silu(z[j]);
        if (a.ggate != nullptr) store_acc(a.ggate + n * width + i, x);
      }
      if (a.gx != nullptr) store_acc(a.gx + row.at(a, i), g);
    }
  }
}

/// partial[part] = sum over every parts-th token of gy u rstd.
template <class T>
__global__ void __launch_bounds__(kColumns) rms_norm_bwd_weight(RmsNormArgs<T> a) {
  const int64_t width = a.a * a.c, column = int64_t(blockIdx.y) * kColumns + threadIdx.x;
  if (column >= a.r * width) return;
  const int64_t r = column / width, i = column % width;
  float sum = 0;
#pragma unroll 4
  for (int64_t token = blockIdx.x; token < a.b * a.t; token += gridDim.x) {
    const Row<T> row(a, token * a.r + r);
    float u[1];
    gated<1>(a, row, i, u);
    sum += to_acc(a.gy[row.at(a, i)]) * u[0] * a.rstd[token * a.r + r];
  }
  a.partial[blockIdx.x * a.r * width + column] = sum;
}

constexpr int kMostPacks = 3, kRowThreads = 128, kForwardBlocks = 5, kBackwardBlocks = 4;
constexpr int kStages = 2;  // rows that a team of lanes has under way

template <class T>
bool packs(const RmsNormArgs<T>& a) {
  return a.c % kPack<T> == 0 && (a.gate_b | a.gate_t | a.gate_r) % kPack<T> == 0 &&
         aligned16(a.x, a.weight, a.gate, a.y, a.gy, a.gx, a.ggate);
}

/// Lanes that hold a row, a power of two; 0 where a warp is too few.
template <class T>
int lanes_of(const RmsNormArgs<T>& a) {
  if (!packs(a) || a.a * a.r * a.c > 2147483647) return 0;
  for (int lanes = 1; lanes <= kWarp; lanes *= 2)
    if (int64_t(lanes) * kMostPacks * kPack<T> >= a.a * a.c) return lanes;
  return 0;
}

/// What a lane has of every row of its r, which neighbouring blocks differ in, since rows interleave: packs
/// of the columns (lane + k lanes) kPack.
template <class T>
struct Lane {
  int r, slot, slots, first, step, width;
  int at[kMostPacks];  // offsets in a packed token [a,r,c]

  __device__ Lane(const RmsNormArgs<T>& a, int lanes)
      : r(int(blockIdx.x)),
        slot(int(threadIdx.x) / lanes),
        slots(kRowThreads / lanes),
        first(int(threadIdx.x) % lanes * kPack<T>),
        step(lanes * kPack<T>),
        width(int(a.a * a.c)) {
    const int c = int(a.c);
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) at[k] = (column(k) / c * int(a.r) + r) * c + column(k) % c;
  }
  __device__ int column(int k) const { return first + k * step; }
  __device__ bool has(int k) const { return column(k) < width; }
};
__device__ __forceinline__ float sum_of_lanes(float v, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  return v;
}
/// The packs that lanes fetch in the background, kStages rows of kTensors tensors: a thread reads what it
/// fetched itself, so that no barrier is needed, and works on one row while the next ones come.
template <class T, int kTensors>
struct Fetched {
  Pack<T>* own;
  __device__ Fetched() {
    extern __shared__ __align__(16) unsigned char fetched_memory[];
    own = reinterpret_cast<Pack<T>*>(fetched_memory) + threadIdx.x;
  }
  __device__ Pack<T>& at(int stage, int tensor, int k) const {
    return own[((stage * kTensors + tensor) * kMostPacks + k) * kRowThreads];
  }
  static constexpr int kBytes = kStages * kTensors * kMostPacks * kRowThreads * 16;
};

/// Calls fetch(token, inside, stage) ahead of use(token, inside, stage) for the tokens of a lane's team. All
/// lanes of a warp take part, since use() has shuffles; outside, there is no token.
template <class T, class Fetch, class Use>
__device__ __forceinline__ void for_tokens(const Lane<T>& lane, int64_t tokens, Fetch fetch, Use use) {
  const int64_t step = int64_t(gridDim.y) * lane.slots, start = int64_t(blockIdx.y) * lane.slots;
  auto fetch_row = [&](int64_t base, int stage) {
    fetch(base + lane.slot, base + lane.slot < tokens, stage);
    copies_commit();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) fetch_row(start + stage * step, stage);
  int stage = 0;
  for (int64_t base = start; base < tokens; base += step) {
    copies_wait<kStages - 1>();
    use(base + lane.slot, base + lane.slot < tokens, stage);
    fetch_row(base + kStages * step, stage);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
}

template <class T>
__device__ __forceinline__ const T* gate_row(const RmsNormArgs<T>& a, int64_t token, int r) {
  return a.gate + token / a.t * a.gate_b + token % a.t * a.gate_t + r * a.gate_r;
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, kForwardBlocks)
    rms_norm_fwd_rows(RmsNormArgs<T> a, int lanes) {
  const Lane<T> lane(a, lanes);
  const int64_t tokens = a.b * a.t, token_width = a.a * a.r * a.c;
  const Fetched<T, 2> fetched;
  Pack<T> weights[kMostPacks];
#pragma unroll
  for (int k = 0; k < kMostPacks; ++k)
    weights[k] = load_pack_if<kPack<T>>(lane.has(k), a.weight + lane.r * lane.width + lane.column(k));
  auto fetch = [&](int64_t token, bool inside, int stage) {
    const T *x = a.x + token * token_width, *gate = gate_row(a, token, lane.r);
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) {
      const bool there = inside && lane.has(k);
      copy_async16(&fetched.at(stage, 0, k), there ? x + lane.at[k] : a.x, there);
      if (a.gate != nullptr)
        copy_async16(&fetched.at(stage, 1, k), there ? gate + lane.column(k) : a.gate, there);
    }
  };
  auto use = [&](int64_t token, bool inside, int stage) {
    float u[kMostPacks][kPack<T>], squares = 0;
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) {
      float z[kPack<T>] = {};
      load_acc(fetched.at(stage, 0, k).v, u[k]);
      if (a.gate != nullptr) load_acc(fetched.at(stage, 1, k).v, z);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        if (a.gate != nullptr) u[k][j] *= z[j] * sigmoid_for<T>(z[j]);
        squares += u[k][j] * u[k][j];
      }
    }
    const float rstd = 1 / sqrtf(sum_of_lanes(squares, lanes) / float(lane.width) + float(a.eps));
    if (!inside) return;
    if (lane.first == 0) a.rstd[token * a.r + lane.r] = rstd;
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) {
      if (!lane.has(k)) break;
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) u[k][j] *= rstd * to_acc(weights[k].v[j]);
      store_acc(a.y + token * token_width + lane.at[k], u[k]);
    }
  };
  for_tokens(lane, tokens, fetch, use);
}

/// partial[block] = sum over the block's tokens of gy u rstd.
template <class T>
__global__ void __launch_bounds__(kRowThreads, kBackwardBlocks)
    rms_norm_bwd_rows(RmsNormArgs<T> a, int lanes) {
  const Lane<T> lane(a, lanes);
  const int64_t tokens = a.b * a.t, token_width = a.a * a.r * a.c;
  const Fetched<T, 3> fetched;
  Pack<T> weights[kMostPacks];
#pragma unroll
  for (int k = 0; k < kMostPacks; ++k)
    weights[k] = load_pack_if<kPack<T>>(lane.has(k), a.weight + lane.r * lane.width + lane.column(k));
  float sums[kMostPacks][kPack<T>] = {}, coming[kStages] = {};  // coming: rstd
  auto fetch = [&](int64_t token, bool inside, int stage) {
    const int64_t at = token * token_width;
    const T* gate = gate_row(a, token, lane.r);
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) {
      const bool there = inside && lane.has(k);
      copy_async16(&fetched.at(stage, 0, k), there ? a.x + at + lane.at[k] : a.x, there);
      copy_async16(&fetched.at(stage, 1, k), there ? a.gy + at + lane.at[k] : a.x, there);
      if (a.gate != nullptr)
        copy_async16(&fetched.at(stage, 2, k), there ? gate + lane.column(k) : a.gate, there);
    }
    // A queue, not an array by stage: registers have no addresses.
#pragma unroll
    for (int k = 0; k + 1 < kStages; ++k) coming[k] = coming[k + 1];
    coming[kStages - 1] = inside ? a.rstd[token * a.r + lane.r] : 0;
  };
  auto use = [&](int64_t token, bool inside, int stage) {
    const float rstd = coming[0];
    // Of a gate z: sigmoid z; unset without gates.
    float gates[kMostPacks][kPack<T>], product = 0;
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) {
      float x[kPack<T>], g[kPack<T>], z[kPack<T>] = {};
      load_acc(fetched.at(stage, 0, k).v, x);
      load_acc(fetched.at(stage, 1, k).v, g);
      if (a.gate != nullptr) load_acc(fetched.at(stage, 2, k).v, z);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        if (a.gate != nullptr) gates[k][j] = sigmoid_for<T>(z[j]), x[j] *= z[j] * gates[k][j];
        g[j] *= x[j];
        product += g[j] * to_acc(weights[k].v[j]), sums[k][j] += g[j] * rstd;
      }
    }
    const float along = sum_of_lanes(product, lanes) / float(lane.width) * rstd * rstd;
    if (!inside) return;
#pragma unroll
    for (int k = 0; k < kMostPacks; ++k) {
      if (!lane.has(k)) break;
      float x[kPack<T>], g[kPack<T>], z[kPack<T>] = {}, gz[kPack<T>];
      load_acc(fetched.at(stage, 0, k).v, x);
      load_acc(fetched.at(stage, 1, k).v, g);
      if (a.gate != nullptr) load_acc(fetched.at(stage, 2, k).v, z);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        const float s = a.gate != nullptr ? gates[k][j] : 0, pass = a.gate != nullptr ? z[j] * s : 1;
        g[j] = rstd * (g[j] * to_acc(weights[k].v[j]) - x[j] * pass * along);  // of u
        gz[j] = g[j] * x[j] * (s + pass * (1 - s));                            // silu'(z) = s (1 + z (1 - s))
        g[j] *= pass;
      }
      if (a.ggate != nullptr) store_acc(a.ggate + (token * a.r + lane.r) * lane.width + lane.column(k), gz);
      if (a.gx != nullptr) store_acc(a.gx + token * token_width + lane.at[k], g);
    }
  };
  for_tokens(lane, tokens, fetch, use);
  if (a.partial == nullptr) return;
  // What was fetched last is not read: its memory becomes [slots][columns of a row].
  float* all = reinterpret_cast<float*>(fetched.own - threadIdx.x);
  copies_wait<0>();
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMostPacks; ++k)
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j)
      all[lane.slot * kMostPacks * lane.step + lane.column(k) + j] = sums[k][j];
  __syncthreads();
  for (int i = int(threadIdx.x); i < lane.width; i += kRowThreads) {
    float sum = 0;
    for (int64_t slot = 0; slot < lane.slots; ++slot) sum += all[slot * kMostPacks * lane.step + i];
    a.partial[(int64_t(blockIdx.y) * a.r + lane.r) * lane.width + i] = sum;
  }
}

/// Blocks of one r: as many as are on the device at once.
template <class T>
unsigned row_blocks(const RmsNormArgs<T>& a, int lanes, int of_sm) {
  const int64_t most = int64_t(device_limits().sm_count) * of_sm / a.r;
  return unsigned(
      std::clamp<int64_t>(div_up<int64_t>(a.b * a.t, kRowThreads / lanes), 1, std::max<int64_t>(most, 1)));
}

/// By a kernel of rows with room for kTensors tensors.
template <int kTensors, class T>
void launch_rows(void (*kernel)(RmsNormArgs<T>, int), const char* name, int of_sm, const RmsNormArgs<T>& a,
                 int lanes, void* stream) {
  constexpr int kBytes = Fetched<T, kTensors>::kBytes;
  allow_shared(kernel, name, kBytes);
  const dim3 grid(unsigned(a.r), row_blocks(a, lanes, of_sm));
  kernel<<<grid, kRowThreads, kBytes, as_stream(stream)>>>(a, lanes);
  check_launch(name, stream);
}

}  // namespace

template <class T>
int64_t rms_norm_parts(const RmsNormArgs<T>& a) {
  const int lanes = lanes_of(a);
  return lanes > 0 ? row_blocks(a, lanes, kBackwardBlocks) : std::min<int64_t>(a.b * a.t, 256);
}

template <class T>
void rms_norm_fwd(const RmsNormArgs<T>& a, void* stream) {
  if (const int lanes = lanes_of(a); lanes > 0) {
    return launch_rows<2>(rms_norm_fwd_rows<T>, "rms_norm_fwd_rows", kForwardBlocks, a, lanes, stream);
  }
  auto* kernel = packs(a) ? rms_norm_fwd_warp<kPack<T>, T> : rms_norm_fwd_warp<1, T>;
  kernel<<<grid_for(a.b * a.t * a.r * kWarp, kThreads), kThreads, 0, as_stream(stream)>>>(a);
  check_launch("rms_norm_fwd_warp", stream);
}

template <class T>
void rms_norm_bwd(const RmsNormArgs<T>& a, void* stream) {
  if (const int lanes = lanes_of(a); lanes > 0) {
    return launch_rows<3>(rms_norm_bwd_rows<T>, "rms_norm_bwd_rows", kBackwardBlocks, a, lanes, stream);
  }
  auto* kernel = packs(a) ? rms_norm_bwd_warp<kPack<T>, T> : rms_norm_bwd_warp<1, T>;
  kernel<<<grid_for(a.b * a.t * a.r * kWarp, kThreads), kThreads, 0, as_stream(stream)>>>(a);
  check_launch("rms_norm_bwd_warp", stream);
  if (a.partial == nullptr) return;
  const dim3 grid(unsigned(rms_norm_parts(a)), unsigned(div_up<int64_t>(a.a * a.r * a.c, kColumns)));
  rms_norm_bwd_weight<T><<<grid, kColumns, 0, as_stream(stream)>>>(a);
  check_launch("rms_norm_bwd_weight", stream);
}

template int64_t rms_norm_parts(const RmsNormArgs<float>&);
template int64_t rms_norm_parts(const RmsNormArgs<bf16>&);
template void rms_norm_fwd(const RmsNormArgs<float>&, void*);
template void rms_norm_fwd(const RmsNormArgs<bf16>&, void*);
template void rms_norm_bwd(const RmsNormArgs<float>&, void*);
template void rms_norm_bwd(const RmsNormArgs<bf16>&, void*);

}  // namespace occam::kernels
