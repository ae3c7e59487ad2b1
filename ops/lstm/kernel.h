#pragma once
// The recurrence between the products: what cannot be one large product.
#include <cstdint>

#include "core/rows.h"

namespace occam::kernels {

/// Of a GRU the rows of a unit are r, u, the new state's part of x and its part of h (with zero weights of h
/// and of x): n = tanh(z2 + r z3), h = (1 - u) n + u h_{t-1}; it has no cells.
enum class Cell { lstm, gru };

/// Gates as weights are given, and which of them a row of `gate` has its weights of x (or of h) from; -1:
/// they are 0.
OCCAM_HD constexpr int given_gates(Cell cell) { return cell == Cell::lstm ? 4 : 3; }
OCCAM_HD constexpr int given_gate(Cell cell, int gate, bool of_h) {
  if (cell == Cell::lstm || gate < 2) return gate;
  return gate == (of_h ? 3 : 2) ? 2 : -1;
}

/// Images are sequences, tokens rows: `b t` below is one axis of rows() in the ragged form.
struct LstmShape : SequenceRows {
  int64_t h = 0, w = 0;
  Cell cell = Cell::lstm;

  /// The row of step n of image i, one of its length(i).
  OCCAM_HD int64_t row(int64_t i, int64_t direction, int64_t n) const {
    return begin(i) + (direction == 0 ? n : length(i) - 1 - n);
  }
};

/// On the CPU: the products with x are made here too.
template <class T>
struct LstmForwardCpu {
  LstmShape s;
  int64_t width = 0;                      // of x
  const T *x = nullptr, *w_ih = nullptr;  // [b,t,h,i], [2,h,4w,i]
  const T *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr;
  T *y = nullptr, *cells = nullptr;
};

/// T: storage of weights, outputs, cells and their gradients; A: of the gates (f32 for f32 and bf16).
template <class T, class A>
struct LstmForward {
  LstmShape s;
  const T *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr;  // [2,h,4w,w], [2,h,4w] twice
  const A* z = nullptr;                                       // [2,h,b,t,4w]: w_ih x
  T* y = nullptr;                                             // [b,t,h,2w]
  T* cells = nullptr;  // c, laid out like y; null when no backward follows
};

template <class T, class A>
struct LstmBackward {
  LstmShape s;
  const T *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr;
  const A* z = nullptr;                     // [2,h,b,t,4w]: w_ih x + w_hh h_{t-1}
  const T *cells = nullptr, *gy = nullptr;  // [b,t,h,2w]
  T* g_gates = nullptr;                     // [2,h,b,t,4w]: gradient of the gates before their activation
};

/// Backward of bf16 heads, all of it in one pass over time (kernel_fused_bwd.cu).
struct LstmFusedBackward {
  LstmShape s;
  int images = 0;  // that a block carries through time
  // Weights as given, of a GRU with three rows a unit; so are their gradients.
  const bf16 *x = nullptr, *w_ih = nullptr, *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr;
  const bf16 *y = nullptr, *cells = nullptr, *gy = nullptr;
  // Those that are wanted; null: not.
  bf16* gx = nullptr;
  float *gw_ih = nullptr, *gw_hh = nullptr, *gb_ih = nullptr, *gb_hh = nullptr;
  // What blocks make, null like the sums of it: gx of either direction, laid out like y; of the weights'
  // gradients a part for each `images` images, [parts,2,h,256,128] and [parts,2,h,256].
  bf16* gx_parts = nullptr;
  float *gw_parts = nullptr, *gb_parts = nullptr;
};
/// How many images a block should have; 0 where the fused form does not fit: it needs x (of `width`) and
/// states of width 64, pointers at multiples of 16 bytes and a Hopper GPU.
int lstm_bwd_images(const LstmFusedBackward& a, int64_t width);
void lstm_bwd_fused(const LstmFusedBackward& a, void* stream);

/// Forward of bf16 heads with the input products in it (kernel_persistent_fwd.cu). `fits`: x (of `width`) and
/// states of width 64, pointers at multiples of 16 bytes, a GPU with bf16 products.
struct LstmPersistentForward {
  LstmShape s;
  // Weights as given, of a GRU with three rows a unit.
  const bf16 *x = nullptr, *w_ih = nullptr, *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr;
  bf16 *y = nullptr, *cells = nullptr;  // as of LstmForward
  int64_t cells_after_y = 0;            // bytes; set by the launch
};
bool lstm_fits_persistent(const LstmPersistentForward& a, int64_t width);
void lstm_fwd_persistent(LstmPersistentForward a, void* stream);

/// before [2,h,b,t,w]: the state before each step, y [b,t,h,2w] of the neighbouring row, 0 where a direction
/// starts. Rows of no sequence are left alone.
template <class T>
void lstm_states_before_cpu(const LstmShape& s, const T* y, T* before);
template <class T>
void lstm_states_before(const LstmShape& s, const T* y, T* before, void* stream);

template <class T>
void lstm_fwd_cpu(const LstmForwardCpu<T>& a);
template <class T>
void lstm_bwd_cpu(const LstmBackward<T, T>& a);
template <class T>
void lstm_fwd(const LstmForward<T, float>& a, void* stream);
template <class T>
void lstm_bwd(const LstmBackward<T, float>& a, void* stream);

}  // namespace occam::kernels
