#include "server/rpc/dry_run_survey.h"

#include <atomic>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/log.h"
#include "server/worker/width_survey.h"

namespace sinq {
namespace {

constexpr absl::Duration kLogInterval = absl::Seconds(10);

// One of the kMaxPlanSurveys places, given back when it goes.
class Place {
 public:
  explicit Place(std::atomic<int>& taken) : taken_(taken), is_mine_(++taken <= kMaxPlanSurveys) {}
  ~Place() { --taken_; }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  bool is_mine() const { return is_mine_; }

 private:
  std::atomic<int>& taken_;
  const bool is_mine_;
};

}  // namespace

uint64_t SurveyBytes(const Plan& plan) {
  uint64_t bytes = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    if (HasUnit(Phase::kWidths, tensor)) bytes += tensor.source.size_bytes;
  }
  return bytes;
}

absl::StatusOr<WidthErrors> SurveyForDryRun(ServiceContext& context, const Plan& open,
                                            const ModelSource& source,
                                            absl::FunctionRef<bool()> cancelled) {
  const Place place(context.plan_surveys);
  if (!place.is_mine()) {
    return MakeError(absl::StatusCode::kUnavailable, Reason::kQueueFull,
                     "Another dry run is measuring weights; try again when it is done, or submit "
                     "the job.",
                     {{"limit", absl::StrCat(kMaxPlanSurveys)}}, absl::Seconds(10));
  }
  const uint64_t total = SurveyBytes(open);
  uint64_t done = 0;
  auto last = std::chrono::steady_clock::now();
  const auto log = [&](absl::string_view event) {
    Log(LogLevel::kInfo, event,
        {{"bytes_done", absl::StrCat(done)}, {"bytes_total", absl::StrCat(total)}});
  };
  log("plan_survey_started");
  WidthErrors errors;
  const absl::Status status = SurveyWidths(
      {open, source, context.workers, context.budget}, /*done=*/{},
      [&](const PlannedTensor& tensor, std::vector<double> measured) {
        errors[tensor.source.name] = std::move(measured);
        done += tensor.source.size_bytes;
        const auto now = std::chrono::steady_clock::now();
        if (absl::FromChrono(now - last) < kLogInterval) return absl::OkStatus();
        last = now;
        log("plan_survey_progress");
        return absl::OkStatus();
      },
      [&] { return cancelled() || context.draining; });
  log(status.ok() ? "plan_survey_finished" : "plan_survey_stopped");
  if (!status.ok()) return status;
  return errors;
}

}  // namespace sinq
