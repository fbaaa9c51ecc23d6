#include "server/base/metrics_prometheus.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "prometheus/text_serializer.h"
#include "server/base/process_metrics.h"
#include "server/base/text.h"

namespace sinq {
namespace {

constexpr size_t kMaxLabelValueBytes = 128;

// The labels of the table, in its order; those left out are empty.
prometheus::Labels Complete(const MetricInfo& info, const MetricLabels& labels) {
  prometheus::Labels complete;
  for (const std::string& name : info.labels) {
    const auto found = labels.find(name);
    complete[name] = found == labels.end() ? "" : PrintableText(found->second, kMaxLabelValueBytes);
  }
  return complete;
}

}  // namespace

PrometheusMetrics::PrometheusMetrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      process_(std::make_shared<ProcessMetrics>()) {
  for (const MetricInfo& info : AllMetrics()) Register(info);
  internal_errors_ = &families_["sinq_internal_errors_total"].counter->Add({});
}

// A metric without labels shows its zero from the start, so that alerts need no "absent" case.
void PrometheusMetrics::Register(const MetricInfo& info) {
  Family family;
  family.info = &info;
  switch (info.type) {
    case MetricType::kCounter:
      family.counter =
          &prometheus::BuildCounter().Name(info.name).Help(info.help).Register(*registry_);
      if (info.labels.empty()) family.counter->Add({});
      break;
    case MetricType::kGauge:
      family.gauge = &prometheus::BuildGauge().Name(info.name).Help(info.help).Register(*registry_);
      if (info.labels.empty()) family.gauge->Add({});
      break;
    case MetricType::kHistogram:
      family.histogram =
          &prometheus::BuildHistogram().Name(info.name).Help(info.help).Register(*registry_);
      if (info.labels.empty()) family.histogram->Add({}, info.buckets);
      break;
  }
  families_[info.name] = family;
}

void PrometheusMetrics::CountError() { internal_errors_->Increment(); }

const PrometheusMetrics::Family* PrometheusMetrics::Find(absl::string_view name, MetricType type,
                                                         const MetricLabels& labels) {
  const auto found = absl::StartsWith(name, "sinq_") ? families_.find(name)
                                                     : families_.find(absl::StrCat("sinq_", name));
  const bool known = found != families_.end() && found->second.info->type == type;
  if (!known || !AdmitSeries(found->second, labels)) {
    CountError();
    return nullptr;
  }
  return &found->second;
}

bool PrometheusMetrics::AdmitSeries(const Family& family, const MetricLabels& labels) {
  if (labels.empty()) return true;
  const std::vector<std::string>& names = family.info->labels;
  std::string key;
  for (const auto& [name, value] : labels) {
    if (std::find(names.begin(), names.end(), name) == names.end()) return false;
    absl::StrAppend(&key, name, "=", value, "\n");
  }
  MutexLock lock(&mutex_);
  absl::flat_hash_set<std::string>& seen = series_[family.info];
  if (seen.contains(key)) return true;
  if (seen.size() >= kMaxSeriesPerFamily) return false;
  seen.insert(std::move(key));
  return true;
}

void PrometheusMetrics::Add(absl::string_view counter, double amount, const MetricLabels& labels) {
  const Family* family = Find(counter, MetricType::kCounter, labels);
  if (family == nullptr) return;
  if (!(amount >= 0)) return CountError();  // also NaN
  family->counter->Add(Complete(*family->info, labels)).Increment(amount);
}

void PrometheusMetrics::Set(absl::string_view gauge, double value, const MetricLabels& labels) {
  const Family* family = Find(gauge, MetricType::kGauge, labels);
  if (family == nullptr) return;
  if (std::isnan(value)) return CountError();
  family->gauge->Add(Complete(*family->info, labels)).Set(value);
}

void PrometheusMetrics::Observe(absl::string_view histogram, double value,
                                const MetricLabels& labels) {
  const Family* family = Find(histogram, MetricType::kHistogram, labels);
  if (family == nullptr) return;
  if (std::isnan(value)) return CountError();
  family->histogram->Add(Complete(*family->info, labels), family->info->buckets).Observe(value);
}

std::string PrometheusMetrics::Expose() const {
  std::vector<prometheus::MetricFamily> all = registry_->Collect();
  for (prometheus::MetricFamily& family : process_->Collect()) all.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(all);
}

std::vector<std::shared_ptr<prometheus::Collectable>> PrometheusMetrics::Collectables() const {
  return {registry_, process_};
}

std::unique_ptr<Metrics> MakePrometheusMetrics() { return std::make_unique<PrometheusMetrics>(); }

}  // namespace sinq
