#include "core/io/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/rng.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

/// Bytes of a file with this header and so many data bytes.
std::string file_of(const std::string& header, size_t data_bytes) {
  uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\1');
}

class SafetensorsTest : public ::testing::Test {
 protected:
  void refused(const std::string& bytes, const std::string& part) {
    write_bytes(path_, bytes);
    EXPECT_OCCAM_ERROR(Safetensors{path_}, ErrorKind::input, part);
    EXPECT_OCCAM_ERROR(Safetensors{path_}, ErrorKind::input, path_.string());
  }
  TempFolder folder_;
  fs::path path_ = folder_ / "t.safetensors";
};

TEST_F(SafetensorsTest, EveryTypeRoundTrips) {
  Tensor base = from_vector<float>({0, 1, 0, 1, 1, 0}, {2, 3});
  NamedTensors written;
  // Small elements first: the writer must still align the large ones.
  for (DType dtype :
       {DType::u8, DType::bool_, DType::bf16, DType::f64, DType::f16, DType::f32, DType::i32, DType::i64})
    written.emplace_back(std::string(name_of(dtype)), raw::to(base, dtype));
  written.emplace_back("scalar", full({}, 2.5));
  written.emplace_back("empty", zeros({0, 3}));
  write_safetensors(path_, written, {{"who", "a \"test\"\n"}, {"model", "{\"dim\": 3}"}});

  Safetensors read(path_);
  EXPECT_EQ(read.metadata(),
            (std::map<std::string, std::string>{{"who", "a \"test\"\n"}, {"model", "{\"dim\": 3}"}}));
  ASSERT_EQ(read.entries().size(), written.size());
  for (size_t i = 0; i < written.size(); ++i) {
    const SafetensorsEntry& entry = read.entries()[i];
    const Tensor& original = written[i].second;
    EXPECT_EQ(entry.name, written[i].first);
    EXPECT_EQ(entry.dtype, original.dtype());
    EXPECT_EQ(entry.shape, original.shape());
    EXPECT_EQ(entry.tensor.dtype(), original.dtype());
    EXPECT_EQ(entry.tensor.to_vector<double>(), original.to_vector<double>()) << entry.name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(entry.tensor.data_ptr()) % size_of(entry.dtype), 0u);
  }
  EXPECT_EQ(read.get("scalar").item(), 2.5);
  EXPECT_TRUE(read.contains("empty"));
  EXPECT_OCCAM_ERROR(read.get("absent"), ErrorKind::input, "no tensor 'absent'");
}

TEST_F(SafetensorsTest, BitPatternsSurvive) {
  std::vector<float> values{-0.0f, 1e-45f, INFINITY, -INFINITY, NAN, 3.4028235e38f};
  write_safetensors(path_, {{"x", from_vector(values)}});
  Safetensors read(path_);
  EXPECT_EQ(std::memcmp(read.get("x").data<float>(), values.data(), values.size() * sizeof(float)), 0);
}

TEST_F(SafetensorsTest, StridedTensorsAreWrittenInRowMajorOrder) {
  Tensor t = raw::transpose(from_vector<float>({1, 2, 3, 4, 5, 6}, {2, 3}), 0, 1);
  write_safetensors(path_, {{"t", t}});
  EXPECT_EQ(Safetensors(path_).get("t").to_vector<float>(), (std::vector<float>{1, 4, 2, 5, 3, 6}));
}

TEST_F(SafetensorsTest, ATensorOutlivesTheReaderAndItsWritesStayInMemory) {
  write_safetensors(path_, {{"x", full({4}, 3)}});
  std::string before = read_bytes(path_);
  Tensor x;
  {
    Safetensors read(path_);
    x = read.get("x");
  }
  EXPECT_EQ(x.to_vector<float>(), std::vector<float>(4, 3));
  x.fill_(7);
  EXPECT_EQ(x.to_vector<float>(), std::vector<float>(4, 7));
  EXPECT_EQ(read_bytes(path_), before);
}

TEST_F(SafetensorsTest, ATensorAtAnOddAddressIsCopied) {
  std::string header = R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  std::string bytes = file_of(header, 9);
  float values[2] = {1.5f, -2.0f};
  std::memcpy(bytes.data() + bytes.size() - 8, values, 8);
  write_bytes(path_, bytes);
  Tensor x = Safetensors(path_).get("x");
  EXPECT_EQ(x.to_vector<float>(), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(x.data_ptr()) % 4, 0u);
}

TEST_F(SafetensorsTest, HeaderMayBePaddedAndEmpty) {
  write_bytes(path_, file_of("{}      ", 0));
  EXPECT_TRUE(Safetensors(path_).entries().empty());
  write_safetensors(path_, {}, {{"k", "v"}});
  EXPECT_EQ(Safetensors(path_).metadata().at("k"), "v");
}

