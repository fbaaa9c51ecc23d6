#include "server/base/clock.h"

#include <time.h>

#include <fstream>

#include "absl/time/clock.h"

namespace sinq {
namespace {

std::string ReadBootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  // Without an id every start counts as the same boot: leases then rest on the boot clock alone,
  // which starts again from zero and so only makes an old lease last longer, never shorter.
  return id.empty() ? "unknown" : id;
}

class RealClock final : public Clock {
 public:
  RealClock() : boot_id_(ReadBootId()) {}
  absl::Time WallNow() const override { return absl::Now(); }
  absl::Duration SinceBoot() const override {
    struct timespec now = {};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return absl::DurationFromTimespec(now);
  }
  std::string BootId() const override { return boot_id_; }

 private:
  const std::string boot_id_;
};

}  // namespace

const Clock& SystemClock() {
  static const RealClock* const clock = new RealClock;  // never destroyed: outlives every thread
  return *clock;
}

}  // namespace sinq
