#include "server/job/page_token.h"

#include <string>

#include "gtest/gtest.h"

namespace sinq {
namespace {

TEST(PageTokenTest, ComesBack) {
  for (const int64_t last : {int64_t{0}, int64_t{1}, int64_t{1} << 40}) {
    const absl::StatusOr<int64_t> back = DecodePageToken(EncodePageToken(last, "FAILED"), "FAILED");
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(*back, last);
  }
}

TEST(PageTokenTest, RefusesWhatItDidNotMake) {
  const std::string token = EncodePageToken(42, "FAILED");
  EXPECT_FALSE(DecodePageToken(token, "").ok());
  EXPECT_FALSE(DecodePageToken("", "FAILED").ok());
  EXPECT_FALSE(DecodePageToken("42", "FAILED").ok());
  EXPECT_FALSE(DecodePageToken(std::string(1 << 20, 'A'), "FAILED").ok());
  for (size_t i = 0; i < token.size(); ++i) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_EQ(DecodePageToken(changed, "FAILED").status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace sinq
