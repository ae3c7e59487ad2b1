#pragma once
// Whether this thread records gradients. Kept in core because in-place writes and raw views must ask.
namespace occam {

bool grad_enabled();
void set_grad_enabled(bool enabled);

/// Records nothing while it lives.
class NoGrad {
 public:
  NoGrad() : previous_(grad_enabled()) { set_grad_enabled(false); }
  ~NoGrad() { set_grad_enabled(previous_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool previous_;
};

}  // namespace occam
