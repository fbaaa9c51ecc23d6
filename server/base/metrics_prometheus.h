// Metrics kept in a prometheus-cpp registry.
#ifndef SINQ_SERVER_BASE_METRICS_PROMETHEUS_H_
#define SINQ_SERVER_BASE_METRICS_PROMETHEUS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/base/metrics.h"
#include "server/base/metrics_table.h"
#include "server/base/mutex.h"

namespace sinq {

// See Metrics. Families are made once from the table; a family keeps at most kMaxSeriesPerFamily
// label combinations, so that a caller's mistake cannot grow without bound.
class PrometheusMetrics final : public Metrics {
 public:
  static constexpr size_t kMaxSeriesPerFamily = 1000;

  PrometheusMetrics();
  void Add(absl::string_view counter, double amount, const MetricLabels& labels) override;
  void Set(absl::string_view gauge, double value, const MetricLabels& labels) override;
  void Observe(absl::string_view histogram, double value, const MetricLabels& labels) override;
  std::string Expose() const override;

  // What an HTTP endpoint serves, in this order.
  std::vector<std::shared_ptr<prometheus::Collectable>> Collectables() const;

 private:
  struct Family {
    const MetricInfo* info = nullptr;
    prometheus::Family<prometheus::Counter>* counter = nullptr;
    prometheus::Family<prometheus::Gauge>* gauge = nullptr;
    prometheus::Family<prometheus::Histogram>* histogram = nullptr;
  };
  void Register(const MetricInfo& info);
  // The family, if the call fits the table; counts an internal error and returns null otherwise.
  const Family* Find(absl::string_view name, MetricType type, const MetricLabels& labels);
  bool AdmitSeries(const Family& family, const MetricLabels& labels);
  void CountError();

  const std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<prometheus::Collectable> process_;
  absl::flat_hash_map<std::string, Family> families_;  // constant after construction
  prometheus::Counter* internal_errors_ = nullptr;     // constant after construction
  Mutex mutex_;
  absl::flat_hash_map<const MetricInfo*, absl::flat_hash_set<std::string>> series_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_METRICS_PROMETHEUS_H_
