#include "core/rng.h"

#include <cmath>
#include <map>
#include <numbers>
#include <string>

#include "core/check.h"
#include "core/grad_mode.h"
#include "core/scope.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

uint64_t hash_name(uint64_t seed, std::string_view name) {
  // FNV-1a, then the finaliser of MurmurHash3 so that near seeds and names give unrelated keys.
  uint64_t h = 0xcbf29ce484222325u ^ (seed * 0x9E3779B97F4A7C15u);
  for (char c : name) h = (h ^ uint8_t(c)) * 0x100000001b3u;
  h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdu;
  h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53u;
  return h ^ (h >> 33);
}

uint32_t Rng::next_u32() {
  Philox4 r = philox4x32(key_, index_ >> 2, step_);
  return r.v[index_++ & 3];
}

uint64_t Rng::next_u64() {
  uint64_t high = next_u32();
  return high << 32 | next_u32();
}

float Rng::uniform() { return uniform_from_bits(next_u32()); }

double Rng::uniform(double low, double high) {
  return low + (high - low) * (double(next_u64() >> 11) * 0x1p-53);
}

double Rng::normal() {
  double u = (double(next_u64() >> 11) + 0.5) * 0x1p-53, v = uniform(0.0, 1.0);
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

int64_t Rng::below(int64_t bound) {
  OCCAM_ASSERT(bound >= 1);
  uint64_t n = uint64_t(bound), limit = -n % n;  // 2^64 mod n: draws under it would favour small results
  uint64_t draw;
  do draw = next_u64();
  while (draw < limit);
  return int64_t(draw % n);
}

namespace op_random {

namespace {
struct State {
  uint64_t seed = 0;
  int64_t start = 0;
  std::map<int, Tensor> steps;  // by device index, -1 for the CPU
  std::map<std::string, uint64_t> calls;
};
State& state() {
  thread_local State s;
  return s;
}
}  // namespace

void seed(uint64_t seed, int64_t step) {
  State& s = state();
  s.seed = seed;
  s.start = step;
  s.calls.clear();
  for (auto& [device, tensor] : s.steps) tensor.fill_(double(step));
}

uint64_t current_seed() { return state().seed; }

void begin_step(Device device) {
  state().calls.clear();
  Tensor step = step_tensor(device);
#if OCCAM_CUDA
  if (device.is_cuda()) {
    cuda::increment(step.data<int64_t>(), current_stream(device).handle);
    return;
  }
#endif
  ++*step.data<int64_t>();
}

Tensor step_tensor(Device device) {
  Tensor& step = state().steps[device.is_cpu() ? -1 : device.index];
  if (!step) step = full({1}, double(state().start), {DType::i64, device});
  return step;
}

uint64_t next_key() {
  State& s = state();
  const std::string& path = Scope::path();
  return hash_name(s.seed, path + "#" + std::to_string(s.calls[path]++));
}

Position position(Device device) { return {state().seed, state().calls, device, Tensor()}; }

void keep_step(Position& p) {
  if (p.calls == state().calls) return;
  NoGrad no_grad;
  p.step = raw::clone(step_tensor(p.device));
}

Replay::Replay(const Position& position) : other_(position) { exchange(); }
Replay::~Replay() { exchange(); }

void Replay::exchange() {
  State& s = state();
  std::swap(s.seed, other_.seed);
  std::swap(s.calls, other_.calls);
  if (other_.step) std::swap(s.steps[other_.device.is_cpu() ? -1 : other_.device.index], other_.step);
}

}  // namespace op_random

Tensor rand_uniform(const Shape& shape, double low, double high, Rng& rng) {
  Tensor t = empty(shape);
  float* p = t.data<float>();
  for (int64_t i = 0, n = t.numel(); i < n; ++i) p[i] = float(rng.uniform(low, high));
  return t;
}

Tensor rand_normal(const Shape& shape, double mean, double std, Rng& rng) {
  Tensor t = empty(shape);
  float* p = t.data<float>();
  for (int64_t i = 0, n = t.numel(); i < n; ++i) p[i] = float(mean + std * rng.normal());
  return t;
}

}  // namespace occam
