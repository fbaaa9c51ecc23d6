// A clock that moves when told to.
#ifndef SINQ_TESTS_FAKES_FAKE_CLOCK_H_
#define SINQ_TESTS_FAKES_FAKE_CLOCK_H_

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"

namespace sinq {

// Thread-safe. The wall clock and the boot clock start apart, so that code which mixes them fails.
class FakeClock final : public Clock {
 public:
  absl::Time WallNow() const override {
    MutexLock lock(&mutex_);
    return wall_;
  }
  absl::Duration SinceBoot() const override {
    MutexLock lock(&mutex_);
    return since_boot_;
  }
  std::string BootId() const override {
    MutexLock lock(&mutex_);
    return boot_id_;
  }

  // Time passes: both clocks move.
  void Advance(absl::Duration by) {
    MutexLock lock(&mutex_);
    wall_ += by;
    since_boot_ += by;
  }
  // Somebody sets the wall clock.
  void JumpWall(absl::Duration by) {
    MutexLock lock(&mutex_);
    wall_ += by;
  }
  // The machine starts again: the boot clock from zero, with a new id.
  void Reboot(std::string boot_id) {
    MutexLock lock(&mutex_);
    boot_id_ = std::move(boot_id);
    since_boot_ = absl::ZeroDuration();
  }

 private:
  mutable Mutex mutex_;
  absl::Time wall_ ABSL_GUARDED_BY(mutex_) = absl::FromUnixSeconds(1'700'000'000);
  absl::Duration since_boot_ ABSL_GUARDED_BY(mutex_) = absl::Seconds(1000);
  std::string boot_id_ ABSL_GUARDED_BY(mutex_) = "boot-1";
};

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_FAKE_CLOCK_H_
