#pragma once
// Matrix products by cuBLASLt behind one plain-typed call. No CUDA header: op.cpp files may include this.
#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace occam::cuda {

/// What happens to the accumulated product before it is rounded to d. (cuBLASLt's GELU is the tanh form;
/// timm's ViT uses the exact one, which has its own product: ops/linear.)
enum class GemmEpilogue : uint8_t {
  none,
  bias,            // d = x + bias[n]
  bias_gradient_a  // d = x, and bias[m] = sum over k of op(a)[m,k]: db beside dW = dy^T x
};

/// Row-major, all sizes and strides in elements:
///
///     d[m,n] = epilogue(alpha op(a)[m,k] op(b)[k,n] + beta c[m,n])
///
/// op(a) = a stored [m,k], or with trans_a the transpose of a stored [k,m]; op(b) = b stored [k,n], or with
/// trans_b the transpose of b stored [n,k]. A linear layer is y = x w^T: trans_b with w [out,in]; its
/// gradients are dx = dy w (no transposition) and dw = dy^T x (trans_a). ld* is the distance of two rows of
/// the stored matrix; 0 means packed.
struct GemmArgs {
  bool trans_a = false, trans_b = false;
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;  // null: d is also c; used when beta is not 0
  void* d = nullptr;
  /// a and b share a dtype; c has d's. Combinations: f32 -> f32, f64 -> f64, bf16 -> bf16 or f32, f16 -> f16
  /// or f32.
  DType dtype_ab = DType::f32, dtype_cd = DType::f32;
  int64_t lda = 0, ldb = 0, ldc = 0, ldd = 0;
  /// `batch` products; stride_* is the distance of two matrices, 0 means the same matrix for all (not for d).
  int64_t batch = 1, stride_a = 0, stride_b = 0, stride_c = 0, stride_d = 0;
  double alpha = 1, beta = 0;
  /// f32 inputs are rounded to TF32. Otherwise f32 is true float32. 16-bit inputs always accumulate in f32.
  bool tf32 = false;
  GemmEpilogue epilogue = GemmEpilogue::none;
  void* bias = nullptr;  // [batch,n] input, [m] output of bias_gradient_a (no batch); of dtype_cd
};

/// Queues the product on `stream` (a cudaStream_t). The algorithm is kept for the process, so equal
/// calls give equal bits: for a large problem the fastest of the heuristic's proposals, measured at the first
/// call and kept on disk (algorithm_store.h) so that later runs give the same bits too; for others, and
/// inside a capture, the heuristic's first. Threads have their own workspace for each stream. Throws
/// Error{device} naming status and problem, Error{shape} for arguments that contradict each other.
void gemm(const GemmArgs& args, void* stream);

/// True when cuBLASLt has an algorithm for this problem (epilogues need certain dtypes and alignments).
bool gemm_supported(const GemmArgs& args, void* stream);

/// "gemm bf16 [576,192]x[192,1576] -> f32, trans_a, beta 1, epilogue none", for messages.
std::string describe(const GemmArgs& args);

}  // namespace occam::cuda
