#include "core/cuda/algorithm_store.h"

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/io/json.h"

namespace occam::cuda {

namespace {

std::filesystem::path cache_folder() {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value != nullptr ? value : "");
  };
  if (auto own = variable("OCCAM_CACHE"); !own.empty()) return own;
  if (auto xdg = variable("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "occam";
  if (auto home = variable("HOME"); !home.empty()) return home / ".cache" / "occam";
  return {};
}

}  // namespace

AlgorithmStore::AlgorithmStore(const std::string& name) {
  const std::filesystem::path folder = cache_folder();
  if (folder.empty()) return;
  std::string file = name + ".json";
  for (char& c : file)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.') c = '_';
  path_ = (folder / file).string();
  read();
}

void AlgorithmStore::read() {
  if (path_.empty() || !std::filesystem::exists(path_)) return;
  try {
    const Json file = read_json(path_);
    for (const auto& [problem, entry] : file.items()) {
      Choice choice;
      const auto words = entry.at("algorithm").get<std::vector<uint64_t>>();
      if (words.size() != choice.words.size()) continue;
      std::copy(words.begin(), words.end(), choice.words.begin());
      choice.workspace = entry.at("workspace");
      choices_.emplace(problem, choice);
    }
  } catch (const std::exception&) {
    return;  // damaged, or of another version: measured again
  }
}

std::optional<AlgorithmStore::Choice> AlgorithmStore::find(const std::string& problem) {
  std::lock_guard lock(mutex_);
  auto it = choices_.find(problem);
  return it == choices_.end() ? std::nullopt : std::optional(it->second);
}

void AlgorithmStore::put(const std::string& problem, const Choice& choice) {
  std::lock_guard lock(mutex_);
  read();
  choices_[problem] = choice;
  if (path_.empty()) return;
  Json file = Json::object();
  for (const auto& [name, c] : choices_) file[name] = {{"algorithm", c.words}, {"workspace", c.workspace}};
  try {
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    write_json(path_, file);
  } catch (const std::exception&) {
    path_.clear();  // nowhere to keep it: this process goes on with what it measured
  }
}

}  // namespace occam::cuda
