#pragma once
// Random numbers by name. A stream is a 64-bit key made from a seed and a name; a number is addressed by
// (step, element), so results do not depend on threads, device or how many other numbers were drawn.
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "core/philox.h"
#include "core/tensor.h"

namespace occam {

uint64_t hash_name(uint64_t seed, std::string_view name);

/// Sequential generator on the host, for data order, augmentation and initialisation.
class Rng {
 public:
  explicit Rng(uint64_t key = 0, uint64_t step = 0) : key_(key), step_(step) {}
  Rng(uint64_t seed, std::string_view name, uint64_t step = 0) : Rng(hash_name(seed, name), step) {}
  uint32_t next_u32();
  uint64_t next_u64();
  float uniform();  // [0, 1)
  double uniform(double low, double high);
  double normal();               // standard normal, Box-Muller on 53-bit uniforms
  int64_t below(int64_t bound);  // [0, bound), unbiased; bound >= 1
  bool bernoulli(double p) { return uniform(0.0, 1.0) < p; }
  /// How many 32-bit numbers were drawn: number n is lane n % 4 of philox4x32(key, n / 4, step).
  uint64_t position() const { return index_; }

 private:
  uint64_t key_, step_, index_ = 0;
};

/// Randomness of ops (dropout, drop path) in a training step. The step counter lives in device memory, so a
/// captured step replays with new numbers. State is (seed, step).
namespace op_random {
/// Seed and step of this thread's training run. The i64 step tensor of every device is set to `step`.
void seed(uint64_t seed, int64_t step = 0);
uint64_t current_seed();
/// Adds one to the step of `device` and restarts call counting; call once before each training step.
void begin_step(Device device);
/// i64 [1] on `device`: what kernels read.
Tensor step_tensor(Device device);
/// Key for the next random op: hash of the seed, the scope path and the number of earlier random calls in
/// this path since begin_step.
uint64_t next_key();

/// What the keys and numbers of coming random ops depend on.
struct Position {
  uint64_t seed = 0;
  std::map<std::string, uint64_t> calls;  // by scope path
  Device device;
  Tensor step;  // a copy; undefined: the device's own
};
Position position(Device device);
/// Copies the step number, when keys were drawn since `p`: later steps must not change what is drawn again.
void keep_step(Position& p);

/// While it lives, random ops of this thread draw what they drew from `position` on.
class Replay {
 public:
  explicit Replay(const Position& position);
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

 private:
  void exchange();
  Position other_;
};
}  // namespace op_random

/// New f32 tensors of random numbers, for initialisation and tests.
Tensor rand_uniform(const Shape& shape, double low, double high, Rng& rng);
Tensor rand_normal(const Shape& shape, double mean, double std, Rng& rng);

}  // namespace occam
