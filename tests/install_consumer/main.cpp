#include <cstdio>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "ops/softmax/op.h"

int main() {
  occam::Tensor x = occam::ones({2, 4});
  occam::set_requires_grad(x, true);
  occam::Tensor y = occam::softmax(x);
  occam::backward(y, occam::ones({2, 4}));
  std::printf("softmax of ones: %g, gradient %g\n", y.to_vector<double>()[0],
              occam::grad_of(x).to_vector<double>()[0]);
  return y.to_vector<double>()[0] == 0.25 ? 0 : 1;
}
