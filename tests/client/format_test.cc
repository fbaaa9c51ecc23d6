#include "client/format.h"

#include <gtest/gtest.h>

namespace sinq::client {
namespace {

TEST(Format, Bytes) {
  EXPECT_EQ(FormatBytes(-1), "0 B");
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes(1024 * 1024 - 1), "1.0 MiB");
  EXPECT_EQ(FormatBytes(int64_t{5} << 30), "5.0 GiB");
  EXPECT_EQ(FormatBytes(INT64_MAX), "8192.0 PiB");
}

TEST(Format, RateOfAbsurdValues) {
  EXPECT_EQ(FormatRate(1536), "1.5 KiB/s");
  EXPECT_EQ(FormatRate(1e300), FormatRate(9e18));
  EXPECT_EQ(FormatRate(-5), "0 B/s");
}

TEST(Format, Duration) {
  EXPECT_EQ(DurationText(absl::Seconds(-1)), "0s");
  EXPECT_EQ(DurationText(absl::Milliseconds(400)), "0.4s");
  EXPECT_EQ(DurationText(absl::Seconds(12)), "12s");
  EXPECT_EQ(DurationText(absl::Milliseconds(59700)), "1m 00s");
  EXPECT_EQ(DurationText(absl::Seconds(185)), "3m 05s");
  EXPECT_EQ(DurationText(absl::Seconds(7620)), "2h 07m");
  EXPECT_EQ(DurationText(absl::Hours(76)), "3d 04h");
  EXPECT_EQ(DurationText(absl::InfiniteDuration()), "-");
}

TEST(Format, TableAlignsWithoutTrailingSpaces) {
  Table table({"A", "LONG"});
  table.Add({"wide", "x"});
  table.Add({"\x1b[1m", ""});
  EXPECT_EQ(table.Render(), "A     LONG\nwide  x\n?[1m\n");
}

TEST(Format, ParsesSizes) {
  EXPECT_EQ(ParseBytes("4096"), 4096);
  EXPECT_EQ(ParseBytes("9GiB"), int64_t{9} << 30);
  EXPECT_EQ(ParseBytes("1.5 MiB"), 3 << 19);
  EXPECT_EQ(ParseBytes("850MB"), 850'000'000);
  EXPECT_EQ(ParseBytes("1Ti"), int64_t{1} << 40);
  EXPECT_EQ(ParseBytes("2K"), 2000);
  for (const char* bad : {"", "0", "-1", "x", "9 apples", "GiB", "9GG", "9iB", "1e3", "2000PiB",
                          "nan", "inf", "1.2.3", "9GiBB"}) {
    EXPECT_EQ(ParseBytes(bad), std::nullopt) << bad;
  }
}

}  // namespace
}  // namespace sinq::client
