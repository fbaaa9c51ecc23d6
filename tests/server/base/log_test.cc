#include "server/base/log.h"

#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace sinq {
namespace {

TEST(Log, OneJsonLinePerEvent) {
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "job_finished", {{"job", "j1"}, {"text", "a \"b\"\n{}"}});
  Log(LogLevel::kDebug, "not_shown");
  const std::string out = testing::internal::GetCapturedStderr();
  ASSERT_EQ(out.find('\n'), out.size() - 1) << out;
  const nlohmann::json line = nlohmann::json::parse(out);
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["event"], "job_finished");
  EXPECT_EQ(line["job"], "j1");
  EXPECT_EQ(line["ts"].get<std::string>().back(), 'Z');
}

TEST(Log, HostileValuesStayOneShortLine) {
  const std::string line =
      FormatLogLine(LogLevel::kError, "e", "t", {{"v", "\x1b\xff\n" + std::string(100'000, 'x')}});
  EXPECT_LT(line.size(), 5000u);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_TRUE(nlohmann::json::accept(line));
}

}  // namespace
}  // namespace sinq
