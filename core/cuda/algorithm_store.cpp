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

Json to_json(const std::map<std::string, AlgorithmStore::Choice>& choices) {
  Json json = Json::object();
  for (const auto& [problem, c] : choices)
    json[problem] = {{"algorithm", c.words}, {"workspace", c.workspace}};
  return json;
}

/// Throws a JSON library's exception on what to_json() does not write.
std::map<std::string, AlgorithmStore::Choice> from_json(const Json& json) {
  std::map<std::string, AlgorithmStore::Choice> choices;
  for (const auto& [problem, entry] : json.items())
    choices[problem] = {entry.at("algorithm").get<AlgorithmStore::Words>(), entry.at("workspace")};
  return choices;
}

}  // namespace

AlgorithmStore::AlgorithmStore(const std::string& name) : name_(name) {
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
    choices_.merge(from_json(read_json(path_)));
  } catch (const std::exception&) {
    return;  // damaged, or of another version: measured again
  }
}

std::optional<AlgorithmStore::Choice> AlgorithmStore::find(const std::string& problem) {
  std::lock_guard lock(mutex_);
  for (const Choices* choices : {&pinned_, &choices_})
    if (auto it = choices->find(problem); it != choices->end()) {
      used_.insert(problem);
      return it->second;
    }
  return std::nullopt;
}

void AlgorithmStore::put(const std::string& problem, const Choice& choice) {
  std::lock_guard lock(mutex_);
  read();
  choices_[problem] = choice;
  pinned_.erase(problem);  // the library did not take it
  used_.insert(problem);
  if (path_.empty()) return;
  try {
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    write_json(path_, to_json(choices_));
  } catch (const std::exception&) {
    path_.clear();  // nowhere to keep it: this process goes on with what it measured
  }
}

Json AlgorithmStore::used() {
  std::lock_guard lock(mutex_);
  Choices all = pinned_;  // those of an earlier run whose turn has not come stay
  for (const std::string& problem : used_)
    if (auto it = choices_.find(problem); it != choices_.end()) all.emplace(problem, it->second);
  return {{"of", name_}, {"algorithms", to_json(all)}};
}

bool AlgorithmStore::pin(const Json& choices) {
  std::lock_guard lock(mutex_);
  if (choices.at("of") != name_) return false;
  pinned_ = from_json(choices.at("algorithms"));
  return true;
}

}  // namespace occam::cuda
