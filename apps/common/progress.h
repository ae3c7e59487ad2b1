#pragma once
// How far the work is, on the standard error: one line that is rewritten on a terminal, a plain line now and
// then elsewhere.
#include <chrono>
#include <cstdint>
#include <string>

namespace occam {

class Progress {
 public:
  /// `unit` is what is counted ("images"). `resumed` units were done by an earlier run: they count as done,
  /// not as fast.
  Progress(std::string label, int64_t total, std::string unit, int64_t resumed = 0);
  /// Ends the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Prints when something new is due: five times a second on a terminal, else every ten seconds.
  void update(int64_t done, const std::string& note = "");
  /// Prints the last state with the whole time.
  void finish(const std::string& note = "");
  double units_per_second() const;

 private:
  void print(const std::string& note, bool last);
  std::string label_, unit_;
  int64_t total_, resumed_, done_;
  std::chrono::steady_clock::time_point start_, printed_;
  size_t width_ = 0;  // of the line on the terminal
  bool terminal_, finished_ = false;
};

/// "1:02:03", "2:03", "12 s"
std::string duration_text(double seconds);
/// "label: 320/1000 images, 32 % , 64.2 images/s, 11 s left, note"
std::string progress_text(const std::string& label, int64_t done, int64_t total, const std::string& unit,
                          double rate, const std::string& note);

}  // namespace occam
