#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "data/sets/sets.h"

namespace occam {

namespace fs = std::filesystem;

namespace {

bool has_image_extension(const std::string& name) {
  size_t dot = name.rfind('.');
  if (dot == std::string::npos) return false;
  std::string extension = name.substr(dot);
  for (char& c : extension)
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  return extension == ".jpg" || extension == ".jpeg" || extension == ".png";
}

struct Entry {
  std::string path;  // below the folder, with '/' between names
  int64_t label;
};

/// Entries of a directory that are not hidden, directories apart from files.
struct Listing {
  std::vector<std::string> folders, files;
};
Listing list(const fs::path& folder) {
  Listing listing;
  std::error_code error;
  fs::directory_iterator it(folder, error);
  OCCAM_CHECK(!error, ErrorKind::input, "{}: cannot read this folder ({})", folder.string(), error.message());
  for (; it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.starts_with('.')) continue;
    std::error_code broken_link;
    if (it->is_directory(broken_link))
      listing.folders.push_back(name);
    else if (has_image_extension(name))
      listing.files.push_back(name);
  }
  OCCAM_CHECK(!error, ErrorKind::input, "{}: cannot read this folder ({})", folder.string(), error.message());
  return listing;
}

void collect(const fs::path& root, const std::string& below, int64_t label, int depth,
             std::vector<Entry>& out) {
  OCCAM_CHECK(depth < 16, ErrorKind::input,
              "{}: folders are nested more than 16 deep; does a link form a loop?", (root / below).string());
  Listing listing = list(root / below);
  for (const std::string& name : listing.files) out.push_back({below + "/" + name, label});
  for (const std::string& name : listing.folders) collect(root, below + "/" + name, label, depth + 1, out);
}

class FolderSet : public Dataset {
 public:
  FolderSet(const std::string& folder, const DecodeOptions& decode) : root_(folder), decode_(decode) {
    OCCAM_CHECK(fs::is_directory(root_), ErrorKind::input, "{}: no such folder; set data.root", folder);
    names_ = list(root_).folders;
    std::sort(names_.begin(), names_.end());
    OCCAM_CHECK(!names_.empty(), ErrorKind::input, "{}: holds no class folders (expected {}/<class>/*.jpg)",
                folder, folder);
    for (size_t k = 0; k < names_.size(); ++k) {
      size_t before = entries_.size();
      collect(root_, names_[k], int64_t(k), 0, entries_);
      OCCAM_CHECK(entries_.size() > before, ErrorKind::input,
                  "{}: class folder without a .jpg, .jpeg or .png file; remove it or fill it",
                  (root_ / names_[k]).string());
    }
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& a, const Entry& b) { return a.path < b.path; });
  }
  int64_t size() const override { return int64_t(entries_.size()); }
  const std::vector<std::string>& class_names() const override { return names_; }
  int64_t channels() const override { return 3; }
  int64_t label(int64_t index) const override { return entries_.at(size_t(index)).label; }
  Sample get(int64_t index) const override { return {decode_image_file(path(index), decode_), label(index)}; }
  std::string path(int64_t index) const override {
    return (root_ / entries_.at(size_t(index)).path).string();
  }

 private:
  fs::path root_;
  DecodeOptions decode_;
  std::vector<std::string> names_;
  std::vector<Entry> entries_;
};

}  // namespace

DatasetPtr open_image_folder(const std::string& folder, const DecodeOptions& decode) {
  return std::make_shared<FolderSet>(folder, decode);
}

}  // namespace occam
