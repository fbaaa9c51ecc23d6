#include "server/base/posix_path.h"

#include <string>

#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

TEST(ParseLocalUri, NormalisesPathsAndFileUris) {
  EXPECT_EQ(*ParseLocalUri("/a/b"), "/a/b");
  EXPECT_EQ(*ParseLocalUri("//a/./b//c/"), "/a/b/c");
  EXPECT_EQ(*ParseLocalUri("/"), "");
  EXPECT_EQ(*ParseLocalUri("file:///a%20b/%41"), "/a b/A");
  EXPECT_EQ(*ParseLocalUri("FILE:///a"), "/a");
  EXPECT_EQ(*ParseLocalUri("/a/c:d%20?x#y"), "/a/c:d%20?x#y");  // a plain path has no escapes
  EXPECT_EQ(*ParseLocalUri("/a/..b/..."), "/a/..b/...");
}

TEST(ParseLocalUri, RefusesMalformed) {
  const std::string nul("/a\0b", 4);
  const std::string cases[] = {"", "a/b", ".", "http://h/a", "s3://b/k", "file:/a", "file://a",
                               "file://host/a", "file:a", "file:", "file://", "file:///a%0",
                               "file:///a%zz", "file:///a%00", "file:///a%2fb", "file:///a?b",
                               "file:///a#b", "hf://x", nul, "\\\\host\\share"};
  for (const std::string& uri : cases) {
    EXPECT_EQ(ParseLocalUri(uri).status().code(), absl::StatusCode::kInvalidArgument) << uri;
  }
  EXPECT_EQ(GetErrorDetails(ParseLocalUri("/" + std::string(kMaxUriBytes, 'a')).status()).reason,
            Reason::kLimitExceeded);
}

TEST(ParseLocalUri, RefusesToClimb) {
  for (const char* uri : {"/..", "/a/../b", "/a/..", "file:///a/../b", "file:///a/%2e%2e/b",
                          "file:///a/.%2E"}) {
    const absl::Status status = ParseLocalUri(uri).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << uri;
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kPathOutsideRoots) << uri;
  }
}

TEST(RelativeName, Rules) {
  for (const char* good : {"a", "a/b", ".hidden", "a..b", "...", "."}) {
    EXPECT_TRUE(CheckRelativeName(good).ok()) << good;
  }
  for (const char* bad : {"", "/a", "..", "a/..", "../a", "a/../b"}) {
    EXPECT_FALSE(CheckRelativeName(bad).ok()) << bad;
  }
  EXPECT_EQ(SplitParent("a/b/c"), (std::pair<std::string, std::string>("a/b", "c")));
  EXPECT_EQ(SplitParent("c/"), (std::pair<std::string, std::string>("", "c")));
  EXPECT_EQ(JoinPath("", "a"), "a");
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
}

}  // namespace
}  // namespace sinq
