#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "core/check.h"
#include "data/sets/sets.h"

namespace occam {

namespace {

/// Reads a file that may be gzip-compressed; plain files pass through.
class GzFile {
 public:
  explicit GzFile(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    OCCAM_CHECK(file_, ErrorKind::input, "{}: cannot open this file", path);
  }
  ~GzFile() { gzclose_r(file_); }
  GzFile(const GzFile&) = delete;
  GzFile& operator=(const GzFile&) = delete;

  /// Exactly `count` bytes. Memory grows with what was read, so a header cannot claim it.
  std::vector<uint8_t> read(int64_t count, const char* what) {
    std::vector<uint8_t> bytes;
    while (int64_t(bytes.size()) < count) {
      size_t had = bytes.size(), step = size_t(std::min<int64_t>(count - int64_t(had), 1 << 22));
      bytes.resize(had + step);
      int got = gzread(file_, bytes.data() + had, unsigned(step));
      check_stream();
      OCCAM_CHECK(got == int(step), ErrorKind::input, "{}: ends inside its {}: {} of {} bytes are there",
                  path_, what, int64_t(had) + got, count);
    }
    return bytes;
  }
  void expect_end() {
    uint8_t extra;
    int got = gzread(file_, &extra, 1);
    check_stream();
    OCCAM_CHECK(got == 0, ErrorKind::input, "{}: holds more bytes than its header states", path_);
  }

 private:
  void check_stream() {
    int code = Z_OK;
    const char* text = gzerror(file_, &code);
    OCCAM_CHECK(code == Z_OK || code == Z_STREAM_END, ErrorKind::input,
                "{}: the compressed data are corrupt ({})", path_, text);
  }
  std::string path_;
  gzFile file_;
};

uint32_t be32(const uint8_t* p) {
  return uint32_t(p[0]) << 24 | uint32_t(p[1]) << 16 | uint32_t(p[2]) << 8 | p[3];
}

struct IdxData {
  std::vector<int64_t> sizes;
  std::vector<uint8_t> bytes;
};

/// An idx file of unsigned bytes with `rank` sizes.
IdxData read_idx(const std::string& path, int rank) {
  constexpr int64_t kMaxCount = 1 << 28, kMaxSide = 4096, kMaxBytes = int64_t(1) << 34;
  GzFile file(path);
  uint32_t magic = be32(file.read(4, "header").data()), expected = 0x0800u + uint32_t(rank);
  OCCAM_CHECK(magic == expected, ErrorKind::input,
              "{}: magic number {:#010x}, expected {:#010x} (idx, bytes, {} sizes)", path, magic, expected,
              rank);
  std::vector<uint8_t> head = file.read(4 * rank, "header");
  IdxData data;
  int64_t total = 1;
  for (int i = 0; i < rank; ++i) {
    int64_t size = be32(head.data() + 4 * i), most = i == 0 ? kMaxCount : kMaxSide;
    OCCAM_CHECK(size >= 1 && size <= most && total <= kMaxBytes / size, ErrorKind::input,
                "{}: size {} of the header is {}, allowed are 1 to {} and {} bytes in all", path, i, size,
                most, kMaxBytes);
    data.sizes.push_back(size);
    total *= size;
  }
  data.bytes = file.read(total, "data");
  file.expect_end();
  return data;
}

class IdxSet : public Dataset {
 public:
  IdxSet(const std::string& images, const std::string& labels, std::vector<std::string> names)
      : file_(images), names_(std::move(names)), images_(read_idx(images, 3)), labels_(read_idx(labels, 1)) {
    OCCAM_CHECK(images_.sizes[0] == labels_.sizes[0], ErrorKind::input, "{} has {} images, {} has {} labels",
                images, images_.sizes[0], labels, labels_.sizes[0]);
    for (size_t i = 0; i < labels_.bytes.size(); ++i)
      OCCAM_CHECK(labels_.bytes[i] < names_.size(), ErrorKind::input, "{}: label {} is {}, expected 0 to {}",
                  labels, i, labels_.bytes[i], names_.size() - 1);
  }
  int64_t size() const override { return images_.sizes[0]; }
  const std::vector<std::string>& class_names() const override { return names_; }
  int64_t channels() const override { return 1; }
  Rect common_size() const override { return {0, 0, images_.sizes[2], images_.sizes[1]}; }
  int64_t label(int64_t index) const override { return labels_.bytes.at(size_t(index)); }
  Sample get(int64_t index) const override {
    OCCAM_ASSERT(index >= 0 && index < size());
    Sample sample{Image(images_.sizes[2], images_.sizes[1], 1), label(index)};
    std::copy_n(images_.bytes.data() + index * sample.image.size(), sample.image.size(), sample.image.data());
    return sample;
  }
  std::string path(int64_t index) const override { return fmt::format("{}[{}]", file_, index); }

 private:
  std::string file_;
  std::vector<std::string> names_;
  IdxData images_, labels_;
};

std::string find_plain_or_gz(const std::string& root, const std::string& name) {
  namespace fs = std::filesystem;
  fs::path plain = fs::path(root) / name, packed = fs::path(root) / (name + ".gz");
  std::error_code ignored;
  if (fs::is_regular_file(packed, ignored)) return packed.string();
  OCCAM_CHECK(fs::is_regular_file(plain, ignored), ErrorKind::input,
              "{}: holds neither {} nor {}.gz; on Debian: apt install dataset-fashion-mnist, elsewhere set "
              "data.root to the folder with the four Fashion-MNIST files",
              root, name, name);
  return plain.string();
}

}  // namespace

DatasetPtr open_idx(const std::string& images, const std::string& labels,
                    std::vector<std::string> class_names) {
  return std::make_shared<IdxSet>(images, labels, std::move(class_names));
}

DatasetPtr open_fashion_mnist(const std::string& root, bool train) {
  std::string part = train ? "train" : "t10k";
  return open_idx(find_plain_or_gz(root, part + "-images-idx3-ubyte"),
                  find_plain_or_gz(root, part + "-labels-idx1-ubyte"),
                  {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                   "Ankle boot"});
}

}  // namespace occam
