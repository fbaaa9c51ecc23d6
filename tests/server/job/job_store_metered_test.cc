#include "server/job/job_store_metered.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(MeteredJobStoreTest, CallsAreTimedByOperationAndAnswersAreNoErrors) {
  TempDir temp;
  FakeClock clock;
  const std::unique_ptr<Metrics> metrics = MakePrometheusMetrics();
  const std::unique_ptr<JobStore> store =
      MakeMeteredJobStore(*OpenSqliteJobStore(temp.Join("jobs.db"), clock), *metrics);
  JobSpec spec = NativeSpec();
  spec.source_uri = "/in";
  spec.output_uri = "/out";
  const auto created = store->Create(spec, "r");
  ASSERT_TRUE(created.ok());
  EXPECT_EQ(store->Get(created->job.id)->id, created->job.id);
  EXPECT_TRUE(absl::IsNotFound(store->Get("job-none").status()));
  EXPECT_EQ(store->FindRequest(spec, "r")->job.id, created->job.id);
  EXPECT_TRUE(absl::IsNotFound(store->FindRequest(spec, "other").status()));
  const std::string text = metrics->Expose();
  EXPECT_THAT(text, HasSubstr("sinq_store_query_seconds_count{op=\"create\"} 1"));
  EXPECT_THAT(text, HasSubstr("sinq_store_query_seconds_count{op=\"get\"} 2"));
  EXPECT_THAT(text, Not(HasSubstr("sinq_store_errors_total{class")));
}

}  // namespace
}  // namespace sinq
