#include "apps/common/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace occam {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

size_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

std::string rate_text(double rate) {
  if (rate >= 100) return fmt::format("{:.0f}", rate);
  return rate >= 1 ? fmt::format("{:.1f}", rate) : fmt::format("{:.2g}", rate);
}

}  // namespace

std::string duration_text(double seconds) {
  int64_t s = std::llround(std::clamp(seconds, 0.0, 1e9));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::string progress_text(const std::string& label, int64_t done, int64_t total, const std::string& unit,
                          double rate, const std::string& note) {
  std::string text = fmt::format("{}: {}/{} {}", label, done, total, unit);
  if (total > 0) text += fmt::format(" ({} %)", done * 100 / total);
  if (rate > 0) text += fmt::format(", {} {}/s", rate_text(rate), unit);
  if (rate > 0 && done < total) text += fmt::format(", {} left", duration_text(double(total - done) / rate));
  return note.empty() ? text : text + ", " + note;
}

Progress::Progress(std::string label, int64_t total, std::string unit, int64_t resumed)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      resumed_(resumed),
      done_(resumed),
      start_(Clock::now()),
      printed_(start_),
      terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (!finished_ && width_ > 0) std::fputc('\n', stderr);
}

double Progress::units_per_second() const {
  double seconds = seconds_since(start_);
  return seconds > 0 ? double(done_ - resumed_) / seconds : 0;
}

void Progress::update(int64_t done, const std::string& note) {
  done_ = done;
  if (seconds_since(printed_) < (terminal_ ? 0.2 : 10.0)) return;
  print(note, false);
}

void Progress::finish(const std::string& note) {
  if (finished_) return;
  std::string time = "in " + duration_text(seconds_since(start_));
  print(note.empty() ? time : time + ", " + note, true);
  finished_ = true;
}

void Progress::print(const std::string& note, bool last) {
  printed_ = Clock::now();
  std::string line = progress_text(label_, done_, total_, unit_, units_per_second(), note);
  if (terminal_) {
    if (!last) line = line.substr(0, terminal_width() - 1);
    size_t width = line.size();
    if (width < width_) line.append(width_ - width, ' ');
    width_ = width;
    line = "\r" + line;
  }
  if (!terminal_ || last) line += "\n";
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace occam
