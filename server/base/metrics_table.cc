#include "server/base/metrics_table.h"

namespace sinq {
namespace {

using Buckets = std::vector<double>;

// Jobs last from milliseconds to a working day; a top bucket of a minute would pin every long p99.
Buckets JobSeconds() {
  return {0.01, 0.05, 0.1, 0.5,  1,    2.5,  5,    10,    30,   60,
          120,  300,  600, 1200, 1800, 3600, 7200, 14400, 28800};
}

// The bounds that OpenTelemetry advises for calls.
Buckets RpcSeconds() {
  return {0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10};
}

// One family holds unary and streaming calls, so it needs both ranges.
Buckets CallSeconds() {
  return {0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5,  0.75, 1,    2.5,   5,    7.5,
          10,    30,   60,    120,  300,   600, 1200, 1800, 3600, 7200, 14400, 28800};
}

Buckets QuerySeconds() {
  Buckets buckets = {0.0005, 0.001, 0.0025};
  for (const double bound : RpcSeconds()) buckets.push_back(bound);
  return buckets;
}

Buckets MessageBytes() {
  constexpr double kKi = 1024, kMi = kKi * kKi, kGi = kMi * kKi;
  return {kKi,     2 * kKi,  4 * kKi,  16 * kKi,  64 * kKi,  256 * kKi,
          kMi,     4 * kMi,  16 * kMi, 64 * kMi,  256 * kMi, kGi,
          4 * kGi, 16 * kGi, 64 * kGi, 256 * kGi, kKi * kGi};
}

Buckets WeightsPerSecond() {
  return {1e7, 2.5e7, 5e7,    1e8,  2.5e8, 5e8,    1e9, 2.5e9,
          5e9, 1e10,  2.5e10, 5e10, 1e11,  2.5e11, 5e11};
}

Buckets RelativeError() {
  return {0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.04, 0.06,
          0.08,  0.1,   0.12,  0.15,  0.2,  0.3,  0.5,  1};
}

// 1, 2, ... last.
Buckets CountTo(int last) {
  Buckets buckets;
  for (int i = 1; i <= last; ++i) buckets.push_back(i);
  return buckets;
}

std::vector<MetricInfo> JobMetrics() {
  using enum MetricType;
  return {
      {"sinq_jobs_submitted_total",
       kCounter,
       "CreateJob calls by what became of them.",
       {"source", "method", "outcome"},
       {}},
      {"sinq_jobs_rejected_total", kCounter, "CreateJob calls refused, by reason.", {"reason"}, {}},
      {"sinq_jobs_completed_total",
       kCounter,
       "Jobs that reached a terminal state.",
       {"method", "result", "reason"},
       {}},
      {"sinq_jobs_interrupted_total",
       kCounter,
       "Running jobs met by a shutdown, by how they ended.",
       {"how"},
       {}},
      {"sinq_jobs", kGauge, "Jobs that are not finished, by state.", {"state"}, {}},
      {"sinq_queue_oldest_age_seconds", kGauge, "Age of the oldest queued job.", {"priority"}, {}},
      {"sinq_queue_wait_seconds",
       kHistogram,
       "From submission to the first lease.",
       {"priority"},
       JobSeconds()},
      {"sinq_job_duration_seconds",
       kHistogram,
       "From the first lease to the terminal state.",
       {"method", "result"},
       JobSeconds()},
      {"sinq_job_stage_seconds",
       kHistogram,
       "Time that a job spent in each stage.",
       {"stage"},
       JobSeconds()},
      {"sinq_job_attempts",
       kHistogram,
       "Attempts that finished jobs needed.",
       {"result"},
       CountTo(10)},
      {"sinq_leases_lost_total", kCounter, "Leases that expired under a worker.", {}, {}},
      {"sinq_lease_renewals_total", kCounter, "Leases renewed in time.", {}, {}},
      {"sinq_stale_completions_rejected_total",
       kCounter,
       "Completions refused because their lease had passed to another worker.",
       {},
       {}},
      {"sinq_quarantined_jobs",
       kGauge,
       "Jobs not retried because they take workers down.",
       {"reason"},
       {}},
      {"sinq_shutdown_seconds", kHistogram, "From SIGTERM to exit.", {}, JobSeconds()},
  };
}

std::vector<MetricInfo> WorkMetrics() {
  using enum MetricType;
  return {
      {"sinq_weights_quantized_total", kCounter, "Weights quantized.", {"backend"}, {}},
      {"sinq_weight_bytes_in_total", kCounter, "Tensor bytes read.", {"source"}, {}},
      {"sinq_weight_bytes_out_total", kCounter, "Tensor bytes written.", {"sink"}, {}},
      {"sinq_tensors_total", kCounter, "Tensors finished, by action.", {"action"}, {}},
      {"sinq_quantize_throughput_weights_per_second",
       kHistogram,
       "Rate of quantizing one tensor, for tensors above 1 MiB.",
       {"backend"},
       WeightsPerSecond()},
      {"sinq_sinkhorn_rounds",
       kHistogram,
       "Balancing rounds run until a tile froze.",
       {},
       CountTo(16)},
      {"sinq_relative_error",
       kHistogram,
       "Relative error of a quantized tensor.",
       {"method"},
       RelativeError()},
      {"sinq_device_memory_bytes",
       kGauge,
       "Memory of a device: all, used by anybody, reserved by this server, and the peak of that.",
       {"device", "kind"},
       {}},
      {"sinq_device_utilization_ratio",
       kGauge,
       "Share of time that a device computes, 0 to 1.",
       {"device"},
       {}},
      {"sinq_device_errors_total",
       kCounter,
       "Failures of a device: oom, launch or lost.",
       {"device", "kind"},
       {}},
      {"sinq_worker_state",
       kGauge,
       "Threads of the workers by state; of a device one per tensor in work at once.",
       {"pool", "state"},
       {}},
  };
}

std::vector<MetricInfo> ServiceMetrics() {
  using enum MetricType;
  return {
      {"sinq_build_info",
       kGauge,
       "Always 1; the labels say what runs.",
       {"version", "revision", "cuda", "compiler"},
       {}},
      {"sinq_stream_bytes_in_flight",
       kGauge,
       "Bytes buffered for tensor streams.",
       {"direction"},
       {}},
      {"sinq_stream_stalls_total",
       kCounter,
       "Waits for the other side of a tensor stream.",
       {"side"},
       {}},
      {"sinq_storage_free_bytes", kGauge, "Free space of a volume.", {"volume"}, {}},
      {"sinq_storage_write_errors_total",
       kCounter,
       "Attempts of jobs that a disk ended, by class.",
       {"errno_class"},
       {}},
      {"sinq_rpc_duration_seconds",
       kHistogram,
       "Duration of calls; unknown methods are _OTHER.",
       {"method", "code"},
       CallSeconds()},
      {"sinq_rpc_message_bytes",
       kHistogram,
       "Size of messages.",
       {"method", "direction"},
       MessageBytes()},
      {"sinq_store_query_seconds",
       kHistogram,
       "Duration of job store operations.",
       {"op"},
       QuerySeconds()},
      {"sinq_store_errors_total", kCounter, "Failed job store operations.", {"class"}, {}},
      {"sinq_internal_errors_total",
       kCounter,
       "Mistakes of the server itself, e.g. a metric misused.",
       {},
       {}},
  };
}

std::vector<MetricInfo> MakeTable() {
  std::vector<MetricInfo> table = JobMetrics();
  for (const auto& part : {WorkMetrics(), ServiceMetrics()}) {
    table.insert(table.end(), part.begin(), part.end());
  }
  return table;
}

}  // namespace

const std::vector<MetricInfo>& AllMetrics() {
  static const auto* const table = new std::vector<MetricInfo>(MakeTable());
  return *table;
}

}  // namespace sinq
