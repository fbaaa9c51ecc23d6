#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/time/clock.h"
#include "tests/client/fake_server.h"
#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

class SubmitTest : public testing::Test {
 protected:
  SubmitTest() {
    server_.jobs.job.set_job_id("job-1");
    server_.jobs.job.set_output_uri("/data/out");
    server_.jobs.job.mutable_progress()->set_output_bytes(2048);
    server_.jobs.job.mutable_progress()->set_effective_bits(4.5);
    End(v1::JOB_STATE_SUCCEEDED);
  }
  void End(v1::JobState state) {
    server_.jobs.job.set_state(state);
    server_.jobs.events = {Event(1, v1::JOB_STATE_QUEUED, 0), Event(2, v1::JOB_STATE_RUNNING, 10),
                           Event(3, v1::JOB_STATE_RUNNING, 60), Event(4, state, 100)};
  }
  FakeServer::Result Submit(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"submit", "/data/in", "--output", "/data/out"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return server_.Run(arguments);
  }
  FakeServer server_;
};

TEST_F(SubmitTest, PrintsOnlyTheIdUnlessItWaits) {
  const auto result = Submit({});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "job-1\n");
  EXPECT_TRUE(server_.jobs.watched_after.empty());
}

TEST_F(SubmitTest, WaitPrintsIdThenResult) {
  const auto result = Submit({"--wait"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out.rfind("job-1\n", 0), 0u);
  EXPECT_NE(result.out.find("/data/out"), std::string::npos);
  EXPECT_NE(result.out.find("2.0 KiB"), std::string::npos);
  EXPECT_NE(result.out.find("4.5"), std::string::npos);
  EXPECT_NE(result.err.find("60%"), std::string::npos);
}

TEST_F(SubmitTest, AResultWithoutAQuantizedTensorSaysWhereTheReasonsAre) {
  server_.jobs.job.mutable_progress()->set_effective_bits(0);
  const auto result = Submit({"--wait"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("sinqctl plan"), std::string::npos) << result.out;
  EXPECT_EQ(result.out.find("bits per weight"), std::string::npos) << result.out;
}

TEST_F(SubmitTest, WaitReconnectsFromTheLastSequenceAndSaysSo) {
  server_.jobs.break_after_events = 2;
  const auto result = Submit({"--wait"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(server_.jobs.watched_after, (std::vector<int64_t>{0, 2}));
  EXPECT_NE(result.err.find("trying again"), std::string::npos);
}

TEST_F(SubmitTest, QuietIsQuiet) {
  server_.jobs.break_after_events = 2;
  EXPECT_EQ(Submit({"--wait", "-q"}).err, "");
}

TEST_F(SubmitTest, RepeatedAttemptsCarryTheSameRequestId) {
  server_.jobs.failures_before_create = 2;
  const auto result = Submit({});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  ASSERT_EQ(server_.jobs.creates.size(), 3u);
  EXPECT_FALSE(server_.jobs.creates[0].request_id().empty());
  EXPECT_EQ(server_.jobs.creates[0].request_id(), server_.jobs.creates[2].request_id());
}

TEST_F(SubmitTest, FailedAndCancelledJobsExitWithOne) {
  End(v1::JOB_STATE_FAILED);
  server_.jobs.job.mutable_error()->set_reason("NON_FINITE_WEIGHT");
  server_.jobs.job.mutable_error()->set_message("Tensor x holds a NaN.");
  const auto failed = Submit({"--wait"});
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_NE(failed.err.find("Tensor x holds a NaN."), std::string::npos);
  EXPECT_NE(failed.err.find("NON_FINITE_WEIGHT"), std::string::npos);
  End(v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(Submit({"--wait"}).exit_code, 1);
}

TEST_F(SubmitTest, TimeoutOnlyStopsWaiting) {
  server_.jobs.events.pop_back();
  server_.jobs.hang_at_end = true;
  const auto result = Submit({"--wait", "--timeout", "0.3"});
  EXPECT_EQ(result.exit_code, 6) << result.err;
  EXPECT_NE(result.err.find("sinqctl watch job-1 --after 3"), std::string::npos) << result.err;
}

TEST_F(SubmitTest, InterruptLeavesTheJobAndPrintsItsId) {
  server_.jobs.events.pop_back();
  server_.jobs.hang_at_end = true;
  std::thread user([&] {
    absl::SleepFor(absl::Milliseconds(200));
    server_.cancel.Cancel();
  });
  const auto result = Submit({"--wait"});
  user.join();
  EXPECT_EQ(result.exit_code, 130) << result.err;
  EXPECT_NE(result.err.find("job-1"), std::string::npos);
}

TEST_F(SubmitTest, RelativePathsAreCompleted) {
  const auto result = server_.Run({"submit", "in/../model", "--output", "out/"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const v1::CreateJobRequest& request = server_.jobs.creates.at(0);
  EXPECT_EQ(request.source_uri()[0], '/');
  EXPECT_EQ(request.source_uri().find(".."), std::string::npos);
  EXPECT_EQ(request.output_uri().substr(request.output_uri().rfind('/')), "/out");
}

TEST_F(SubmitTest, JsonIsTheApiMessage) {
  const auto result = Submit({"-o", "json"});
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["job"]["job_id"], "job-1");
  EXPECT_EQ(json["replayed"], false);
}

TEST_F(SubmitTest, UsageErrorsExitWithTwo) {
  EXPECT_EQ(server_.Run({"submit", "/in"}).exit_code, 2);
  EXPECT_EQ(server_.Run({"nonsense"}).exit_code, 2);
  EXPECT_EQ(server_.Run({"list", "-o", "yaml"}).exit_code, 2);
  EXPECT_EQ(Submit({"--wait", "--detach"}).exit_code, 2);
  EXPECT_EQ(Submit({"--timeout", "-1"}).exit_code, 2);
  EXPECT_EQ(server_.Run({"submit", "--help"}).exit_code, 0);
}

TEST_F(SubmitTest, OnlyWhatWasGivenIsSent) {
  ASSERT_EQ(Submit({}).exit_code, 0);
  EXPECT_EQ(server_.jobs.creates.at(0).recipe().ByteSizeLong(), 0u);
}

TEST_F(SubmitTest, OptionsFillTheRecipe) {
  const auto result = Submit({"--method", "asinq", "--bits", "8", "--group-size", "128",
                              "--asymmetric", "--tiling", "2D", "--format", "gguf", "--fold", "off",
                              "--aux", "f16", "--activations", "/a", "--gguf-template", "/g"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const v1::Recipe& recipe = server_.jobs.creates.at(0).recipe();
  EXPECT_EQ(recipe.method(), "asinq");
  EXPECT_EQ(recipe.bits(), 8);
  EXPECT_EQ(recipe.group_size(), 128);
  EXPECT_TRUE(recipe.has_symmetric());
  EXPECT_FALSE(recipe.symmetric());
  EXPECT_EQ(recipe.tiling(), "2D");
  EXPECT_EQ(recipe.format(), "gguf");
  EXPECT_EQ(recipe.fold(), "off");
  EXPECT_EQ(recipe.aux(), "f16");
  EXPECT_EQ(recipe.activations_uri(), "/a");
  EXPECT_EQ(recipe.gguf_template_uri(), "/g");
}

TEST_F(SubmitTest, ATargetChoosesTheBits) {
  ASSERT_EQ(Submit({"--bits", "auto", "--target-bpw", "4.25"}).exit_code, 0);
  EXPECT_EQ(server_.jobs.creates.at(0).recipe().target_bits_per_weight(), 4.25);
  EXPECT_EQ(server_.jobs.creates.at(0).recipe().bits(), 0);
  ASSERT_EQ(Submit({"--target-size", "9GiB"}).exit_code, 0);
  EXPECT_EQ(server_.jobs.creates.at(1).recipe().target_size_bytes(), int64_t{9} << 30);
}

TEST_F(SubmitTest, WidthsThatDoNotGoTogetherExitWithTwo) {
  auto result = Submit({"--bits", "auto"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("--target-bpw"), std::string::npos) << result.err;
  result = Submit({"--bits", "4", "--target-bpw", "4.25"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("leaves nothing to choose"), std::string::npos) << result.err;
  EXPECT_EQ(Submit({"--bits", "auto", "--target-size", "9 apples"}).exit_code, 2);
  EXPECT_EQ(Submit({"--target-bpw", "4", "--target-size", "9GiB"}).exit_code, 2);
  EXPECT_EQ(Submit({"--target-bpw", "-4"}).exit_code, 2);
  EXPECT_EQ(Submit({"--bits", "four"}).exit_code, 2);
  EXPECT_EQ(Submit({"--bits", "0"}).exit_code, 2);
  EXPECT_EQ(Submit({"--group-size", "many"}).exit_code, 2);
  EXPECT_EQ(Submit({"--symmetric", "--asymmetric"}).exit_code, 2);
  EXPECT_TRUE(server_.jobs.creates.empty());
}

class RecipeFileTest : public SubmitTest {
 protected:
  RecipeFileTest() { std::filesystem::create_directories(scratch_.path()); }
  FakeServer::Result SubmitFile(const std::string& content, std::vector<std::string> more = {}) {
    std::ofstream(path_) << content;
    more.insert(more.begin(), {"--recipe", path_});
    return Submit(more);
  }
  const ScratchDir scratch_;
  const std::string path_ = scratch_.path() + "/recipe.json";
};

TEST_F(RecipeFileTest, OptionsWinOverTheFile) {
  const auto result = SubmitFile(
      R"({"bits": 3, "group_size": 128, "include": ["a"], "symmetric": true,
          "rules": [{"pattern": "down_proj", "bits": 8}, {"pattern": "x", "quantize": false}]})",
      {"--bits", "5", "--include", "b", "--asymmetric"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const v1::Recipe& recipe = server_.jobs.creates.at(0).recipe();
  EXPECT_EQ(recipe.bits(), 5);
  EXPECT_EQ(recipe.group_size(), 128);
  EXPECT_TRUE(recipe.has_symmetric() && !recipe.symmetric());
  ASSERT_EQ(recipe.include_size(), 1);
  EXPECT_EQ(recipe.include(0), "b");
  ASSERT_EQ(recipe.rules_size(), 2);
  EXPECT_EQ(recipe.rules(0).bits(), 8);
  EXPECT_TRUE(recipe.rules(1).has_quantize());
}

TEST_F(RecipeFileTest, BitsAndTargetsReplaceEachOther) {
  ASSERT_EQ(SubmitFile(R"({"target_bits_per_weight": 4.25})", {"--bits", "4"}).exit_code, 0);
  EXPECT_EQ(server_.jobs.creates.at(0).recipe().target_bits_per_weight(), 0);
  ASSERT_EQ(SubmitFile(R"({"bits": 4})", {"--target-size", "1GiB"}).exit_code, 0);
  EXPECT_EQ(server_.jobs.creates.at(1).recipe().bits(), 0);
  ASSERT_EQ(SubmitFile(R"({"target_size_bytes": 100})", {"--bits", "auto"}).exit_code, 0);
  EXPECT_EQ(server_.jobs.creates.at(2).recipe().target_size_bytes(), 100);
}

TEST_F(RecipeFileTest, WhatIsNoRecipeExitsWithTwoAndSaysWhy) {
  const auto unknown = SubmitFile(R"({"bitz": 4})");
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_NE(unknown.err.find("bitz"), std::string::npos) << unknown.err;
  EXPECT_EQ(SubmitFile(R"({"rules": [{"pattern": "a", "bitz": 4}]})").exit_code, 2);
  EXPECT_EQ(SubmitFile(R"({"bits": "four"})").exit_code, 2);
  EXPECT_EQ(SubmitFile("[]").exit_code, 2);
  EXPECT_EQ(SubmitFile("").exit_code, 2);
  EXPECT_EQ(SubmitFile(std::string((1 << 20) + 1, ' ')).exit_code, 2);
  EXPECT_EQ(Submit({"--recipe", scratch_.path() + "/none"}).exit_code, 3);
  EXPECT_TRUE(server_.jobs.creates.empty());
}

TEST_F(SubmitTest, GlobalOptionsBeforeAndAfterTheCommand) {
  EXPECT_EQ(server_.Run({"-o", "name", "get", "job-1"}).out, "job-1\n");
  EXPECT_EQ(server_.Run({"get", "job-1", "-o", "name"}).out, "job-1\n");
}

TEST_F(SubmitTest, EveryCommandHasAnExample) {
  for (const char* name :
       {"submit", "plan", "get", "list", "watch", "cancel", "delete", "artifacts", "download",
        "verify", "quantize", "capabilities", "health", "version", "completion"}) {
    EXPECT_NE(server_.Run({name, "--help"}).out.find("Example:\n  "), std::string::npos) << name;
  }
}

TEST_F(SubmitTest, UnknownJobIsNotFound) {
  EXPECT_EQ(server_.Run({"get", "job-2"}).exit_code, 3);
  EXPECT_EQ(server_.Run({"watch", "job-2"}).exit_code, 3);
}

TEST_F(SubmitTest, WatchOfAFinishedJobAfterItsLastEventEnds) {
  EXPECT_EQ(server_.Run({"watch", "job-1", "--after", "4"}).exit_code, 0);
}

TEST_F(SubmitTest, PlanMergesPages) {
  EXPECT_EQ(server_.Run({"plan", "/in", "-o", "name"}).out, "one\ntwo\n");
}

TEST_F(SubmitTest, Health) {
  EXPECT_EQ(server_.Run({"health"}).out, "SERVING\n");
  EXPECT_EQ(server_.Run({"health", "--service", "nobody"}).exit_code, 3);
}

TEST(NoServer, IsUnavailable) {
  CancelToken cancel;
  std::ostringstream out, err;
  EXPECT_EQ(client::Run({"-o", "json", "list", "--server", "127.0.0.1:1", "-q"}, out, err,
                        Terminal(), cancel),
            5);
  EXPECT_EQ(nlohmann::json::parse(err.str())["error"]["code"], "UNAVAILABLE");
}

}  // namespace
}  // namespace sinq::client
