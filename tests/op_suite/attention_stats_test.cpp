// attention_stats by key, at the lengths of common models: closer than the suite's error model asks for.
#include <gtest/gtest.h>

#include <cmath>

#include "core/device.h"
#include "ops/attention_stats/op.h"
#include "tests/op_suite/suite.h"

namespace occam::suite {
namespace {

class AttentionStats : public testing::TestWithParam<std::tuple<std::string, bool, DType>> {};
INSTANTIATE_TEST_SUITE_P(
    Lengths, AttentionStats,
    testing::Combine(testing::Values<std::string>("2x17x2x8", "1x50x3x16", "1x65x2x32",
                                                  "2x130x1x24-two-prefix", "1x197x1x64", "1x257x1x128",
                                                  "1x300x2x16-streaming", "1x577x1x16", "1x1025x1x8",
                                                  "1x65x1x16-nearly-uniform", "2x197x2x64-streaming",
                                                  "1x66x1x64-two-prefix-streaming", "1x1153x1x8"),
                     testing::Bool(), testing::Values(DType::f32, DType::bf16)));

TEST_P(AttentionStats, EveryKeyAgreesWithTheMaterialisedMap) {
  const auto [name, on_gpu, dtype] = GetParam();
  if (on_gpu && !cuda_available()) GTEST_SKIP() << "no GPU";
  const spec::Spec* op = nullptr;
  const spec::Sample* sample = nullptr;
  for (const spec::Spec& each : spec::spec_table())
    if (each.folder() == "attention_stats")
      for (const spec::Sample& s : each.samples())
        if (s.name == name) op = &each, sample = &s;
  ASSERT_NE(sample, nullptr);
  const std::vector<Tensor> qkv = make_inputs(*op, *sample, dtype);
  spec::Array map_input(qkv[0].shape());
  const std::vector<float> stored = qkv[0].to_vector<float>();
  map_input.v.assign(stored.begin(), stored.end());
  const spec::Array expected = sample->naive({map_input}).at(0);
  const Tensor found = sample->call({raw::to(qkv[0], on_gpu ? cuda_device() : kCPU)}).at(0);
  const std::vector<float> v = found.to_vector<float>();
  const int64_t images = expected.size(0), heads = expected.size(1), tokens = sample->inputs[0].shape[1];
  ASSERT_EQ(found.shape(), expected.shape);
  for (int64_t map = 0; map < images * heads; ++map)
    for (int64_t set = 0; set < kAttentionRowSets; ++set)
      for (int64_t k = 0; k < kAttentionStatCount; ++k) {
        const auto at = size_t((map * kAttentionRowSets + set) * kAttentionStatCount + k);
        const double e = expected.v[at], f = v[at];
        SCOPED_TRACE(std::string(kAttentionStatNames[size_t(k)]) + " of row set " + std::to_string(set));
        ASSERT_EQ(std::isnan(e), std::isnan(f));
        if (std::isnan(e)) continue;
        EXPECT_LE(std::abs(f - e), 1e-4 * std::max(1.0, std::abs(e)));
        if (k != kThresholdShare && k != kThresholdShareUniform && k != kMassSupport) continue;
        // A mean of counts: whole once multiplied by rows and tokens.
        const int64_t prefix = name.ends_with("two-prefix") ? 2 : 1;
        const int64_t rows = set == int(AttentionRows::all)   ? tokens
                             : set == int(AttentionRows::cls) ? 1
                                                              : tokens - prefix;
        EXPECT_EQ(std::llround(f * double(rows * tokens)), std::llround(e * double(rows * tokens)));
      }
}

}  // namespace
}  // namespace occam::suite
