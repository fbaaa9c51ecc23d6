#include "kernels/cuda_phase_clock.h"

#include <utility>

namespace sinq::kernels {
namespace {

// A tensor in one piece makes four marks; one in panels waits for the stream after this many.
constexpr size_t kEvents = 32;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPhaseClock>> CudaPhaseClock::Make(
    std::shared_ptr<CudaRuntime> runtime, CudaStream stream) {
  std::unique_ptr<CudaPhaseClock> clock(new CudaPhaseClock(std::move(runtime), stream));
  for (size_t i = 0; i < kEvents; ++i) {
    const absl::StatusOr<CudaEvent> event = clock->runtime_->CreateEvent();
    if (!event.ok()) return event.status();
    clock->events_.push_back(*event);
  }
  return clock;
}

CudaPhaseClock::~CudaPhaseClock() {
  for (CudaEvent event : events_) runtime_->DestroyEvent(event);
}

absl::Status CudaPhaseClock::Start() {
  seconds_ = {};
  phases_.clear();
  return runtime_->Record(events_[0], stream_);
}

absl::Status CudaPhaseClock::Mark(CudaPhase phase) {
  if (phases_.size() + 1 == events_.size()) {
    if (absl::Status status = Collect(); !status.ok()) return status;
    std::swap(events_.front(), events_.back());  // the last mark begins the next interval
  }
  phases_.push_back(phase);
  return runtime_->Record(events_[phases_.size()], stream_);
}

absl::Status CudaPhaseClock::Collect() {
  absl::Status status = runtime_->SynchronizeEvent(events_[phases_.size()]);
  if (!status.ok()) return status;
  for (size_t i = 0; i < phases_.size(); ++i) {
    const absl::StatusOr<double> seconds = runtime_->SecondsBetween(events_[i], events_[i + 1]);
    if (!seconds.ok()) return seconds.status();
    seconds_[static_cast<size_t>(phases_[i])] += *seconds;
  }
  phases_.clear();
  return absl::OkStatus();
}

absl::StatusOr<CudaPhaseSeconds> CudaPhaseClock::Read() {
  const size_t last = phases_.size();
  if (absl::Status status = Collect(); !status.ok()) return status;
  std::swap(events_[0], events_[last]);
  return seconds_;
}

}  // namespace sinq::kernels
