#include "core/io/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

TEST(Json, DoublesComeBackExactly) {
  for (double value :
       {0.1, 1.0 / 3.0, 5e-324, 1.7976931348623157e308, -2.2250738585072014e-308, 123456789.0}) {
    Json back = parse_json(dump_json(Json{{"x", value}}), "t");
    EXPECT_EQ(back["x"].get<double>(), value);
  }
}

TEST(Json, NonFiniteBecomesNull) {
  Json value = {{"nan", std::nan("")}, {"inf", std::numeric_limits<double>::infinity()}};
  EXPECT_EQ(dump_json_line(value), R"({"nan":null,"inf":null})");
}

TEST(Json, IsReadable) {
  Json value = {{"b", {1, 2.5, "x"}}, {"a", {{{"k", nullptr}}}}, {"none", Json::object()}};
  EXPECT_EQ(dump_json(value), R"({
  "b": [1, 2.5, "x"],
  "a": [
    {
      "k": null
    }
  ],
  "none": {}
}
)");
  EXPECT_EQ(parse_json(dump_json(value), "t"), value);
}

TEST(Json, BytesThatAreNotUtf8AreReplacedNotThrown) { EXPECT_NO_THROW(dump_json(Json{{"name", "caf\xe9"}})); }

TEST(Json, ErrorsNameFileLineAndColumn) {
  EXPECT_OCCAM_ERROR(parse_json("{\n  \"a\": 1,\n  \"b\": x\n}", "s.json"), ErrorKind::input, "s.json:3:8: ");
  EXPECT_OCCAM_ERROR(parse_json("", "s.json"), ErrorKind::input, "s.json:1:1: ");
  EXPECT_OCCAM_ERROR(parse_json("{\"a\":1} x", "s.json"), ErrorKind::input, "s.json:1:9: ");
  EXPECT_OCCAM_ERROR(parse_json("[1e999]", "s.json"), ErrorKind::input, "s.json: ");
  EXPECT_OCCAM_ERROR(parse_json(R"({"x": {"a":1, "b":2, "a":3}})", "s.json"), ErrorKind::input,
                     "\"a\" is there twice");
  EXPECT_NO_THROW(parse_json(R"([{"a":1},{"a":{"a":2}}])", "s.json"));
  EXPECT_OCCAM_ERROR(parse_json(std::string(100000, '['), "s.json"), ErrorKind::input, "nested deeper");
  EXPECT_OCCAM_ERROR(read_json("/nonexistent/s.json"), ErrorKind::input, "/nonexistent/s.json");
}

TEST(Json, FilesRoundTrip) {
  TempFolder folder;
  Json value = {{"a", {1, 2}}};
  write_json(folder / "x.json", value);
  EXPECT_EQ(read_json(folder / "x.json"), value);
}

}  // namespace
}  // namespace occam
