#include "server/job/job.h"

#include <set>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/job/job_codec.h"

namespace sinq {
namespace {

const std::vector<JobState> kAll = {JobState::kQueued, JobState::kRunning,   JobState::kSucceeded,
                                    JobState::kFailed, JobState::kCancelled, JobState::kExpired};

TEST(JobTest, TransitionsAreExactlyTheTable) {
  const std::set<std::pair<JobState, JobState>> legal = {
      {JobState::kQueued, JobState::kRunning},    {JobState::kQueued, JobState::kCancelled},
      {JobState::kQueued, JobState::kExpired},    {JobState::kRunning, JobState::kQueued},
      {JobState::kRunning, JobState::kSucceeded}, {JobState::kRunning, JobState::kFailed},
      {JobState::kRunning, JobState::kCancelled}, {JobState::kRunning, JobState::kExpired}};
  for (const JobState from : kAll) {
    for (const JobState to : kAll) {
      EXPECT_EQ(IsLegalTransition(from, to), legal.count({from, to}) == 1)
          << JobStateName(from) << " -> " << JobStateName(to);
      if (IsTerminal(from)) {
        EXPECT_FALSE(IsLegalTransition(from, to));
      }
    }
  }
}

TEST(JobTest, StateNamesComeBack) {
  for (const JobState state : kAll) {
    JobState parsed = JobState::kExpired;
    EXPECT_TRUE(ParseJobState(JobStateName(state), &parsed));
    EXPECT_EQ(parsed, state);
  }
  JobState parsed;
  EXPECT_FALSE(ParseJobState("queued", &parsed));
  EXPECT_FALSE(ParseJobState("", &parsed));
  EXPECT_EQ(JobStateName(static_cast<JobState>(99)), "UNKNOWN");
}

TEST(JobCodecTest, ProgressComesBack) {
  JobProgress progress{JobStage::kCommit, 1, 2, 3, uint64_t{1} << 60, 5, 4.25};
  JobProgress back;
  ASSERT_TRUE(DecodeProgress(EncodeProgress(progress), &back));
  EXPECT_EQ(EncodeProgress(back), EncodeProgress(progress));
  EXPECT_EQ(back.bytes_total, uint64_t{1} << 60);
  EXPECT_EQ(back.stage, JobStage::kCommit);
}

TEST(JobCodecTest, ErrorComesBackWithItsMessageBounded) {
  JobError back;
  ASSERT_TRUE(
      DecodeError(EncodeError({"INTERNAL", Reason::kIoError, std::string(9000, 'x')}), &back));
  EXPECT_EQ(back.code, "INTERNAL");
  EXPECT_EQ(back.reason, Reason::kIoError);
  EXPECT_LE(back.message.size(), 4096u);
  ASSERT_TRUE(DecodeError("", &back));
  EXPECT_EQ(back.code, "");
}

TEST(JobCodecTest, BytesThatAreNoTextDoNotThrow) {
  JobError back;
  EXPECT_TRUE(DecodeError(EncodeError({"INTERNAL", Reason::kIoError, "\xff\xfe"}), &back));
}

TEST(JobCodecTest, DamageIsFound) {
  JobProgress progress;
  JobError error;
  for (const char* text : {"", "{", "[]", "{\"stage\":7}", "{\"stage\":\"x\"}",
                           "{\"bytes_done\":-1}", "{\"effective_bits\":\"4\"}"}) {
    EXPECT_FALSE(DecodeProgress(text, &progress)) << text;
  }
  EXPECT_FALSE(DecodeError("{\"code\":1}", &error));
}

}  // namespace
}  // namespace sinq
