#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "core/io/mmap.h"
#include "data/sets/sets.h"

namespace occam {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kSide = 32, kPlane = kSide * kSide, kPixels = 3 * kPlane;

/// What differs between CIFAR-10 and CIFAR-100.
struct Layout {
  const char* title;
  const char* subfolder;
  int64_t label_bytes;  // the label that counts is the last of them
  int64_t classes;
  const char* names_file;
  int64_t record() const { return label_bytes + kPixels; }
};
constexpr Layout kCifar10{"CIFAR-10", "cifar-10-batches-bin", 1, 10, "batches.meta.txt"};
constexpr Layout kCifar100{"CIFAR-100", "cifar-100-binary", 2, 100, "fine_label_names.txt"};

class CifarSet : public Dataset {
 public:
  CifarSet(const Layout& layout, const std::vector<fs::path>& files, std::vector<std::string> names)
      : layout_(layout), names_(std::move(names)) {
    for (const fs::path& path : files) {
      auto file = std::make_unique<MappedFile>(path);
      auto bytes = int64_t(file->size());
      OCCAM_CHECK(
          bytes > 0 && bytes % layout.record() == 0, ErrorKind::input,
          "{}: {} bytes are not a whole number of {}-byte {} records; the file was cut short or is of "
          "another kind",
          path.string(), bytes, layout.record(), layout.title);
      parts_.push_back({path.string(), std::move(file), bytes / layout.record()});
      const Part& part = parts_.back();
      for (int64_t i = 0; i < part.images; ++i) {
        int64_t label = record(part, i)[layout.label_bytes - 1];
        OCCAM_CHECK(label < layout.classes, ErrorKind::input,
                    "{}: label of record {} is {}, expected 0 to {}", part.path, i, label,
                    layout.classes - 1);
      }
      size_ += part.images;
    }
  }
  int64_t size() const override { return size_; }
  const std::vector<std::string>& class_names() const override { return names_; }
  int64_t channels() const override { return 3; }
  Rect common_size() const override { return {0, 0, kSide, kSide}; }
  int64_t label(int64_t index) const override {
    const Part& part = locate(index);
    return record(part, index)[layout_.label_bytes - 1];
  }
  Sample get(int64_t index) const override {
    const Part& part = locate(index);
    const uint8_t* r = record(part, index);
    Sample sample{Image(kSide, kSide, 3), r[layout_.label_bytes - 1]};
    const uint8_t* planes = r + layout_.label_bytes;
    uint8_t* to = sample.image.data();
    for (int64_t i = 0; i < kPlane; ++i)
      for (int64_t c = 0; c < 3; ++c) to[3 * i + c] = planes[c * kPlane + i];
    return sample;
  }
  std::string path(int64_t index) const override {
    const Part& part = locate(index);
    return fmt::format("{}[{}]", part.path, index);
  }

 private:
  struct Part {
    std::string path;
    std::unique_ptr<MappedFile> file;
    int64_t images;
  };
  const uint8_t* record(const Part& part, int64_t index) const {
    return reinterpret_cast<const uint8_t*>(part.file->data()) + index * layout_.record();
  }
  /// The part that holds image `index`; `index` becomes the position in it.
  const Part& locate(int64_t& index) const {
    OCCAM_ASSERT(index >= 0 && index < size_);
    size_t i = 0;
    for (; index >= parts_[i].images; ++i) index -= parts_[i].images;
    return parts_[i];
  }
  Layout layout_;
  std::vector<std::string> names_;
  std::vector<Part> parts_;
  int64_t size_ = 0;
};

/// `classes` non-empty lines of the names file, or class numbers when there is no such file.
std::vector<std::string> class_names(const fs::path& path, int64_t classes) {
  std::vector<std::string> names;
  std::ifstream file(path);
  for (std::string line; file && std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty()) names.push_back(line);
    OCCAM_CHECK(int64_t(names.size()) <= classes && line.size() < 256, ErrorKind::input,
                "{}: expected {} class names, one a line", path.string(), classes);
  }
  if (names.empty())
    for (int64_t k = 0; k < classes; ++k) names.push_back(std::to_string(k));
  OCCAM_CHECK(int64_t(names.size()) == classes, ErrorKind::input, "{}: {} class names, expected {}",
              path.string(), names.size(), classes);
  return names;
}

DatasetPtr open_cifar(const Layout& layout, const std::string& root, const std::vector<std::string>& wanted,
                      bool numbered) {
  std::error_code ignored;
  fs::path folder = root;
  if (fs::is_directory(folder / layout.subfolder, ignored)) folder /= layout.subfolder;
  std::vector<fs::path> files;
  bool gap = false;
  for (const std::string& name : wanted) {
    bool there = fs::is_regular_file(folder / name, ignored);
    OCCAM_CHECK(!(there && gap), ErrorKind::input, "{}: holds {} but not every batch before it",
                folder.string(), name);
    if (there) files.push_back(folder / name);
    gap = !there;
  }
  OCCAM_CHECK(!files.empty(), ErrorKind::input,
              "{}: no {} here; set data.root to the folder with the {} binary files{}", folder.string(),
              wanted.front(), layout.title, numbered ? " (data_batch_1.bin ... data_batch_5.bin)" : "");
  return std::make_shared<CifarSet>(layout, files, class_names(folder / layout.names_file, layout.classes));
}

}  // namespace

DatasetPtr open_cifar10(const std::string& root, bool train) {
  if (!train) return open_cifar(kCifar10, root, {"test_batch.bin"}, false);
  return open_cifar(
      kCifar10, root,
      {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"},
      true);
}

DatasetPtr open_cifar100(const std::string& root, bool train) {
  return open_cifar(kCifar100, root, {train ? "train.bin" : "test.bin"}, false);
}

}  // namespace occam
