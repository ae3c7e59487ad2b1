#include "nn/parameter.h"

#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"

namespace occam {

void Parameter::adopt(Tensor master) {
  master_ = std::move(master);
  device_ = master_.device();
  shadow_ = Tensor();
  set_requires_grad(master_, trainable_);
}

void Parameter::initialize(uint64_t key, Device device) {
  Tensor values = empty(shape_);
  init_(values, key);
  if (master_)
    set_values(values);
  else
    adopt(raw::to(values, device));
}

void Parameter::set_values(const Tensor& values) {
  OCCAM_CHECK(values.shape() == shape_, ErrorKind::internal, "values of shape {} for a parameter of shape {}",
              values.shape().str(), shape_.str());
  NoGrad no_grad;
  if (master_)
    master_.copy_(values);
  else
    adopt(empty(shape_, {DType::f32, device_}).copy_(values));
}

const Tensor& Parameter::master() const {
  OCCAM_CHECK(master_.defined(), ErrorKind::internal,
              "a parameter of shape {} has no values yet: call initialize() or load_state_dict()",
              shape_.str());
  return master_;
}

const Tensor& Parameter::value() { return compute_dtype_ == DType::f32 ? master() : shadow(); }

const Tensor& Parameter::shadow() {
  if (compute_dtype_ == DType::f32) return shadow_;
  if (!shadow_) {
    shadow_ = raw::to(detach(master()), compute_dtype_);
    share_grad(shadow_, master_);
    shadow_is_current();
  } else if (shadow_version_ != master_.version()) {
    NoGrad no_grad;
    shadow_.copy_(master_);
    shadow_is_current();
  }
  return shadow_;
}

void Parameter::set_compute_dtype(DType dtype) {
  OCCAM_CHECK(is_floating(dtype), ErrorKind::usage, "{} is no dtype to compute in", name_of(dtype));
  if (dtype == compute_dtype_) return;
  compute_dtype_ = dtype;
  shadow_ = Tensor();
}

void Parameter::set_trainable(bool trainable) {
  trainable_ = trainable;
  if (!master_) return;
  set_requires_grad(master_, trainable);
  if (shadow_) share_grad(shadow_, master_);
}

Tensor Parameter::grad() const { return grad_of(master()); }
void Parameter::zero_grad() { occam::zero_grad(master()); }

void Parameter::to(Device device) {
  device_ = device;
  if (master_ && master_.device() != device) adopt(raw::to(detach(master_), device));
}

}  // namespace occam
