#pragma once
// What the kernels that make gates and scan share. Gates are transposed products, W x': rows are channels,
// columns tokens, and which token is which column is free: column 8j + 2u + e of a stage is position 2j + e
// of unit u (an image, or a segment of one). The two columns that a lane of the result holds of every 8 are
// neighbours in time of unit lane % 4, and the lane walks along them without speaking to others.
#include "core/cuda/wgmma.cuh"
#include "ops/diagonal_scan/cells.cuh"
#include "ops/diagonal_scan/kernel.h"

namespace occam::kernels {

constexpr int kWidth = 64, kUnits = 4;
constexpr int kPositions = 8;                             // of every unit in a stage
constexpr int kGroup = 128;                               // threads of a warpgroup
constexpr int kTile = kUnits * kPositions * kSwizzleRow;  // bytes of a stage: rows are its columns
constexpr int kLeft = kWidth * kSwizzleRow;               // of a left operand [64][64]

/// Tokens one behind another: rows `row`, row + 1, ... of those of all images.
struct Unit {
  int64_t row = 0, image = 0;
  int segment = 0, length = 0;
  bool exists = false, first = true, last = true;  // of its image
};

/// Units of one segment of all images are neighbours.
__device__ __forceinline__ Unit unit_of(const DiagonalScanShape& s, const Segments& segments,
                                        unsigned index) {
  Unit u;
  u.segment = int(index / unsigned(s.b)), u.image = index - unsigned(u.segment) * unsigned(s.b);
  u.exists = u.segment < segments.count;
  if (u.exists) {
    const int64_t before = u.segment * segments.length, left = s.length(u.image) - before;
    u.row = s.begin(u.image) + before;
    u.length = int(max(int64_t(0), min(segments.length, left)));
    u.first = u.segment == 0, u.last = u.length >= left;
  }
  return u;
}

/// A unit's tokens in the order of a walk.
struct Walk {
  int64_t row;  // of position 0
  int step, length;
  __device__ __forceinline__ Walk(const Unit& u, bool back)
      : row(back ? u.row + u.length - 1 : u.row), step(back ? -1 : 1), length(u.length) {}
};

/// Of every tile a thread of a warpgroup copies 16 bytes of rows thread / 8 and 16 below: positions
/// `position` and 4 more of a unit.
struct Copied {
  int unit, position, piece, row;
  __device__ __forceinline__ Copied() {
    row = int(threadIdx.x) % kGroup / 8;
    unit = row % 8 / 2, position = row / 8 * 2 + row % 2, piece = int(threadIdx.x) % 8;
  }
};

/// Rows of 64 channels of a tensor, `stride` such rows from a token to the next, stage by stage along a walk.
class Rows {
 public:
  __device__ __forceinline__ Rows(const void* tensor, const Walk& walk, const Copied& copied, int64_t stride,
                                  int64_t row)
      : token_(walk.step * int(stride * kWidth * int(sizeof(bf16)))), left_(walk.length - copied.position) {
    const int64_t first = (walk.row * stride + row) * kWidth + copied.piece * 8;
    next_ =
        static_cast<const uint8_t*>(tensor) + first * int(sizeof(bf16)) + copied.position * int64_t(token_);
  }
  /// Reads a position ahead, where the walk goes on behind the unit over its end too.
  __device__ __forceinline__ void look_ahead(bool goes_on) { next_ += token_, left_ -= !goes_on; }
  /// The next stage to a tile in the background, zeros behind the end; `place`: the thread's, in the tile.
  __device__ __forceinline__ void load(uint8_t* place) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      copy_async16(place + i * kHalf, next_ + i * kApart * int64_t(token_), left_ > i * kApart);
    advance();
  }
  /// kLast: nobody reads it soon, and the L2 cache keeps what is read twice.
  template <bool kLast = false>
  __device__ __forceinline__ void store(const uint8_t* place) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      if (left_ > i * kApart) {
        auto* to = reinterpret_cast<uint4*>(const_cast<uint8_t*>(next_ + i * kApart * int64_t(token_)));
        const uint4 sixteen = *reinterpret_cast<const uint4*>(place + i * kHalf);
        if (kLast)
          __stcs(to, sixteen);
        else
          *to = sixteen;
      }
    advance();
  }

 private:
  static constexpr int kCopies = 2, kApart = kPositions / kCopies, kHalf = kTile / kCopies;
  __device__ __forceinline__ void advance() { next_ += kPositions * int64_t(token_), left_ -= kPositions; }
  int token_, left_;  // bytes to the next token; positions left
  const uint8_t* next_;
};

