// Model files that lie, are cut short, or hold another model: exit 2, the file and the place named, and the
// results that are there stay as they are.
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

/// A safetensors file taken apart.
struct Parts {
  Json header;
  std::string data;

  explicit Parts(const std::string& bytes) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    header = Json::parse(bytes.substr(8, length));
    data = bytes.substr(8 + length);
  }
  std::string bytes() const { return with_header(header.dump()); }
  std::string with_header(const std::string& text) const { return length_bytes(text.size()) + text + data; }
  static std::string length_bytes(uint64_t length) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes;
  }
  Json& tensor(const char* name) { return header.at(name); }
  /// Takes a tensor out whole: entry, bytes, and the offsets of what follows.
  void remove(const char* name) {
    int64_t begin = header[name]["data_offsets"][0], end = header[name]["data_offsets"][1];
    data.erase(size_t(begin), size_t(end - begin));
    header.erase(name);
    for (auto& [key, entry] : header.items())
      if (key != "__metadata__" && entry["data_offsets"][0] >= end)
        for (Json& offset : entry["data_offsets"]) offset = offset.get<int64_t>() - (end - begin);
  }
  void add(const char* name, const Json& shape, size_t bytes) {
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + bytes}}};
    data += std::string(bytes, '\0');
  }
  void set_structure(const char* key, const Json& value) {
    Json structure = Json::parse(header["__metadata__"]["occam.model"].get<std::string>());
    structure[key] = value;
    header["__metadata__"]["occam.model"] = structure.dump();
  }
};

struct WrongFile {
  const char* name;
  std::function<std::string(Parts)> make;
  Words parts;  // beside the file's name
};

/// One change of the parts, then whole again.
std::function<std::string(Parts)> changed(std::function<void(Parts&)> change) {
  return [change](Parts p) {
    change(p);
    return p.bytes();
  };
}

constexpr const char* kWeight = "blocks.0.attn.qkv.weight";  // [24, 8]

