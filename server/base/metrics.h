// The service's metrics by name, behind an interface free of the metrics library. Names, units,
// labels and buckets: metrics_table.cc.
#ifndef SINQ_SERVER_BASE_METRICS_H_
#define SINQ_SERVER_BASE_METRICS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe. A name must be one of the table in metrics_table.cc (with its type, help, buckets
// and label names); the prefix "sinq_" may be left out. An unknown name or label, a value that the
// type forbids (a counter going down, NaN) or too many label values is ignored and counted in
// sinq_internal_errors_total, never a crash. A label that is left out is empty.
class Metrics {
 public:
  virtual ~Metrics() = default;
  virtual void Add(absl::string_view counter, double amount, const MetricLabels& labels = {}) = 0;
  virtual void Set(absl::string_view gauge, double value, const MetricLabels& labels = {}) = 0;
  virtual void Observe(absl::string_view histogram, double value,
                       const MetricLabels& labels = {}) = 0;
  virtual std::string Expose() const = 0;  // text format
};

// Registry without a listener.
std::unique_ptr<Metrics> MakePrometheusMetrics();
// HTTP on "host:port" (an IP address or "localhost"; port 0: any) serving /metrics; stops when
// destroyed, which must be before `metrics` is. Unavailable if the address cannot be bound.
class MetricsServer {
 public:
  virtual ~MetricsServer() = default;
  virtual int port() const = 0;
};
absl::StatusOr<std::unique_ptr<MetricsServer>> StartMetricsServer(const std::string& listen,
                                                                  Metrics& metrics);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_METRICS_H_
