#include "nn/capture.h"

#include "core/check.h"
#include "core/grad_mode.h"

namespace occam {

uint64_t parameter_places(Module& model) {
  uint64_t hash = 14695981039346656037ull;
  model.each_parameter([&](Parameter& p) {
    hash = (hash ^ reinterpret_cast<uintptr_t>(p.value().data_ptr())) * 1099511628211ull;
  });
  return hash;
}

CapturedForward::CapturedForward(Module& model) : model_(model), replay_(model.device()) {}

Tensor CapturedForward::operator()(const Tensor& images) {
  OCCAM_CHECK(!model_.training(), ErrorKind::internal, "a captured forward pass is one of evaluation mode");
  NoGrad no_grad;
  if (images.is_cpu()) return model_(raw::to(images, model_.compute_dtype()));
  const uint64_t places = parameter_places(model_);
  if (!images_ || images_.shape() != images.shape() || images_.dtype() != model_.compute_dtype() ||
      places != places_) {
    replay_.reset();
    result_ = Tensor();
    images_ = empty(images.shape(), {model_.compute_dtype(), images.device()});
    places_ = places;
  }
  images_.copy_(images);
  replay_.run([&] { result_ = model_(images_); });
  return result_;
}

}  // namespace occam
