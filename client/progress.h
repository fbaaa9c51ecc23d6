// Progress of a job or a transfer: the arithmetic (ProgressMeter) and the line on standard error
// (ProgressPrinter).
#ifndef SINQ_CLIENT_PROGRESS_H_
#define SINQ_CLIENT_PROGRESS_H_

#include <cstdint>
#include <deque>
#include <ostream>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sinq::client {

struct ProgressSample {
  std::string stage;  // "plan", "quantize", ...
  int64_t bytes_done = 0, bytes_total = 0;
  int64_t tensors_done = 0, tensors_total = 0;
};

// Keeps what was shown from going backwards and computes a rate over the last kWindow. Not
// thread-safe.
class ProgressMeter {
 public:
  static constexpr absl::Duration kWindow = absl::Seconds(10);

  void Update(const ProgressSample& sample, absl::Time now);
  const ProgressSample& sample() const { return shown_; }
  // 0 .. 1; never falls.
  double fraction() const { return fraction_; }
  // Bytes per second over the window; 0 until there are two samples.
  double rate() const;
  // Infinite while it cannot be known.
  absl::Duration eta() const;
  // One line of at most `width` columns: bar, percentage, bytes, rate, ETA, tensors, stage.
  std::string BarLine(int width) const;
  // The same without a bar, for logs.
  std::string PlainLine() const;

 private:
  struct Point {
    absl::Time time;
    int64_t bytes;
  };
  ProgressSample shown_;
  double fraction_ = 0;
  std::deque<Point> points_;
};

struct ProgressStyle {
  bool enabled = true;  // false: prints nothing
  bool terminal =
      false;  // redraws one line; otherwise a plain line when a tenth or ten seconds have passed
  bool color = false;
  int width = 80;  // columns of the terminal
};

// Not thread-safe. Writes only to `err`.
class ProgressPrinter {
 public:
  ProgressPrinter(std::ostream& err, ProgressStyle style) : err_(err), style_(style) {}
  void Update(const ProgressSample& sample, absl::Time now);
  // A message between the lines; shown even when progress is not, unless it is empty.
  void Note(absl::string_view text);
  // Leaves the last line standing.
  void Finish();

 private:
  void Draw();
  void PrintPlain(absl::Time now);

  std::ostream& err_;
  const ProgressStyle style_;
  ProgressMeter meter_;
  bool line_open_ = false;
  std::string last_line_;
  std::string last_stage_;
  int last_tenth_ = -1;
  absl::Time last_time_ = absl::InfinitePast();
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_PROGRESS_H_
