// The table of metrics: what exists, of which type, with which labels and buckets.
#ifndef SINQ_SERVER_BASE_METRICS_TABLE_H_
#define SINQ_SERVER_BASE_METRICS_TABLE_H_

#include <string>
#include <vector>

namespace sinq {

enum class MetricType { kCounter, kGauge, kHistogram };

// Units are seconds, bytes and weights; label values are bounded sets, never ids, URIs or names of
// tensors.
struct MetricInfo {
  std::string name;  // with the prefix "sinq_"
  MetricType type = MetricType::kCounter;
  std::string help;
  std::vector<std::string> labels;
  std::vector<double> buckets;  // histograms: upper bounds, ascending
};

const std::vector<MetricInfo>& AllMetrics();

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_METRICS_TABLE_H_
