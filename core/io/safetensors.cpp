#include "core/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "core/check.h"
#include "core/grad_mode.h"
#include "core/io/atomic_file.h"
#include "core/io/json.h"
#include "core/io/mmap.h"
#include "core/io/safetensors_header.h"

namespace occam {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian");

constexpr size_t kPrefix = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit

struct DTypeName {
  DType dtype;
  const char* name;
};
constexpr std::array kDTypes{DTypeName{DType::f32, "F32"},   DTypeName{DType::f64, "F64"},
                             DTypeName{DType::bf16, "BF16"}, DTypeName{DType::f16, "F16"},
                             DTypeName{DType::i64, "I64"},   DTypeName{DType::i32, "I32"},
                             DTypeName{DType::u8, "U8"},     DTypeName{DType::bool_, "BOOL"}};

std::optional<DType> dtype_from(std::string_view name) {
  for (const DTypeName& d : kDTypes)
    if (name == d.name) return d.dtype;
  return std::nullopt;
}

const char* format_name(DType dtype) {
  for (const DTypeName& d : kDTypes)
    if (dtype == d.dtype) return d.name;
  fail(ErrorKind::internal, "safetensors: a dtype without a name");
}

/// Type and shape of one entry, and that its byte range is inside the data and has the size they call for.
SafetensorsEntry check_entry(const SafetensorsHeader::Entry& raw, uint64_t data_bytes,
                             const std::string& file) {
  auto refuse = [&](const std::string& what) {
    fail(ErrorKind::input, fmt::format("{}: tensor '{}' {}", file, raw.name, what));
  };
  std::optional<DType> dtype = dtype_from(raw.dtype);
  if (!dtype) {
    refuse(fmt::format(
        "has type {}, which Occam does not read; convert it to one of F32 F64 BF16 F16 I64 I32 U8 BOOL",
        raw.dtype));
  }
  if (raw.shape.size() > size_t(kMaxDims))
    refuse(fmt::format("has {} axes, more than {}", raw.shape.size(), kMaxDims));
  if (raw.offsets.size() != 2) refuse("needs two data_offsets; the file is damaged, get it again");

  Shape shape;
  uint64_t needed = size_of(*dtype);
  for (uint64_t size : raw.shape) {
    // Zeros are left out of the product, so that the other sizes still have to fit.
    if (size > uint64_t(INT64_MAX) / needed) {
      refuse("has a shape whose size overflows; the file is damaged, get it again");
    }
    needed *= std::max<uint64_t>(size, 1);
    shape.push_back(int64_t(size));
  }
  if (shape.numel() == 0) needed = 0;

  uint64_t begin = raw.offsets[0], end = raw.offsets[1];
  if (begin > end)
    refuse(
        fmt::format("ends (byte {}) before it begins ({}); the file is damaged, get it again", end, begin));
  if (end > data_bytes) {
    refuse(fmt::format("ends at data byte {} but the file has {}: it is truncated; get it again", end,
                       data_bytes));
  }
  if (end - begin != needed) {
    refuse(fmt::format("is {} {}, which takes {} bytes, but {} are stored; the file is damaged, get it again",
                       raw.dtype, shape.str(), needed, end - begin));
  }
  return {raw.name, *dtype, shape, {}};
}

/// Byte ranges in rising order must follow one another from the first data byte to the last.
void check_layout(const std::vector<SafetensorsHeader::Entry>& entries, uint64_t data_bytes,
                  const std::string& file) {
  std::vector<const SafetensorsHeader::Entry*> order;
  for (const auto& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->offsets < b->offsets; });
  uint64_t at = 0;
  for (const auto* entry : order) {
    OCCAM_CHECK(
        entry->offsets[0] == at, ErrorKind::input,
        "{}: tensor '{}' begins at data byte {} where {} was expected: tensors {}; write the file again",
        file, entry->name, entry->offsets[0], at, entry->offsets[0] < at ? "overlap" : "leave a gap");
    at = entry->offsets[1];
  }
  OCCAM_CHECK(at == data_bytes, ErrorKind::input,
              "{}: {} bytes follow the last tensor; the file is damaged, get it again", file,
              data_bytes - at);
}

