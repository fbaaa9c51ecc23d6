#include "server/base/limits.h"

#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

// kMaxUriBytes -> max_uri_bytes
std::string TableName(const std::string& constant) {
  std::string name;
  for (size_t i = 1; i < constant.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(constant[i]);
    if (i > 1 && absl::ascii_isupper(c)) name += '_';
    name += absl::ascii_tolower(c);
  }
  return name;
}

std::set<std::string> ConstantsOfTheHeader() {
  std::ifstream file(absl::StrCat(SINQ_SOURCE_DIR, "/server/base/limits.h"));
  std::set<std::string> names;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string a, b, c, name;
    if (words >> a >> b >> c >> name && a == "inline" && name != "kKiB") {
      names.insert(TableName(name));
    }
  }
  return names;
}

TEST(Limits, TheTableHasEveryConstantOnce) {
  std::set<std::string> listed;
  for (const LimitInfo& limit : AllLimits()) {
    EXPECT_TRUE(listed.insert(limit.name).second) << limit.name << " is listed twice";
    EXPECT_GT(limit.value, 0u) << limit.name;
    EXPECT_FALSE(limit.derivation.empty()) << limit.name;
  }
  EXPECT_EQ(listed, ConstantsOfTheHeader());
}

TEST(Limits, TheyFitTogether) {
  EXPECT_LE(kMaxClientChunkBytes + 64 * kKiB, kMaxMessageBytes);
  EXPECT_LE(kChunkBytes, kMaxMessageBytes);
  EXPECT_LT(kMaxSafetensorsHeaderBytes, 100'000'000u);  // the format's own bound
}

}  // namespace
}  // namespace sinq
