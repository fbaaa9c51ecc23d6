#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"
#include "server/base/error.h"
#include "server/base/listen_address.h"
#include "server/base/metrics.h"
#include "server/base/metrics_prometheus.h"

namespace sinq {
namespace {

class HttpMetricsServer final : public MetricsServer {
 public:
  explicit HttpMetricsServer(std::unique_ptr<prometheus::Exposer> exposer, int port)
      : exposer_(std::move(exposer)), port_(port) {}
  int port() const override { return port_; }

 private:
  const std::unique_ptr<prometheus::Exposer> exposer_;
  const int port_;
};

// Two threads and a short time-out: a scraper that stalls cannot hold the endpoint for long.
std::vector<std::string> HttpOptions(const ListenAddress& address) {
  return {"listening_ports",    address.ToString(),
          "num_threads",        "2",
          "request_timeout_ms", "5000",
          "enable_keep_alive",  "no"};
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> StartMetricsServer(const std::string& listen,
                                                                  Metrics& metrics) {
  absl::StatusOr<ListenAddress> address = ParseListenAddress(listen, "metrics_listen");
  if (!address.ok()) return address.status();
  const auto* prometheus_metrics = dynamic_cast<const PrometheusMetrics*>(&metrics);
  if (prometheus_metrics == nullptr) {
    return MakeError(absl::StatusCode::kInternal, Reason::kInternal,
                     "Only metrics of MakePrometheusMetrics can be served over HTTP.");
  }
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(HttpOptions(*address));
    for (const auto& collectable : prometheus_metrics->Collectables()) {
      exposer->RegisterCollectable(collectable);
    }
    const std::vector<int> ports = exposer->GetListeningPorts();
    const int port = ports.empty() ? address->port : ports.front();
    return std::make_unique<HttpMetricsServer>(std::move(exposer), port);
  } catch (const std::exception& error) {  // the library's only way to report a failed bind
    return MakeError(
        absl::StatusCode::kUnavailable, Reason::kIoError,
        absl::StrCat("Cannot serve metrics on ", address->ToString(), ": ", error.what(),
                     ". Is the port in use? Give --metrics-listen "
                     "another one, or port 0."),
        {{"field", "metrics_listen"}});
  }
}

}  // namespace sinq
