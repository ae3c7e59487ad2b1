#include "nn/mixers/bilstm/wide.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/check.h"

namespace occam {

namespace {

constexpr std::string_view kMark = ".weight_ih_l0";
constexpr std::string_view kHeadProj = "head_proj.weight";

class Converter {
 public:
  Converter(const NamedTensors& tensors, int64_t heads) : heads_(heads) {
    OCCAM_CHECK(heads > 0, ErrorKind::usage, "{} heads", heads);
    for (const auto& [name, tensor] : tensors) all_[name] = raw::to(raw::to(tensor, kCPU), DType::f32);
  }

  /// X.weight_ih [2, h, 4k, w] and so on, of both directions.
  void lstm(const std::string& x, NamedTensors& out) {
    for (const char* part : {"weight_ih", "weight_hh"}) {
      const Tensor forward = matrix(x + "." + part + "_l0");
      const int64_t wide = forward.size(0) / 4, columns = forward.size(1);
      Tensor blocks = empty({2, heads_, 4 * split(x, wide), split(x, columns)});
      for (int64_t direction : {0, 1}) gates(x, std::string(part) + suffix(direction), blocks, direction);
      out.emplace_back(x + "." + part, blocks);
    }
    for (const char* part : {"bias_ih", "bias_hh"}) {
      const int64_t wide = take(x + "." + part + "_l0").numel() / 4, k = split(x, wide);
      Tensor blocks = empty({2, heads_, 4 * k});
      for (int64_t direction : {0, 1}) {
        const std::string name = x + "." + part + suffix(direction);
        const Tensor t = take(name);
        OCCAM_CHECK(t.numel() == 4 * wide, ErrorKind::input, "{} has shape {}, expected [{}]", name,
                    t.shape().str(), 4 * wide);
        for (int64_t gate = 0; gate < 4; ++gate)
          for (int64_t h = 0; h < heads_; ++h)
            std::copy_n(t.data<float>() + gate * wide + h * k, k,
                        blocks.data<float>() + ((direction * heads_ + h) * 4 + gate) * k);
      }
      out.emplace_back(x + "." + part, blocks);
    }
  }

  /// [hw, 2hk] -> [h, w, 2k].
  Tensor head_proj(const std::string& name) {
    const Tensor t = matrix(name);
    const int64_t w = split(name, t.size(0)), k2 = split(name, t.size(1)), k = k2 / 2;
    OCCAM_CHECK(k2 == 2 * k, ErrorKind::input, "{} has shape {}, expected two states a head", name,
                t.shape().str());
    Tensor blocks = empty({heads_, w, k2});
    // Column of the wide matrix of direction r and state j of head h.
    auto by_head = [&](int64_t h, int64_t r, int64_t j) { return h * k2 + r * k + j; };
    auto by_direction = [&](int64_t h, int64_t r, int64_t j) { return r * heads_ * k + h * k + j; };
    auto fill = [&](auto column) {
      Tensor rest = raw::clone(t);  // what the blocks leave out
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t o = 0; o < w; ++o)
          for (int64_t j = 0; j < k2; ++j) {
            float& v = rest.data<float>()[(h * w + o) * t.size(1) + column(h, j / k, j % k)];
            blocks.data<float>()[(h * w + o) * k2 + j] = std::exchange(v, 0.0f);
          }
      const std::vector<float> left = rest.to_vector<float>();
      return std::all_of(left.begin(), left.end(), [](float v) { return v == 0; });
    };
    OCCAM_CHECK(fill(by_head) || fill(by_direction), ErrorKind::input,
                "{}: there are weights outside the blocks of {} heads", name, heads_);
    return blocks;
  }

 private:
  static std::string suffix(int64_t direction) { return direction == 0 ? "_l0" : "_l0_reverse"; }

  const Tensor& take(const std::string& name) const {
    const auto found = all_.find(name);
    OCCAM_CHECK(found != all_.end(), ErrorKind::input,
                "{} is missing: the LSTM must be bidirectional, with biases", name);
    return found->second;
  }
  const Tensor& matrix(const std::string& name) const {
    const Tensor& t = take(name);
    OCCAM_CHECK(t.rank() == 2, ErrorKind::input, "{} has shape {}, expected a matrix", name, t.shape().str());
    return t;
  }
  int64_t split(const std::string& name, int64_t size) const {
    OCCAM_CHECK(size > 0 && size % heads_ == 0, ErrorKind::input, "{}: {} heads do not divide {}", name,
                heads_, size);
    return size / heads_;
  }

  void gates(const std::string& x, const std::string& part, Tensor& blocks, int64_t direction) {
    const std::string name = x + "." + part;
    const Tensor& t = matrix(name);
    const int64_t k = blocks.size(2) / 4, i = blocks.size(3), columns = heads_ * i;
    OCCAM_CHECK(t.size(0) == 4 * heads_ * k && t.size(1) == columns, ErrorKind::input,
                "{} has shape {}, expected [{},{}]", name, t.shape().str(), 4 * heads_ * k, columns);
    for (int64_t row = 0; row < t.size(0); ++row) {
      const int64_t gate = row / (heads_ * k), h = row / k % heads_, j = row % k;
      const float* from = t.data<float>() + row * columns;
      std::copy_n(from + h * i, i,
                  blocks.data<float>() + (((direction * heads_ + h) * 4 + gate) * k + j) * i);
      for (int64_t n = 0; n < columns; ++n)
        OCCAM_CHECK(n / i == h || from[n] == 0, ErrorKind::input,
                    "{}[{},{}] is {}: a weight outside the blocks of {} heads", name, row, n, from[n],
                    heads_);
    }
  }

  int64_t heads_;
  std::map<std::string, Tensor> all_;
};

}  // namespace

std::vector<std::string> wide_lstms(const NamedTensors& tensors) {
  std::vector<std::string> lstms;
  for (const auto& [name, tensor] : tensors)
    if (name.ends_with(kMark)) lstms.push_back(name.substr(0, name.size() - kMark.size()));
  return lstms;
}

NamedTensors blocks_of_wide_lstm(const NamedTensors& tensors, int64_t heads) {
  Converter convert(tensors, heads);
  const std::vector<std::string> lstms = wide_lstms(tensors);
  auto of_lstm = [&](const std::string& name) {
    return std::any_of(lstms.begin(), lstms.end(), [&](const std::string& x) {
      return name.starts_with(x + ".") && name.find("_l0", x.size()) != std::string::npos;
    });
  };
  NamedTensors out;
  for (const auto& [name, tensor] : tensors) {
    if (name.ends_with(kMark)) {
      convert.lstm(name.substr(0, name.size() - kMark.size()), out);
    } else if (of_lstm(name)) {
      continue;
    } else if (name.ends_with(kHeadProj) && tensor.rank() == 2) {
      out.emplace_back(name, convert.head_proj(name));
    } else if (name.ends_with("head_proj.bias") && tensor.rank() == 1) {
      OCCAM_CHECK(tensor.numel() % heads == 0, ErrorKind::input, "{}: {} heads do not divide {}", name, heads,
                  tensor.numel());
      out.emplace_back(name, raw::reshape(tensor, {heads, tensor.numel() / heads}));
    } else {
      out.emplace_back(name, tensor);
    }
  }
  return out;
}

}  // namespace occam
