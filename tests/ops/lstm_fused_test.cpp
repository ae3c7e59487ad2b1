// The fused backward of LSTM and GRU with as many images a block as large batches have, against the same
// heads one at a time, which have the fewest.
#include <gtest/gtest.h>

#if OCCAM_CUDA
#include <cmath>
#include <vector>

#include "autograd/engine.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "ops/lstm/op.h"

namespace occam {
namespace {

using Op = decltype(lstm);

/// y, and the gradients of sum(y * gy).
std::vector<Tensor> run(Op* op, std::vector<Tensor> in, const Tensor& gy, const Sequences& rows) {
  for (Tensor& t : in) set_requires_grad(t, true);
  Tensor y = op(in[0], in[1], in[2], in[3], in[4], rows);
  backward(y, gy);
  std::vector<Tensor> out{detach(y)};
  for (const Tensor& t : in) out.push_back(grad_of(t));
  return out;
}

void expect_near(const Tensor& got, const Tensor& want, const char* what) {
  const std::vector<double> a = got.to_vector<double>(), b = want.to_vector<double>();
  ASSERT_EQ(a.size(), b.size());
  double square = 0;
  for (double v : b) square += v * v;
  const double rms = std::sqrt(square / double(b.size()));
  ASSERT_GT(rms, 0);
  // Sums of other orders may round to the neighbouring bf16.
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_LE(std::abs(a[i] - b[i]), std::ldexp(rms + std::abs(b[i]), -7)) << what << " " << i;
}

/// b images of t tokens each or, `ragged`, of 0 to t.
void blocks_of_more_images_agree(Op* op, int64_t gates, bool ragged) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  constexpr int64_t kHeads = 34, kWidth = 64;  // 68 blocks for each part of the images
  // Long enough for the slots of inputs to be used again.
  for (const auto& [b, t] : {std::pair{9, 5}, std::pair{17, 22}, std::pair{40, 17}}) {
    Rng rng{uint64_t(b)};
    auto normal = [&](const Shape& s, double deviation) {
      return raw::to(raw::to(rand_normal(s, 0, deviation, rng), DType::bf16), cuda_device());
    };
    Sequences rows;
    Shape tokens{b, t};
    if (ragged) {
      std::vector<int32_t> offsets{0};
      for (int i = 0; i < b; ++i) offsets.push_back(offsets.back() + i * 7 % (t + 1));
      rows = {raw::to(from_vector(offsets), cuda_device()), t};
      tokens = Shape{offsets.back() + 3};
    }
    auto per_token = [&](int64_t width) {
      Shape s = tokens;
      s.push_back(kHeads), s.push_back(width);
      return normal(s, 1);
    };
    const std::vector<Tensor> in{per_token(kWidth), normal({2, kHeads, gates * kWidth, kWidth}, 0.1),
                                 normal({2, kHeads, gates * kWidth, kWidth}, 0.1),
                                 normal({2, kHeads, gates * kWidth}, 0.1),
                                 normal({2, kHeads, gates * kWidth}, 0.1)};
    const Tensor gy = per_token(2 * kWidth);
    const int axis = tokens.rank();
    const std::vector<Tensor> all = run(op, in, gy, rows);
    for (int64_t head : {0, 1, 33}) {
      auto of_head = [&](const Tensor& x, int axis) {
        return raw::clone(raw::slice(detach(x), axis, head, 1));
      };
      std::vector<Tensor> one;
      for (size_t i = 0; i < 5; ++i) one.push_back(of_head(in[i], i == 0 ? axis : 1));
      const std::vector<Tensor> want = run(op, one, of_head(gy, axis), rows);
      const char* names[] = {"y", "x", "w_ih", "w_hh", "b_ih", "b_hh"};
      for (size_t i = 0; i < 6; ++i) expect_near(of_head(all[i], i < 2 ? axis : 1), want[i], names[i]);
    }
  }
}

TEST(LstmFused, BlocksOfMoreImagesAgree) { blocks_of_more_images_agree(lstm, 4, false); }
TEST(LstmFused, GruBlocksOfMoreImagesAgree) { blocks_of_more_images_agree(gru, 3, false); }
TEST(LstmFused, RaggedBlocksAgree) { blocks_of_more_images_agree(lstm, 4, true); }
TEST(LstmFused, RaggedGruBlocksAgree) { blocks_of_more_images_agree(gru, 3, true); }

}  // namespace
}  // namespace occam
#endif
