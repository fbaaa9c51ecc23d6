// Time as a parameter: time-outs and leases become unit tests without sleeping.
#ifndef SINQ_SERVER_BASE_CLOCK_H_
#define SINQ_SERVER_BASE_CLOCK_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace sinq {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall clock: for people and for retention only. It may jump.
  virtual absl::Time WallNow() const = 0;
  // Time since boot, including suspend (CLOCK_BOOTTIME); never goes back. Leases use it together
  // with BootId().
  virtual absl::Duration SinceBoot() const = 0;
  // Changes at every boot (/proc/sys/kernel/random/boot_id).
  virtual std::string BootId() const = 0;
};

// The machine's clock. The object lives as long as the process.
const Clock& SystemClock();

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_CLOCK_H_
