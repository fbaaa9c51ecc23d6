// sinqd: the one place that names concrete types. Parts are made in the order of their dependencies
// and stopped in the reverse one.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/backend.h"
#include "server/base/clock.h"
#include "server/base/config.h"
#include "server/base/config_flags.h"
#include "server/base/error.h"
#include "server/base/file_system.h"
#include "server/base/limits.h"
#include "server/base/listen_address.h"
#include "server/base/log.h"
#include "server/base/machine.h"
#include "server/base/memory_budget.h"
#include "server/base/metrics.h"
#include "server/job/job_store.h"
#include "server/job/job_store_metered.h"
#include "server/rpc/grpc_server.h"
#include "server/scheduler/scheduler.h"
#include "server/worker/job_runner.h"
#include "server/worker/worker_pool.h"

namespace sinq {
namespace {

constexpr int kExitFailure = 1, kExitUsage = 2;
// Unary calls and stream steps at once. More than kMaxTensorStreams, so that streams that wait for
// memory leave threads for calls.
constexpr int kHandlerThreads = kMaxTensorStreams + 16;
constexpr absl::Duration kCallGrace = absl::Seconds(2);  // for open calls once jobs have ended

// The devices that the configuration allows. None is an error only if some were asked for.
absl::StatusOr<std::vector<DeviceWorkerOptions>> MakeDevices(const ServerConfig& config) {
  std::vector<DeviceWorkerOptions> devices;
  if (config.backend == "cpu") return devices;
  kernels::CudaOptions options;
  options.devices = config.devices;
  options.streams = config.cuda_streams;
  options.device_budget_bytes = static_cast<size_t>(config.device_memory_budget_bytes);
  absl::StatusOr<std::vector<std::unique_ptr<kernels::Backend>>> backends =
      kernels::MakeCudaBackends(options);
  if (!backends.ok()) {
    if (config.backend == "cuda") return Annotate(backends.status(), "--backend cuda");
    if (!config.devices.empty()) return Annotate(backends.status(), "--devices");
    Log(LogLevel::kWarning, "no_device_used",
        {{"backend", "cpu"}, {"why", std::string(backends.status().message())}});
    return devices;
  }
  for (size_t i = 0; i < backends->size() && i < kMaxDevices; ++i) {
    const int device = config.devices.empty() ? static_cast<int>(i) : config.devices[i];
    devices.push_back({std::move((*backends)[i]), device, config.cuda_streams});
  }
  return devices;
}

void FillDefaults(ServerConfig& config) {
  if (config.workers == 0) config.workers = UsableCpus();
  if (config.memory_budget_bytes == 0) config.memory_budget_bytes = UsableMemoryBytes() / 4;
}

// What --memory-budget leaves for buffers: the process itself, with its libraries, connections and
// records, takes its part, and so does the locked memory that devices keep, so that resident memory
// as a whole keeps to the budget.
uint64_t BufferBudgetBytes(const ServerConfig& config, const WorkerPool& workers) {
  uint64_t taken = 48 * kMiB;  // measured: 22 MiB idle, up to 45 MiB at work
  for (const WorkerStatus& worker : workers.Workers()) {
    if (worker.kind == "cpu") continue;
    taken += kernels::kCudaStagingBytes * static_cast<uint64_t>(worker.threads);
  }
  const uint64_t total = config.memory_budget_bytes;
  return total > 2 * taken ? total - taken : total / 2;
}

SchedulerOptions ToSchedulerOptions(const ServerConfig& config) {
  SchedulerOptions options;
  options.worker_name = absl::StrCat("sinqd-", getpid());
  options.lease_duration = absl::Seconds(config.lease_duration_seconds);
  options.heartbeat_interval = options.lease_duration / 5;
  options.retention = absl::Seconds(config.retention_seconds);
  return options;
}

// What the service stands on: made first, gone last.
struct Foundation {
  std::unique_ptr<Directory> data_dir;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<FileSystem> files;
  std::unique_ptr<JobStore> store;
  std::unique_ptr<WorkerPool> workers;
};

absl::StatusOr<Foundation> MakeFoundation(const ServerConfig& config) {
  Foundation out;
  out.metrics = MakePrometheusMetrics();
  absl::StatusOr<std::vector<DeviceWorkerOptions>> devices = MakeDevices(config);
  if (!devices.ok()) return devices.status();
  out.workers = std::make_unique<WorkerPool>(
      CpuWorkerOptions{
          kernels::MakeCpuBackend(std::min(config.workers, kMaxThreadsPerTensor)), config.workers,
          /*beside_devices=*/false},
      *std::move(devices), *out.metrics);
  absl::StatusOr<std::unique_ptr<FileSystem>> files = MakePosixFileSystem(config.allow_roots);
  if (!files.ok()) return Annotate(files.status(), "--allow-root");
  out.files = *std::move(files);
  absl::StatusOr<std::unique_ptr<Directory>> data_dir =
      OpenPosixDirectory(config.data_dir, /*create=*/true);
  if (!data_dir.ok()) return Annotate(data_dir.status(), "--data-dir");
  out.data_dir = *std::move(data_dir);
  absl::StatusOr<std::unique_ptr<JobStore>> store =
      OpenSqliteJobStore(absl::StrCat(config.data_dir, "/jobs.sqlite"), SystemClock());
  if (!store.ok()) return Annotate(store.status(), "--data-dir");
  out.store = MakeMeteredJobStore(*std::move(store), *out.metrics);
  return out;
}

// Free space where the server writes, by flag and place in its list: paths are not for metrics.
void UpdateStorageGauges(const ServerConfig& config, const Foundation& base) {
  const auto set = [&base](const std::string& volume, const Directory& directory) {
    const absl::StatusOr<uint64_t> free_bytes = directory.FreeBytes();
    if (!free_bytes.ok()) return;
    base.metrics->Set("sinq_storage_free_bytes", static_cast<double>(*free_bytes),
                      {{"volume", volume}});
  };
  set("data_dir", *base.data_dir);
  for (size_t i = 0; i < config.allow_roots.size(); ++i) {
    const absl::StatusOr<ResolvedPath> root = base.files->Resolve(config.allow_roots[i]);
    if (root.ok()) set(absl::StrCat("allow_root_", i), *root->root);
  }
}

// SIGTERM and SIGINT as something to wait for. Made before any thread, which all inherit the block.
class StopSignal {
 public:
  StopSignal() {
    signal(SIGPIPE, SIG_IGN);  // a peer that went away is an error of its call only
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  void Wait() const {
    int received = 0;
    sigwait(&signals_, &received);
    Log(LogLevel::kInfo, "stop_requested", {{"signal", strsignal(received)}});
  }

 private:
  sigset_t signals_;
};

// Not ready at once; jobs finish or are checkpointed; then the open calls end.
void Drain(ServiceContext& context, GrpcServer& server, absl::Duration grace) {
  const auto begin = std::chrono::steady_clock::now();
  server.StopServing();
  context.draining = true;
  context.workers.SetDraining();
  context.scheduler.Drain(grace);
  server.Shutdown(kCallGrace);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  context.metrics.Observe("sinq_shutdown_seconds", seconds.count());
  Log(LogLevel::kInfo, "stopped", {{"seconds", absl::StrCat(seconds.count())}});
}

std::string DescribeWorkers(const WorkerPool& workers) {
  std::vector<std::string> parts;
  for (const WorkerStatus& worker : workers.Workers()) {
    parts.push_back(
        absl::StrCat(worker.name, " ", worker.architecture, " with ", worker.threads, " threads"));
  }
  return absl::StrJoin(parts, ", ");
}

absl::Status Serve(const ServerConfig& config, const StopSignal& stop) {
  absl::StatusOr<Foundation> base = MakeFoundation(config);
  if (!base.ok()) return base.status();
  base->metrics->Set("sinq_build_info", 1, {{"version", SINQ_VERSION}, {"compiler", __VERSION__}});
  // One tensor may pass the budget, but not what the machine has.
  MemoryBudget budget(BufferBudgetBytes(config, *base->workers), UsableMemoryBytes() / 4 * 3);
  RunnerOptions runner_options;
  runner_options.code_version = SINQ_VERSION;
  const std::unique_ptr<JobRunner> runner = MakeJobRunner(
      runner_options, *base->workers, *base->files, budget, *base->store, *base->metrics);
  SchedulerOptions options = ToSchedulerOptions(config);
  options.update_gauges = [&] {
    UpdateStorageGauges(config, *base);
    base->workers->UpdateGauges();
  };
  const std::unique_ptr<Scheduler> scheduler =
      MakeScheduler(options, *base->store, *runner, SystemClock(), *base->metrics);
  Executor handlers(kHandlerThreads), watchers(kMaxWatchers);
  ServiceContext context{*base->store,   *scheduler, *base->files, *base->workers, budget,
                         *base->metrics, handlers,   watchers,     SINQ_VERSION};

  std::unique_ptr<MetricsServer> metrics_server;
  if (!config.metrics_listen.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsServer>> started =
        StartMetricsServer(config.metrics_listen, *base->metrics);
    if (!started.ok()) return Annotate(started.status(), "--metrics-listen");
    metrics_server = *std::move(started);
    std::cout << "metrics on port " << metrics_server->port() << std::endl;
  }
  absl::StatusOr<ListenAddress> address = ParseListenAddress(config.listen, "--listen");
  if (!address.ok()) return address.status();
  const absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(*address, context);
  if (!server.ok()) return server.status();
  scheduler->Start();
  address->port = (*server)->port();
  std::cout << "sinqd listening on " << address->ToString() << std::endl;
  Log(LogLevel::kInfo, "serving",
      {{"listen", address->ToString()},
       {"version", SINQ_VERSION},
       {"workers", DescribeWorkers(*base->workers)}});
  stop.Wait();
  Drain(context, **server, absl::Seconds(config.drain_grace_seconds));
  return absl::OkStatus();
}

std::optional<std::string> Environment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

int Main(int argc, const char* const* argv) {
  const StopSignal stop;
  absl::StatusOr<CommandLine> command = ParseCommandLine(argc, argv, SINQ_VERSION, Environment);
  if (!command.ok()) {
    std::cerr << "sinqd: " << command.status().message() << std::endl;
    return kExitUsage;
  }
  if (!command->print.empty()) {
    std::cout << command->print << std::flush;
    return 0;
  }
  FillDefaults(command->config);
  const absl::Status status = Serve(command->config, stop);
  if (status.ok()) return 0;
  std::cerr << "sinqd: " << status.message() << std::endl;
  return kExitFailure;
}

}  // namespace
}  // namespace sinq

int main(int argc, char** argv) { return sinq::Main(argc, argv); }
