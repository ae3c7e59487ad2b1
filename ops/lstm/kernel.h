#pragma once
// The recurrence between the products: what cannot be one large product.
#include <cstdint>

namespace occam::kernels {

struct LstmShape {
  int64_t b = 0, t = 0, h = 0, w = 0;
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

template <class T>
void lstm_fwd_cpu(const LstmForward<T, T>& a);
template <class T>
void lstm_bwd_cpu(const LstmBackward<T, T>& a);
template <class T>
void lstm_fwd(const LstmForward<T, float>& a, void* stream);
template <class T>
void lstm_bwd(const LstmBackward<T, float>& a, void* stream);

}  // namespace occam::kernels
