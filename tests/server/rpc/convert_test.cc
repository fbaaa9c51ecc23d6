#include "server/rpc/convert.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ConvertTest, UnsetFieldsOfARecipeTakeTheirDefaults) {
  const JobSpec spec = ToJobSpec("/in", "/out", {});
  EXPECT_EQ(spec.method, "sinq");
  EXPECT_EQ(spec.profile, "default");
  EXPECT_EQ(spec.bits, 4);
  EXPECT_EQ(spec.group_size, 64);
  EXPECT_EQ(spec.aux, "u8");
  EXPECT_FALSE(spec.symmetric);
  const auto params = ToQuantParams({});
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->bits, 4);
}

TEST(ConvertTest, WidthsThatDoNotExistAreRefused) {
  for (const int bits : {-1, 1, 7, 9, 2147483647}) {
    v1::Recipe recipe;
    recipe.set_bits(bits);
    EXPECT_TRUE(absl::IsInvalidArgument(ToQuantParams(recipe).status())) << bits;
  }
  v1::Recipe recipe;
  recipe.set_group_size(48);
  EXPECT_FALSE(ToQuantParams(recipe).ok());
  recipe.Clear();
  recipe.set_method("magic");
  EXPECT_THAT(std::string(ToQuantParams(recipe).status().message()), HasSubstr("magic"));
}

TEST(ConvertTest, FiltersNameStates) {
  EXPECT_THAT(*ParseListFilter("state=QUEUED|RUNNING"),
              ElementsAre(JobState::kQueued, JobState::kRunning));
  EXPECT_TRUE(ParseListFilter("")->empty());
  for (const char* filter : {"state=", "state=LOST", "owner=me", "QUEUED", "state=QUEUED|"}) {
    EXPECT_FALSE(ParseListFilter(filter).ok()) << filter;
  }
}

TEST(ConvertTest, AJobThatJustStartedIsPlanning) {
  Job job;
  job.state = JobState::kRunning;
  EXPECT_EQ(ToProto(job).progress().stage(), v1::JOB_STAGE_PLAN);
  job.state = JobState::kQueued;
  EXPECT_EQ(ToProto(job).progress().stage(), v1::JOB_STAGE_UNSPECIFIED);
}

}  // namespace
}  // namespace sinq
