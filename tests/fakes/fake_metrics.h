// Metrics that a test can ask for.
#ifndef SINQ_TESTS_FAKES_FAKE_METRICS_H_
#define SINQ_TESTS_FAKES_FAKE_METRICS_H_

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"

namespace sinq {

// Sums by name and labels; of a histogram the number of values. Thread-safe.
class FakeMetrics final : public Metrics {
 public:
  void Add(absl::string_view name, double amount, const MetricLabels& labels) override {
    MutexLock lock(&mutex_);
    values_[Key(name, labels)] += amount;
  }
  void Set(absl::string_view name, double value, const MetricLabels& labels) override {
    MutexLock lock(&mutex_);
    values_[Key(name, labels)] = value;
  }
  void Observe(absl::string_view name, double, const MetricLabels& labels) override {
    Add(name, 1, labels);
  }
  std::string Expose() const override { return ""; }
  double Get(absl::string_view name, const MetricLabels& labels = {}) const {
    MutexLock lock(&mutex_);
    const auto found = values_.find(Key(name, labels));
    return found == values_.end() ? 0 : found->second;
  }

 private:
  static std::string Key(absl::string_view name, const MetricLabels& labels) {
    std::string key(name);
    for (const auto& [label, value] : labels) absl::StrAppend(&key, "|", label, "=", value);
    return key;
  }
  mutable Mutex mutex_;
  std::map<std::string, double> values_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_FAKE_METRICS_H_
