#include "nn/train/loss.h"

#include "ops/cross_entropy/op.h"
#include "ops/elementwise/op.h"

namespace occam {

Tensor label_loss(const std::vector<Tensor>& heads, const Batch& batch, double smoothing) {
  Tensor targets = batch.targets, total;
  if (targets && smoothing > 0)
    targets = add_scalar(mul_scalar(targets, 1 - smoothing), smoothing / double(targets.size(1)));
  for (const Tensor& logits : heads) {
    Tensor loss =
        targets ? soft_cross_entropy(logits, targets) : cross_entropy(logits, batch.labels, smoothing);
    if (heads.size() > 1) loss = mul_scalar(loss, 1 / double(heads.size()));
    total = total ? add(total, loss) : loss;
  }
  return total;
}

}  // namespace occam