const std::vector<WrongFile>& wrong_files() {
  static const std::vector<WrongFile> files{
      {"empty", [](Parts) { return std::string(); }, {"get it again"}},
      {"seven bytes", [](Parts) { return std::string(7, '\1'); }, {"get it again"}},
      {"header past the end",
       [](Parts p) { return p.bytes().replace(0, 8, Parts::length_bytes(p.bytes().size())); },
       {"header"}},
      {"header of 2^63 bytes",
       [](Parts p) { return p.bytes().replace(0, 8, Parts::length_bytes(uint64_t(1) << 63)); },
       {"header"}},
      {"header of 2^64 - 8 bytes",
       [](Parts p) { return p.bytes().replace(0, 8, Parts::length_bytes(~uint64_t(7))); },
       {"header"}},
      {"header is no JSON", [](Parts p) { return p.with_header("{\"a\":"); }, {"header"}},
      {"header is a list", [](Parts p) { return p.with_header("[1, 2]"); }, {"header"}},
      {"header is very deep", [](Parts p) { return p.with_header(std::string(200'000, '[')); }, {"header"}},
      {"header of nothing", [](Parts p) { return p.with_header("{}"); }, {"bytes"}},
      {"cut short",
       [](Parts p) {
         p.data.resize(p.data.size() - 10);
         return p.bytes();
       },
       {"truncated", "get it again"}},
      {"longer than its tensors", [](Parts p) { return p.bytes() + "more"; }, {"bytes"}},
      {"offset past the end",
       changed([](Parts& p) { p.tensor(kWeight)["data_offsets"][1] = 1 << 30; }),
       {kWeight, "truncated"}},
      {"offset of 2^64",
       changed([](Parts& p) { p.tensor(kWeight)["data_offsets"][1] = 18446744073709551615u; }),
       {kWeight}},
      {"offset below zero", changed([](Parts& p) { p.tensor(kWeight)["data_offsets"][0] = -8; }), {kWeight}},
      {"offset that is a text",
       changed([](Parts& p) { p.tensor(kWeight)["data_offsets"][0] = "0"; }),
       {kWeight}},
      {"ends before it begins",
       changed([](Parts& p) {
         std::swap(p.tensor(kWeight)["data_offsets"][0], p.tensor(kWeight)["data_offsets"][1]);
       }),
       {kWeight, "before it begins"}},
      {"overlapping",
       changed([](Parts& p) {
         p.tensor("blocks.1.attn.qkv.weight")["data_offsets"] = p.tensor(kWeight)["data_offsets"];
       }),
       {"blocks."}},
      {"one offset",
       changed([](Parts& p) { p.tensor(kWeight)["data_offsets"] = {0}; }),
       {kWeight, "two data_offsets"}},
      {"half as wide a type",
       changed([](Parts& p) { p.tensor(kWeight)["dtype"] = "F16"; }),
       {kWeight, "F16", "damaged"}},
      {"twice as wide a type",
       changed([](Parts& p) { p.tensor(kWeight)["dtype"] = "F64"; }),
       {kWeight, "F64", "damaged"}},
      {"integers",
       changed([](Parts& p) { p.tensor(kWeight)["dtype"] = "I32"; }),
       {kWeight, "i32", "check model.name"}},
      {"an unknown type",
       changed([](Parts& p) { p.tensor(kWeight)["dtype"] = "F8_E4M3"; }),
       {kWeight, "F8_E4M3", "convert it"}},
      {"shape that overflows",
       changed([](Parts& p) {
         p.tensor(kWeight)["shape"] = {1ll << 33, 1ll << 33};
       }),
       {kWeight, "overflows"}},
      {"shape that overflows beside a zero",
       changed([](Parts& p) {
         p.tensor(kWeight)["shape"] = {1ll << 62, 1ll << 62, 0};
       }),
       {kWeight, "overflows"}},
      {"shape that wraps to its own size",
       changed([](Parts& p) {
         p.tensor(kWeight)["shape"] = {1ll << 62, 4, 192};
       }),
       {kWeight, "overflows"}},
      {"negative size",
       changed([](Parts& p) {
         p.tensor(kWeight)["shape"] = {-24, -8};
       }),
       {kWeight}},
      {"half a size",
       changed([](Parts& p) {
         p.tensor(kWeight)["shape"] = {24.5, 8};
       }),
       {kWeight}},
      {"nine axes",
       changed([](Parts& p) { p.tensor(kWeight)["shape"] = {24, 8, 1, 1, 1, 1, 1, 1, 1}; }),
       {kWeight, "9 axes"}},
      {"name twice",
       [](Parts p) {
         std::string text = p.header.dump();
         std::string entry = "\"" + std::string(kWeight) + "\":" + p.tensor(kWeight).dump();
         return p.with_header("{" + entry + "," + text.substr(1));
       },
       {kWeight, "twice"}},
      {"transposed",
       changed([](Parts& p) {
         p.tensor(kWeight)["shape"] = {8, 24};
       }),
       {"does not fit the model", "of another shape (1)", "f32 [8,24] there, [24,8] in the model",
        "check model.name"}},
      {"a tensor missing",
       changed([](Parts& p) { p.remove(kWeight); }),
       {"does not fit the model", "missing (1)", kWeight, "check model.name"}},
      {"a tensor too many",
       changed([](Parts& p) {
         p.add("blocks.2.attn.qkv.weight", {24, 8}, 768);
       }),
       {"does not fit the model", "unexpected (1)", "blocks.2.attn.qkv.weight", "check model.name"}},
      {"all three at once",
       changed([](Parts& p) {
         p.remove("norm.bias");
         p.add("norm.bais", {8}, 32);
         p.tensor(kWeight)["shape"] = {8, 24};
       }),
       {"missing (1)", "norm.bias", "unexpected (1)", "norm.bais", "of another shape (1)"}},
      {"structure of another depth",
       changed([](Parts& p) { p.set_structure("depth", 3); }),
       {"missing", "blocks.2."}},
      {"structure of a depth out of all bounds",
       changed([](Parts& p) { p.set_structure("depth", 1ll << 40); }),
       {"occam.model"}},
      {"structure of a width out of all bounds",
       changed([](Parts& p) { p.set_structure("dim", 1ll << 40); }),
       {"occam.model"}},
      {"structure of a large width", changed([](Parts& p) { p.set_structure("dim", 32768); }), {"blocks.0"}},
      {"structure of text",
       changed([](Parts& p) { p.header["__metadata__"]["occam.model"] = "{vit"; }),
       {"occam.model"}},
      {"structure with an unknown key",
       changed([](Parts& p) { p.set_structure("dimm", 8); }),
       {"occam.model", "dimm"}},
      {"structure that names another file",
       changed([](Parts& p) { p.set_structure("checkpoint", "/etc/passwd"); }),
       {"occam.model"}},
      {"structure of an unknown mixer",
       changed([](Parts& p) {
         p.set_structure("replace", {{{"blocks", {0}}, {"with", "wombat"}}});
       }),
       {"occam.model", "wombat"}},
      {"metadata that is no text",
       changed([](Parts& p) { p.header["__metadata__"]["occam.model"] = 3; }),
       {"__metadata__"}},
  };
  return files;
}

class WrongWeights : public AppFixture, public testing::WithParamInterface<AppCase> {
 protected:
  /// A finished run in x, which out.overwrite=true may replace.
  void SetUp() override {
    arguments_ = with(tiny_run(GetParam()), {GetParam().checkpoint_key + "=wrong.safetensors", "out.dir=x"});
    write_bytes(folder_ / "wrong.safetensors", checkpoint_bytes());
    std::erase_if(arguments_, [](const std::string& word) {
      return word.starts_with("model.") && !word.starts_with(GetParam().checkpoint_key);
    });
    expect_success(run(GetParam().name, arguments_));
    arguments_.push_back("out.overwrite=true");
  }

  Words arguments_;
};
INSTANTIATE_TEST_SUITE_P(Apps, WrongWeights, testing::ValuesIn(app_cases()), case_name);

TEST_P(WrongWeights, AreRefusedAndEarlierResultsStay) {
  const Parts right(checkpoint_bytes());
  for (const WrongFile& file : wrong_files()) {
    SCOPED_TRACE(file.name);
    write_bytes(folder_ / "wrong.safetensors", file.make(right));
    auto before = snapshot(folder_.path());
    ProcessResult result = run(GetParam().name, arguments_, {.memory = rlim_t(4) << 30});
    expect_failure(GetParam().name, result, 2, file.parts + Words{"wrong.safetensors"});
    EXPECT_TRUE(snapshot(folder_.path()) == before) << "files were made or changed";
  }
}

TEST_P(WrongWeights, ThatAreNoFile) {
  std::filesystem::remove(folder_ / "wrong.safetensors");
  expect_failure(GetParam().name, run(GetParam().name, arguments_), 2, {"wrong.safetensors", "No such file"});
  std::filesystem::create_directory(folder_ / "wrong.safetensors");
  expect_failure(GetParam().name, run(GetParam().name, arguments_), 2,
                 {"wrong.safetensors", "it is a folder"});
}

TEST_P(WrongWeights, OfFewerClassesThanTheData) {
  if (!GetParam().uses_labels) GTEST_SKIP() << "this app reads no labels";
  auto before = snapshot(folder_.path());
  expect_failure(GetParam().name, run(GetParam().name, with(arguments_, {"data.classes=4"})), 2,
                 {"4 classes", "3 outputs", "model.classes"});
  EXPECT_TRUE(snapshot(folder_.path()) == before);
}

}  // namespace
}  // namespace occam