/// Of the four 8 x 8 parts that are columns 0 .. 15 of a warp's 16 channels, where in a tile a lane's row
/// lies for ldmatrix_transposed_at and stmatrix_transposed: registers {rows g, rows g + 8} of 8 columns, then
/// of 8 more. Columns 16 .. 31 lie kPair bytes behind.
__device__ __forceinline__ uint32_t columns_of(int warp) {
  const int lane = int(threadIdx.x) % 32, part = lane / 8;
  return swizzled(part / 2 * 8 + lane % 8, 2 * warp + part % 2);
}
constexpr int kPair = 16 * kSwizzleRow;
__device__ __forceinline__ float low(uint32_t two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high(uint32_t two) { return __uint_as_float(two & 0xffff0000u); }

/// Left operands of 16 rows of a matrix of 64 columns, rows `stride` apart.
__device__ __forceinline__ void load_left(uint32_t (&a)[4][4], const bf16* rows, int64_t stride) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[k][i] = *reinterpret_cast<const uint32_t*>(rows + (lane / 4 + i % 2 * 8) * stride + 16 * k +
                                                   i / 2 * 8 + 2 * (lane % 4));
}

/// The gates of a stage, sum[part][column] = weights[part] x', with weights [part][64][64] in shared memory.
template <int kParts>
__device__ __forceinline__ void gate_products(float (&sum)[kParts][16], uint32_t weights, uint32_t x) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int k = 0; k < 4; ++k)
      wgmma<32, false, false>(sum[i], operand(weights + i * kLeft) + k * kStepAlong,
                              operand(x) + k * kStepAlong, k > 0);
  wgmma_commit();
}

/// The weights of a direction and head to shared memory, in the background, by `threads` threads; rows are
/// gates.
template <int kParts>
__device__ __forceinline__ void copy_weights(uint8_t* to, const bf16* weights, int64_t which, int threads) {
  const int piece = int(threadIdx.x) % 8;
  for (int row = int(threadIdx.x) / 8; row < kParts * kWidth; row += threads / 8)
    copy_async16(to + swizzled(row, piece), weights + (which * kParts * kWidth + row) * kWidth + piece * 8,
                 true);
}

// A cell as these kernels run it: two channels of a lane at once, p[part][channel] being gates without their
// biases, which the constants contain.

constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// g(v) = max(v + 1/2, s(v)), and s from the device's tanh.
struct HeadValue {
  float half[2], more[2];
  __device__ __forceinline__ void set(int c, float bias) { half[c] = 0.5f * bias, more[c] = bias + 0.5f; }
  __device__ __forceinline__ float operator()(int c, float v) const {
    return fmaxf(v + more[c], 0.5f * tanh_fast(0.5f * v + half[c]) + 0.5f);
  }
  /// And g' = 1, below 0 s (1 - s).
  __device__ __forceinline__ float with_slope(int c, float v, float& slope) const {
    const float t = tanh_fast(0.5f * v + half[c]);
    slope = t >= 0 ? 1.0f : 0.25f - 0.25f * t * t;
    return fmaxf(v + more[c], 0.5f * t + 0.5f);
  }
};

struct HeadGru {
  static constexpr int kParts = 2;
  float z[2];
  HeadValue value;
  __device__ __forceinline__ void set(int c, const float (&bias)[3]) {
    z[c] = -kLog2e * bias[0], value.set(c, bias[1]);
  }
  __device__ __forceinline__ float fresh(int c, float p) const {  // an infinite exponential is as good as any
    return reciprocal_fast(1 + exp2_fast(-kLog2e * p + z[c]));
  }
  /// Moves the states on.
  __device__ __forceinline__ void step(const float (&p)[3][2], float (&h)[2], float (&keep)[2]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float s = fresh(c, p[0][c]);
      h[c] += s * (value(c, p[1][c]) - h[c]), keep[c] = 1 - s;
    }
  }
  /// Turns p into the gradients of the gates.
  __device__ __forceinline__ void backward(float (&p)[3][2], const float (&before)[2], const float (&dh)[2],
                                           float (&keep)[2]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float slope;
      const float s = fresh(c, p[0][c]), g = value.with_slope(c, p[1][c], slope), d = dh[c] * s;
      keep[c] = 1 - s;
      p[0][c] = d * keep[c] * (g - before[c]);
      p[1][c] = d * slope;
    }
  }
};

