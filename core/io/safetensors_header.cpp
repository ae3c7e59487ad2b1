#include "core/io/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <unordered_set>

#include "core/check.h"
#include "core/io/json.h"

namespace occam {
namespace {

/// Receives nlohmann's parse events; anything the format does not have is refused where it occurs.
class HeaderEvents : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderEvents(const std::string& file) : file_(file) {}
  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top) {
      place_ = key_ == "__metadata__" ? Place::metadata : Place::entry;
      if (place_ == Place::entry) header_.entries.push_back({.name = key_});
    } else {
      bad("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::entry) {
      const auto& entry = header_.entries.back();
      const char* missing = !entry.has_dtype     ? "dtype"
                            : !entry.has_shape   ? "shape"
                            : !entry.has_offsets ? "data_offsets"
                                                 : nullptr;
      OCCAM_CHECK(!missing, ErrorKind::input,
                  "{}: tensor '{}' has no \"{}\"; the file is damaged, get it again", file_, entry.name,
                  missing);
    }
    place_ = place_ == Place::top ? Place::outside : Place::top;
    return true;
  }

  bool key(std::string& name) override {
    if (place_ == Place::top) {
      refuse_duplicate(!names_.insert(name).second, name);
      key_ = name;
    } else if (place_ == Place::metadata) {
      refuse_duplicate(header_.metadata.contains(name), name);
      field_ = name;
    } else {
      auto& entry = header_.entries.back();
      bool* seen = name == "dtype"          ? &entry.has_dtype
                   : name == "shape"        ? &entry.has_shape
                   : name == "data_offsets" ? &entry.has_offsets
                                            : nullptr;
      OCCAM_CHECK(seen, ErrorKind::input,
                  "{}: tensor '{}' has an unknown field \"{}\"; is this a safetensors file?", file_,
                  entry.name, name);
      refuse_duplicate(*seen, name);
      *seen = true;
      field_ = name;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::entry || field_ == "dtype") bad("a list");
    place_ = Place::numbers;
    return true;
  }
  bool end_array() override {
    place_ = Place::entry;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::numbers) bad("a number");
    auto& entry = header_.entries.back();
    (field_ == "shape" ? entry.shape : entry.offsets).push_back(value);
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      header_.metadata[field_] = value;
    } else if (place_ == Place::entry && field_ == "dtype") {
      header_.entries.back().dtype = value;
    } else {
      bad("a text");
    }
    return true;
  }

  bool null() override { bad("null"); }
  bool boolean(bool) override { bad("true or false"); }
  bool number_integer(int64_t value) override { bad(fmt::format("the negative number {}", value)); }
  bool number_float(double, const std::string& text) override { bad("the number " + text); }
  bool binary(binary_t&) override { bad("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(ErrorKind::input, fmt::format("{}: header is not valid JSON at byte {}; is this a safetensors file?",
                                       file_, position + 7));
  }

 private:
  enum class Place { outside, top, metadata, entry, numbers };

  [[noreturn]] void bad(std::string_view found) const {
    std::string where = place_ == Place::outside    ? "at the top"
                        : place_ == Place::top      ? fmt::format("as '{}'", key_)
                        : place_ == Place::metadata ? fmt::format("in __metadata__ under \"{}\"", field_)
                                                    : fmt::format("in \"{}\" of tensor '{}'", field_, key_);
    fail(ErrorKind::input,
         fmt::format("{}: {} {} in the header; is this a safetensors file?", file_, found, where));
  }
  void refuse_duplicate(bool duplicate, const std::string& name) const {
    OCCAM_CHECK(!duplicate, ErrorKind::input, "{}: '{}' is there twice in the header; write the file again",
                file_, name);
  }

  const std::string& file_;
  SafetensorsHeader header_;
  Place place_ = Place::outside;
  std::string key_, field_;
  std::unordered_set<std::string> names_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& file) {
  HeaderEvents events(file);
  Json::sax_parse(text.begin(), text.end(), &events);
  return events.take();
}

}  // namespace occam
