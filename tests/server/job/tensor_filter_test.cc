#include "server/job/tensor_filter.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

bool Matches(const std::vector<std::string>& include, const std::vector<std::string>& exclude,
             const std::string& name) {
  const absl::StatusOr<TensorFilter> filter = TensorFilter::Make(include, exclude);
  EXPECT_TRUE(filter.ok()) << filter.status();
  return filter.ok() && filter->Matches(name);
}

TEST(TensorFilterTest, SearchesAndExcludeWins) {
  const std::string name = "model.layers.12.mlp.up_proj.weight";
  EXPECT_TRUE(Matches({}, {}, name));
  EXPECT_TRUE(Matches({"mlp"}, {}, name));
  EXPECT_TRUE(Matches({"^model\\.", "nothing"}, {}, name));
  EXPECT_TRUE(Matches({"layers\\.[0-9]{1,3}\\."}, {}, name));
  EXPECT_TRUE(Matches({"a|up_proj\\.weight$"}, {}, name));
  EXPECT_FALSE(Matches({"^mlp"}, {}, name));
  EXPECT_FALSE(Matches({"attn"}, {}, name));
  EXPECT_FALSE(Matches({"mlp"}, {"up_proj"}, name));
  EXPECT_FALSE(Matches({}, {"layers\\.(12|13)\\."}, name));
}

TEST(TensorFilterTest, RefusesWhatCouldStallOrDoesNotCompile) {
  for (const std::string& bad :
       {std::string("("), std::string("a)(b"), std::string("["), std::string("*"), std::string(),
        std::string("a{2"), std::string("(a)\\1"), std::string("(?=a)"), std::string("a(?!b)"),
        std::string("(a?){50000}"), std::string("((a{60}){60}){60}"), std::string("a{9999999999}"),
        std::string(kMaxRegexBytes + 1, 'a')}) {
    EXPECT_EQ(CompileTensorRegex(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

// A backtracking matcher would need longer than the universe has.
TEST(TensorFilterTest, HostilePatternsAreFast) {
  const std::string name(kMaxTensorNameBytes, 'a');
  EXPECT_FALSE(Matches({"(a+)+$b"}, {}, name));
  EXPECT_FALSE(Matches({"(a|aa)+b"}, {}, name));
  EXPECT_FALSE(Matches({"(a*)*(a*)*(a*)*b"}, {}, name));
}

TEST(TensorFilterTest, TheLargestPatternsCompileAndRun) {
  const std::string name(kMaxTensorNameBytes, 'a');
  EXPECT_FALSE(Matches({std::string(510, '(') + "b" + std::string(510, ')')}, {}, name));
  EXPECT_FALSE(Matches({"(a?){400}b"}, {}, name));
  std::string optional;
  while (optional.size() < 1000) optional += "a?";
  EXPECT_FALSE(Matches({optional + "b"}, {}, name));
}

}  // namespace
}  // namespace sinq