struct HeadLstm {
  static constexpr int kParts = 3;
  static constexpr float kScale = 0x1p-58f,
                         kLogScale = -58;  // of sums up to 2^117: products of two are finite
  float f[2], i[2];
  HeadValue value;
  __device__ __forceinline__ void set(int c, const float (&bias)[3]) {
    f[c] = kLogScale - kLog2e * bias[0], i[c] = kLogScale - kLog2e * bias[1], value.set(c, bias[2]);
  }
  /// With F = 1 + e^-f = 1 / s(f) and I likewise: a = I / (F + I), 1 - a = F / (F + I). small_f and small_i
  /// are e^-f / (F + I) and e^-i / (F + I).
  __device__ __forceinline__ void gates(const float (&p)[3][2], float (&keep)[2], float (&fresh)[2],
                                        float (&small_f)[2], float (&small_i)[2]) const {
    constexpr float kMost = kLogScale + 80 * kLog2e;
    float sum[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      small_f[c] = exp2_fast(fminf(-kLog2e * p[0][c] + f[c], kMost));
      small_i[c] = exp2_fast(fminf(-kLog2e * p[1][c] + i[c], kMost));
      fresh[c] = small_f[c] + kScale, keep[c] = small_i[c] + kScale;
      sum[c] = fresh[c] + keep[c];
    }
    const float r = reciprocal_fast(sum[0] * sum[1]);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float inverse = r * sum[1 - c];
      fresh[c] *= inverse, keep[c] *= inverse, small_f[c] *= inverse, small_i[c] *= inverse;
    }
  }
  __device__ __forceinline__ void step(const float (&p)[3][2], float (&h)[2], float (&keep)[2]) const {
    float fresh[2], small_f[2], small_i[2];
    gates(p, keep, fresh, small_f, small_i);
#pragma unroll
    for (int c = 0; c < 2; ++c) h[c] += fresh[c] * (value(c, p[2][c]) - h[c]);
  }
  /// da/df = a (1 - a) (1 - s(f)) = a e^-f / (F + I), da/di = -(1 - a) e^-i / (F + I).
  __device__ __forceinline__ void backward(float (&p)[3][2], const float (&before)[2], const float (&dh)[2],
                                           float (&keep)[2]) const {
    float fresh[2], small_f[2], small_i[2];
    gates(p, keep, fresh, small_f, small_i);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float slope;
      const float g = value.with_slope(c, p[2][c], slope), ga = dh[c] * (before[c] - g);
      p[0][c] = ga * keep[c] * small_f[c];
      p[1][c] = -ga * fresh[c] * small_i[c];
      p[2][c] = dh[c] * fresh[c] * slope;
    }
  }
};

/// The constants of a lane's two channels, rows lane / 4 and 8 below of the warp's 16.
template <class Cell>
__device__ __forceinline__ Cell load_cell(const bf16* bias, int64_t which, int channel) {
  Cell cell;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float b[3] = {};
#pragma unroll
    for (int i = 0; i < Cell::kParts; ++i)
      b[i] = to_acc(bias[(which * Cell::kParts + i) * kWidth + channel + 8 * c]);
    cell.set(c, b);
  }
  return cell;
}

/// Segments of a launch of h * directions blocks for every four units, `at_once` of which a multiprocessor
/// runs.
inline Segments head_segments(const DiagonalScanShape& s, int64_t directions, int64_t at_once = 3) {
  const int64_t multiprocessors = device_limits().sm_count,
                blocks = s.h * directions * div_up<int64_t>(s.b, kUnits);
  if (blocks >= multiprocessors) return {1, s.t};
  return cut(s.t, 1, at_once * multiprocessors / blocks, kPositions);
}

}  // namespace occam::kernels
