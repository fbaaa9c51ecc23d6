// The standard process_* metrics, read from /proc when scraped.
#ifndef SINQ_SERVER_BASE_PROCESS_METRICS_H_
#define SINQ_SERVER_BASE_PROCESS_METRICS_H_

#include <vector>

#include "prometheus/collectable.h"

namespace sinq {

// Thread-safe. What /proc does not tell is left out.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_PROCESS_METRICS_H_
