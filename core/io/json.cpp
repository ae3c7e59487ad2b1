#include "core/io/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "core/check.h"
#include "core/io/atomic_file.h"
#include "core/io/mmap.h"

namespace occam {
namespace {

constexpr int kMaxDepth = 100;
constexpr size_t kMaxBytes = size_t(256) << 20;

std::string location(std::string_view text, const std::string& name, size_t byte) {
  std::string_view before = text.substr(0, std::min(byte, text.size()));
  auto line = 1 + std::count(before.begin(), before.end(), '\n');
  size_t start = before.rfind('\n');
  size_t column = start == std::string_view::npos ? before.size() + 1 : before.size() - start;
  return fmt::format("{}:{}:{}", name, line, column);
}

std::string dump_plain(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool is_plain_list(const Json& value) {
  return value.is_array() &&
         std::none_of(value.begin(), value.end(), [](const Json& item) { return item.is_structured(); });
}

void dump_indented(const Json& value, size_t indent, std::string& out) {
  if (!value.is_structured() || value.empty()) {
    out += dump_plain(value);
    return;
  }
  bool object = value.is_object(), plain = is_plain_list(value), first = true;
  std::string margin = plain ? "" : "\n" + std::string(indent + 2, ' ');
  out += object ? "{" : "[";
  for (auto item = value.begin(); item != value.end(); ++item) {
    if (!first) out += plain ? ", " : ",";
    first = false;
    out += margin;
    if (object) out += dump_plain(Json(item.key())) + ": ";
    dump_indented(*item, indent + 2, out);
  }
  if (!plain) out += "\n" + std::string(indent, ' ');
  out += object ? "}" : "]";
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name) {
  std::vector<std::unordered_set<std::string>> keys;  // of the objects open now
  auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    OCCAM_CHECK(depth <= kMaxDepth, ErrorKind::input, "{}: nested deeper than {}", name, kMaxDepth);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      std::string key = parsed.get<std::string>();
      OCCAM_CHECK(keys.back().insert(key).second, ErrorKind::input,
                  "{}: key \"{}\" is there twice in one object; remove one", name, key);
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::parse_error& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while parsing ..."
    std::string_view what = e.what();
    size_t at = what.find(": ");
    std::string_view reason = at == std::string_view::npos ? what : what.substr(at + 2);
    std::string where = location(text, name, e.byte > 0 ? e.byte - 1 : 0);
    fail(ErrorKind::input, fmt::format("{}: not valid JSON: {}", where, reason));
  } catch (const Json::exception& e) {
    fail(ErrorKind::input, fmt::format("{}: not valid JSON: {}", name, e.what()));
  }
}

Json read_json(const std::filesystem::path& path) {
  MappedFile file(path);
  OCCAM_CHECK(file.size() <= kMaxBytes, ErrorKind::input,
              "{}: {} bytes is too large for a JSON file (at most {})", path.string(), file.size(),
              kMaxBytes);
  return parse_json({reinterpret_cast<const char*>(file.data()), file.size()}, path.string());
}

std::string dump_json(const Json& value) {
  std::string out;
  dump_indented(value, 0, out);
  return out + "\n";
}

std::string dump_json_line(const Json& value) { return dump_plain(value); }

void write_json(const std::filesystem::path& path, const Json& value) {
  write_file_atomic(path, dump_json(value));
}

}  // namespace occam
