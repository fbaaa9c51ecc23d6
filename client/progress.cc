#include "client/progress.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/format.h"

namespace sinq::client {
namespace {

constexpr absl::Duration kPlainInterval = absl::Seconds(10);

std::string Figures(const ProgressMeter& meter) {
  const ProgressSample& s = meter.sample();
  std::string text = absl::StrFormat("%3.0f%%", std::floor(meter.fraction() * 100));
  absl::StrAppend(&text, "  ", FormatBytes(s.bytes_done), "/", FormatBytes(s.bytes_total));
  absl::StrAppend(&text, "  ", meter.rate() > 0 ? FormatRate(meter.rate()) : "-");
  absl::StrAppend(&text, "  ETA ", DurationText(meter.eta()));
  absl::StrAppend(&text, "  tensors ", s.tensors_done, "/", s.tensors_total);
  absl::StrAppend(&text, "  ", Printable(s.stage));
  return text;
}

}  // namespace

void ProgressMeter::Update(const ProgressSample& sample, absl::Time now) {
  // A resumed attempt may report less than its predecessor: the shown figures wait until it has
  // caught up.
  shown_.stage = sample.stage;
  shown_.bytes_total = std::max(shown_.bytes_total, sample.bytes_total);
  shown_.tensors_total = std::max(shown_.tensors_total, sample.tensors_total);
  shown_.bytes_done = std::max(shown_.bytes_done, sample.bytes_done);
  shown_.tensors_done = std::max(shown_.tensors_done, sample.tensors_done);
  if (shown_.bytes_total > 0) {
    const double now_fraction =
        static_cast<double>(shown_.bytes_done) / static_cast<double>(shown_.bytes_total);
    fraction_ = std::clamp(now_fraction, fraction_, 1.0);
  }
  points_.push_back({now, shown_.bytes_done});
  while (points_.size() > 2 && now - points_[1].time >= kWindow) points_.pop_front();
}

double ProgressMeter::rate() const {
  if (points_.size() < 2) return 0;
  const double seconds = absl::ToDoubleSeconds(points_.back().time - points_.front().time);
  if (seconds <= 0) return 0;
  return static_cast<double>(points_.back().bytes - points_.front().bytes) / seconds;
}

absl::Duration ProgressMeter::eta() const {
  const int64_t left = shown_.bytes_total - shown_.bytes_done;
  if (shown_.bytes_total > 0 && left <= 0) return absl::ZeroDuration();
  const double speed = rate();
  if (speed <= 0 || shown_.bytes_total <= 0) return absl::InfiniteDuration();
  return absl::Seconds(static_cast<double>(left) / speed);
}

std::string ProgressMeter::BarLine(int width) const {
  constexpr int kSmallestBar = 8, kLargestBar = 30;
  const std::string figures = Figures(*this);
  const int room = width - 1 - static_cast<int>(figures.size()) - 3;
  if (room < kSmallestBar) return figures.substr(0, std::max(0, width - 1));
  const int cells = std::min(room, kLargestBar);
  const int full = static_cast<int>(fraction_ * cells);
  return absl::StrCat("[", std::string(full, '#'), std::string(cells - full, '.'), "] ", figures);
}

std::string ProgressMeter::PlainLine() const { return Figures(*this); }

void ProgressPrinter::Update(const ProgressSample& sample, absl::Time now) {
  if (!style_.enabled) return;
  meter_.Update(sample, now);
  style_.terminal ? Draw() : PrintPlain(now);
}

void ProgressPrinter::Draw() {
  const std::string line = meter_.BarLine(style_.width);
  if (line_open_ && line == last_line_) return;
  last_line_ = line;
  line_open_ = true;
  err_ << '\r' << (style_.color ? "\x1b[36m" : "") << line << (style_.color ? "\x1b[0m" : "")
       << "\x1b[K" << std::flush;
}

void ProgressPrinter::PrintPlain(absl::Time now) {
  const int tenth = static_cast<int>(meter_.fraction() * 10);
  const bool due = tenth > last_tenth_ || meter_.sample().stage != last_stage_ ||
                   now - last_time_ >= kPlainInterval;
  const std::string line = meter_.PlainLine();
  if (!due || line == last_line_) return;
  last_tenth_ = tenth;
  last_stage_ = meter_.sample().stage;
  last_time_ = now;
  last_line_ = line;
  err_ << line << std::endl;
}

void ProgressPrinter::Note(absl::string_view text) {
  if (text.empty()) return;
  Finish();
  err_ << Printable(text) << std::endl;
}

void ProgressPrinter::Finish() {
  if (line_open_) err_ << std::endl;
  line_open_ = false;
}

}  // namespace sinq::client
