#include "server/job/job.h"

#include <array>
#include <cstddef>
#include <utility>

namespace sinq {
namespace {

constexpr std::array<std::pair<JobState, absl::string_view>, 6> kStates = {{
    {JobState::kQueued, "QUEUED"},
    {JobState::kRunning, "RUNNING"},
    {JobState::kSucceeded, "SUCCEEDED"},
    {JobState::kFailed, "FAILED"},
    {JobState::kCancelled, "CANCELLED"},
    {JobState::kExpired, "EXPIRED"},
}};

struct Transition {
  JobState from;
  JobState to;
};

// The whole life of a job. Whatever is not listed cannot happen; terminal states have no way out.
constexpr std::array<Transition, 8> kTransitions = {{
    {JobState::kQueued, JobState::kRunning},     // leased
    {JobState::kQueued, JobState::kCancelled},   // cancelled before any worker had it
    {JobState::kQueued, JobState::kExpired},     // waited longer than it may
    {JobState::kRunning, JobState::kQueued},     // lease lost or released, or to be tried again
    {JobState::kRunning, JobState::kSucceeded},  // output published
    {JobState::kRunning, JobState::kFailed},     // cannot succeed, or attempts used up
    {JobState::kRunning, JobState::kCancelled},  // stopped between tiles
    {JobState::kRunning, JobState::kExpired},    // ran longer than it may
}};

constexpr std::array<absl::string_view, 6> kStages = {"",         "plan",   "measure",
                                                      "quantize", "commit", "done"};

}  // namespace

bool IsTerminal(JobState state) {
  return state != JobState::kQueued && state != JobState::kRunning;
}

bool IsLegalTransition(JobState from, JobState to) {
  for (const Transition& legal : kTransitions) {
    if (legal.from == from && legal.to == to) return true;
  }
  return false;
}

absl::string_view JobStateName(JobState state) {
  const size_t index = static_cast<size_t>(state);
  return index < kStates.size() ? kStates[index].second : "UNKNOWN";
}

bool ParseJobState(absl::string_view name, JobState* out) {
  for (const auto& [state, text] : kStates) {
    if (text != name) continue;
    *out = state;
    return true;
  }
  return false;
}

absl::string_view JobStageName(JobStage stage) {
  const size_t index = static_cast<size_t>(stage);
  return index < kStages.size() ? kStages[index] : "";
}

}  // namespace sinq