Tensor make_tensor(std::shared_ptr<Storage> storage, int64_t offset, const SafetensorsEntry& entry) {
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::move(storage);
  impl->offset = offset;
  impl->shape = entry.shape;
  impl->strides = contiguous_strides(entry.shape);
  impl->dtype = entry.dtype;
  return Tensor(std::move(impl));
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& path) : path_(path) {
  std::string file = path.string();
  auto mapping = std::make_shared<MappedFile>(path);
  OCCAM_CHECK(
      mapping->size() >= kPrefix, ErrorKind::input,
      "{}: {} bytes is too short for a safetensors file; it is truncated or of another kind; get it again",
      file, mapping->size());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping->data(), kPrefix);
  uint64_t rest = mapping->size() - kPrefix;
  OCCAM_CHECK(
      header_bytes <= kMaxHeader && header_bytes <= rest, ErrorKind::input,
      "{}: the header is said to take {} bytes but {} follow (limit {}); the file is truncated or not a "
      "safetensors file; get it again",
      file, header_bytes, rest, kMaxHeader);
  std::string_view text(reinterpret_cast<const char*>(mapping->data()) + kPrefix, header_bytes);
  OCCAM_CHECK(text.starts_with('{'), ErrorKind::input,
              "{}: the header does not begin with '{{'; is this a safetensors file?", file);

  SafetensorsHeader header = parse_safetensors_header(text, file);
  metadata_ = std::move(header.metadata);
  uint64_t data_bytes = rest - header_bytes;
  entries_.reserve(header.entries.size());
  for (const auto& raw : header.entries) entries_.push_back(check_entry(raw, data_bytes, file));
  check_layout(header.entries, data_bytes, file);

  for (size_t i = 0; i < entries_.size(); ++i) {
    SafetensorsEntry& entry = entries_[i];
    std::byte* data = mapping->data() + kPrefix + header_bytes + header.entries[i].offsets[0];
    size_t bytes = header.entries[i].offsets[1] - header.entries[i].offsets[0];
    if (entry.dtype == DType::bool_) {
      bool valid = std::all_of(data, data + bytes, [](std::byte b) { return uint8_t(b) <= 1; });
      OCCAM_CHECK(valid, ErrorKind::input,
                  "{}: tensor '{}' is BOOL but has bytes other than 0 and 1; store it as U8", file,
                  entry.name);
    }
    bool aligned = reinterpret_cast<uintptr_t>(data) % size_of(entry.dtype) == 0;
    if (aligned) {
      entry.tensor = make_tensor(std::make_shared<Storage>(data, bytes, kCPU, mapping), 0, entry);
    } else {
      entry.tensor = empty(entry.shape, {entry.dtype, kCPU});
      std::memcpy(entry.tensor.data_ptr(), data, bytes);
    }
    index_.emplace(entry.name, i);
  }
}

const Tensor* Safetensors::find(std::string_view name) const {
  auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second].tensor;
}

const Tensor& Safetensors::get(std::string_view name) const {
  const Tensor* tensor = find(name);
  OCCAM_CHECK(tensor, ErrorKind::input, "{}: has no tensor '{}'", path_.string(), name);
  return *tensor;
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<size_t> layout(tensors.size());
  std::iota(layout.begin(), layout.end(), size_t(0));
  std::stable_sort(layout.begin(), layout.end(), [&](size_t a, size_t b) {
    return size_of(tensors[a].second.dtype()) > size_of(tensors[b].second.dtype());
  });
  std::vector<uint64_t> begins(tensors.size());
  uint64_t at = 0;
  auto bytes_of = [](const Tensor& t) { return uint64_t(t.numel()) * size_of(t.dtype()); };
  for (size_t i : layout) {
    begins[i] = at;
    at += bytes_of(tensors[i].second);
  }

  // Written piece by piece: an ordered object looks for each new key among all earlier ones.
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + dump_json_line(Json(metadata)) + ",";
  std::set<std::string_view> names;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    OCCAM_CHECK(name != "__metadata__" && names.insert(name).second, ErrorKind::usage,
                "cannot write {}: tensor name '{}' is {}", path.string(), name,
                name == "__metadata__" ? "reserved" : "there twice");
    Json entry = {{"dtype", format_name(tensor.dtype())},
                  {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())},
                  {"data_offsets", {begins[i], begins[i] + bytes_of(tensor)}}};
    header += dump_json_line(Json(name)) + ":" + dump_json_line(entry) + ",";
  }
  if (header.back() == ',') header.pop_back();
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  OCCAM_CHECK(header.size() <= kMaxHeader, ErrorKind::usage,
              "cannot write {}: the header takes {} bytes, more than {}", path.string(), header.size(),
              kMaxHeader);

  NoGrad no_grad;  // parameters are written as they are
  AtomicFile file(path);
  uint64_t header_bytes = header.size();
  file.write(&header_bytes, kPrefix);
  file.write(header);
  for (size_t i : layout) {
    if (tensors[i].second.numel() == 0) continue;
    Tensor tensor = raw::contiguous(raw::to(tensors[i].second, kCPU));
    file.write(tensor.data_ptr(), bytes_of(tensor));
  }
  file.commit();
}

}  // namespace occam
