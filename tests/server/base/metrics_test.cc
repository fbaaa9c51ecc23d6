#include "server/base/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/base/metrics_prometheus.h"
#include "server/base/metrics_table.h"

namespace sinq {
namespace {

std::string HttpGet(int port, const std::string& path) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (::connect(fd, reinterpret_cast<struct sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
    if (::send(fd, request.data(), request.size(), MSG_NOSIGNAL) > 0) {
      char buffer[4096];
      for (ssize_t got; (got = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
        answer.append(buffer, static_cast<size_t>(got));
      }
    }
  }
  ::close(fd);
  return answer;
}

TEST(MetricsTable, IsWellFormed) {
  std::set<std::string> names;
  for (const MetricInfo& info : AllMetrics()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_TRUE(absl::StartsWith(info.name, "sinq_")) << info.name;
    EXPECT_FALSE(info.help.empty()) << info.name;
    EXPECT_EQ(absl::EndsWith(info.name, "_total"), info.type == MetricType::kCounter) << info.name;
    EXPECT_EQ(info.buckets.empty(), info.type != MetricType::kHistogram) << info.name;
    EXPECT_TRUE(std::is_sorted(info.buckets.begin(), info.buckets.end(), std::less_equal<>()))
        << info.name;
    for (const std::string& label : info.labels) {
      for (const char* banned : {"job", "uri", "tensor", "digest", "path"}) EXPECT_NE(label, banned);
    }
  }
}

TEST(Metrics, ExposesWhatWasRecorded) {
  const std::unique_ptr<Metrics> metrics = MakePrometheusMetrics();
  metrics->Add("sinq_tensors_total", 2, {{"action", "quantize"}});
  metrics->Add("tensors_total", 1, {{"action", "quantize"}});
  metrics->Set("jobs", 3, {{"state", "queued"}});
  metrics->Observe("job_duration_seconds", 20000, {{"method", "sinq"}, {"result", "succeeded"}});
  const std::string text = metrics->Expose();
  for (const char* line :
       {"sinq_tensors_total{action=\"quantize\"} 3", "sinq_jobs{state=\"queued\"} 3",
        "result=\"succeeded\",le=\"14400\"} 0", "result=\"succeeded\",le=\"28800\"} 1",
        "sinq_leases_lost_total 0", "sinq_internal_errors_total 0",
        "process_resident_memory_bytes", "process_start_time_seconds", "process_open_fds"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

TEST(Metrics, MisuseIsCountedNeverACrash) {
  const std::unique_ptr<Metrics> metrics = MakePrometheusMetrics();
  metrics->Add("no_such_total", 1);
  metrics->Add("jobs", 1);                                // a gauge
  metrics->Add("tensors_total", 1, {{"tensor", "a"}});    // unknown label
  metrics->Add("tensors_total", -1, {{"action", "x"}});   // a counter cannot fall
  metrics->Observe("sinkhorn_rounds", std::numeric_limits<double>::quiet_NaN());
  EXPECT_NE(metrics->Expose().find("sinq_internal_errors_total 5"), std::string::npos);
}

TEST(Metrics, LabelValuesCannotGrowWithoutBound) {
  const std::unique_ptr<Metrics> metrics = MakePrometheusMetrics();
  const int wanted = static_cast<int>(PrometheusMetrics::kMaxSeriesPerFamily) + 10;
  for (int i = 0; i < wanted; ++i) {
    metrics->Add("jobs_rejected_total", 1, {{"reason", absl::StrCat(i)}});
  }
  EXPECT_NE(metrics->Expose().find("sinq_internal_errors_total 10"), std::string::npos);
}

TEST(MetricsServer, ServesOnAnyPort) {
  const std::unique_ptr<Metrics> metrics = MakePrometheusMetrics();
  metrics->Set("build_info", 1, {{"version", "v"}});
  absl::StatusOr<std::unique_ptr<MetricsServer>> server =
      StartMetricsServer("127.0.0.1:0", *metrics);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->port(), 0);
  const std::string answer = HttpGet((*server)->port(), "/metrics");
  EXPECT_NE(answer.find("200 OK"), std::string::npos);
  EXPECT_NE(answer.find("sinq_build_info{"), std::string::npos);
  EXPECT_EQ(HttpGet((*server)->port(), "/etc/passwd").find("200 OK"), std::string::npos);

  const std::string taken = absl::StrCat("127.0.0.1:", (*server)->port());
  EXPECT_TRUE(absl::IsUnavailable(StartMetricsServer(taken, *metrics).status()));
  server->reset();
  EXPECT_TRUE(StartMetricsServer(taken, *metrics).ok());
}

TEST(MetricsServer, RefusesWhatIsNoAddress) {
  const std::unique_ptr<Metrics> metrics = MakePrometheusMetrics();
  for (const char* listen : {"", "7462", "example.org:1", "127.0.0.1:0,0.0.0.0:0", "127.0.0.1:0s"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(StartMetricsServer(listen, *metrics).status())) << listen;
  }
}

}  // namespace
}  // namespace sinq