TEST_F(SafetensorsTest, LyingFilesAreRefused) {
  auto one = [](const std::string& fields) { return "{\"w\":{" + fields + "}}"; };
  refused("", "too short");
  refused("1234567", "too short");
  refused(std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8) + "{}", "truncated");
  refused(std::string("\x10\0\0\0\0\0\0\0{}", 10), "truncated");
  refused(file_of("[]", 0), "does not begin with '{'");
  refused(file_of("", 0), "does not begin with '{'");
  refused(file_of("{\"a\":", 0), "not valid JSON at byte");
  refused(file_of("{} x", 0), "not valid JSON");
  refused(file_of("{\"w\":3}", 0), "a number as 'w'");
  refused(file_of("{\"__metadata__\":{\"k\":1}}", 0), "in __metadata__ under \"k\"");
  refused(file_of("{\"__metadata__\":{\"k\":{}}}", 0), "in __metadata__ under \"k\"");
  refused(file_of("{\"__metadata__\":{\"k\":\"a\",\"k\":\"b\"}}", 0), "there twice");
  refused(file_of(one(R"("dtype":"F32","shape":[1])"), 4), "has no \"data_offsets\"");
  refused(file_of(one(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"), 4), "there twice");
  refused(file_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1)"), 4), "unknown field \"x\"");
  refused(file_of(one(R"("dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4])"), 4),
          "F8_E4M3, which Occam does not read");
  refused(file_of(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4), "negative number -1");
  refused(file_of(one(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), 4), "the number 1.0");
  refused(file_of(one(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])"), 4), "a list");
  refused(file_of(one(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), 4), "a number in \"shape\"");
  refused(file_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4), "two data_offsets");
  refused(file_of(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), 4), "9 axes");
  refused(file_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4), "before it begins");
  refused(file_of(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), 4), "truncated");
  refused(file_of(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4),
          "takes 8 bytes, but 4 are stored");
  refused(file_of(one(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])"), 4),
          "overflows");
  refused(file_of(one(R"("dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0])"), 0),
          "overflows");
  refused(file_of(one(R"("dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0])"), 0),
          "overflows");
  refused(file_of(one(R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4])"), 4),
          "the number");
  refused(file_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), 8),
          "4 bytes follow the last tensor");
  refused(file_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8), "leave a gap");
  refused(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                  R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                  8),
          "overlap");
  refused(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                  2),
          "'a' is there twice");
  std::string boolean = file_of(one(R"("dtype":"BOOL","shape":[2],"data_offsets":[0,2])"), 2);
  boolean.back() = '\2';
  refused(boolean, "bytes other than 0 and 1");
  EXPECT_OCCAM_ERROR(Safetensors(folder_ / "absent"), ErrorKind::input, "No such file");
  EXPECT_OCCAM_ERROR(Safetensors{folder_.path()}, ErrorKind::input, "it is a folder");
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  write_safetensors(path_, {{"a", full({3}, 1)}, {"b", zeros({2, 2}, {DType::u8, kCPU})}}, {{"k", "v"}});
  std::string whole = read_bytes(path_);
  for (size_t length = 0; length < whole.size(); ++length) {
    write_bytes(path_, whole.substr(0, length));
    EXPECT_THROW(Safetensors{path_}, Error) << length;
  }
}

TEST_F(SafetensorsTest, ManyTensorsTakeLinearTime) {
  std::string header = "{";
  for (int i = 0; i < 200000; ++i)
    header += fmt::format(R"({}"t{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i ? "," : "", i);
  write_bytes(path_, file_of(header + "}", 0));
  EXPECT_EQ(Safetensors(path_).entries().size(), 200000u);
}

TEST_F(SafetensorsTest, WriterRefusesBadNames) {
  Tensor t = zeros({1});
  EXPECT_OCCAM_ERROR(write_safetensors(path_, {{"a", t}, {"a", t}}), ErrorKind::usage, "'a' is there twice");
  EXPECT_OCCAM_ERROR(write_safetensors(path_, {{"__metadata__", t}}), ErrorKind::usage, "reserved");
  EXPECT_FALSE(fs::exists(path_));
}

// Flipped bits, changed digits, removed, doubled and inserted bytes, and lying header lengths. Whatever
// happens, the reader throws an Error or gives tensors that lie inside the file.
TEST_F(SafetensorsTest, MutatedFilesNeverDoWorseThanAnError) {
  write_safetensors(path_,
                    {{"blocks.0.w", full({3, 5}, 1)},
                     {"b", zeros({7}, {DType::bf16, kCPU})},
                     {"flag", ones({3}, {DType::bool_, kCPU})},
                     {"n", full({}, 4, {DType::i64, kCPU})}},
                    {{"model", "{\"dim\":3}"}});
  const std::string whole = read_bytes(path_);
  const std::string alphabet = "0123456789-.eE[]{}\",:FUBIO \\nul\x7f\xff";
  Rng rng(1, "safetensors mutations");
  int accepted = 0, refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = whole;
    int64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    for (int64_t change = 1 + rng.below(2); change > 0 && !bytes.empty(); --change) {
      // Every other time inside the header, where the format is decided.
      int64_t range =
          rng.below(2) ? std::min<int64_t>(8 + header, int64_t(bytes.size())) : int64_t(bytes.size());
      size_t at = size_t(rng.below(range));
      switch (rng.below(6)) {
        case 0:
          bytes[at] = char(bytes[at] ^ (1 << rng.below(8)));
          break;
        case 1:
          bytes[at] = alphabet[size_t(rng.below(int64_t(alphabet.size())))];
          break;
        case 2:
          bytes.erase(at, size_t(1 + rng.below(4)));
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, size_t(1 + rng.below(40))));
          break;
        case 4:
          bytes.insert(at, 1, alphabet[size_t(rng.below(int64_t(alphabet.size())))]);
          break;
        default:
          bytes[size_t(rng.below(std::min<int64_t>(8, int64_t(bytes.size()))))] = char(rng.below(256));
      }
    }
    write_bytes(path_, bytes);
    try {
      Safetensors read(path_);
      ++accepted;
      for (const auto& entry : read.entries()) {
        ASSERT_LE(size_t(entry.tensor.numel()) * size_of(entry.dtype), bytes.size());
        entry.tensor.to_vector<double>();
      }
    } catch (const Error& e) {
      ++refused;
      EXPECT_EQ(int(e.kind()), int(ErrorKind::input)) << e.what();
    }
  }
  // Both paths must have been taken, or the mutations test nothing.
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace occam
