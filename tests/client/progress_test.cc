#include "client/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace sinq::client {
namespace {

constexpr int64_t kMiB = 1024 * 1024;

absl::Time At(int seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

ProgressSample Sample(int64_t mib, int64_t tensors) {
  return {"quantize", mib * kMiB, 100 * kMiB, tensors, 10};
}

TEST(ProgressMeter, RateIsOverTheWindowOnly) {
  ProgressMeter meter;
  meter.Update(Sample(0, 0), At(0));
  EXPECT_EQ(meter.rate(), 0);
  EXPECT_EQ(meter.eta(), absl::InfiniteDuration());
  meter.Update(Sample(50, 5), At(1));
  EXPECT_EQ(meter.rate(), 50.0 * kMiB);
  EXPECT_EQ(meter.eta(), absl::Seconds(1));
  // Ten slow seconds later the fast start is forgotten.
  for (int second = 2; second <= 20; ++second) meter.Update(Sample(50 + second, 5), At(second));
  EXPECT_NEAR(meter.rate(), 1.0 * kMiB, 0.2 * kMiB);
}

TEST(ProgressMeter, NeverGoesBackwards) {
  ProgressMeter meter;
  meter.Update(Sample(60, 6), At(0));
  meter.Update(Sample(20, 2), At(1));
  EXPECT_EQ(meter.sample().bytes_done, 60 * kMiB);
  EXPECT_EQ(meter.sample().tensors_done, 6);
  EXPECT_DOUBLE_EQ(meter.fraction(), 0.6);
  EXPECT_GE(meter.rate(), 0);
}

TEST(ProgressMeter, LineFitsAndNamesEverything) {
  ProgressMeter meter;
  meter.Update(Sample(0, 0), At(0));
  meter.Update(Sample(50, 5), At(1));
  const std::string line = meter.BarLine(120);
  for (const char* part : {"[###", "50%", "50.0 MiB/100.0 MiB", "50.0 MiB/s", "ETA 1.0s",
                           "tensors 5/10", "quantize"}) {
    EXPECT_NE(line.find(part), std::string::npos) << part << " in " << line;
  }
  for (int width : {0, 1, 20, 80, 200})
    EXPECT_LE(meter.BarLine(width).size(), static_cast<size_t>(width));
}

TEST(ProgressPrinter, PlainLinesWithoutATerminal) {
  std::ostringstream err;
  ProgressPrinter printer(err, {true, false, false, 80});
  for (int i = 0; i <= 100; ++i) printer.Update(Sample(i, i / 10), At(0) + absl::Milliseconds(i));
  printer.Finish();
  const std::string text = err.str();
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 11);
}

TEST(ProgressPrinter, TerminalRedrawsOneLine) {
  std::ostringstream err;
  ProgressPrinter printer(err, {true, true, false, 80});
  printer.Update(Sample(1, 0), At(0));
  printer.Update(Sample(2, 0), At(1));
  printer.Finish();
  const std::string text = err.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 2);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(text.find("\x1b[36m"), std::string::npos);
}

TEST(ProgressPrinter, SilentWhenDisabled) {
  std::ostringstream err;
  ProgressPrinter printer(err, {false, true, true, 80});
  printer.Update(Sample(1, 0), At(0));
  printer.Finish();
  EXPECT_EQ(err.str(), "");
}

}  // namespace
}  // namespace sinq::client
