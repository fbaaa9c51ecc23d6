// What the RPC services share. Everything outlives the gRPC server and is thread-safe.
#ifndef SINQ_SERVER_RPC_SERVICE_CONTEXT_H_
#define SINQ_SERVER_RPC_SERVICE_CONTEXT_H_

#include <atomic>
#include <string>

#include "server/base/file_system.h"
#include "server/base/memory_budget.h"
#include "server/base/metrics.h"
#include "server/job/job_store.h"
#include "server/rpc/executor.h"
#include "server/scheduler/scheduler.h"
#include "server/worker/worker_pool.h"

namespace sinq {

struct ServiceContext {
  JobStore& store;
  Scheduler& scheduler;
  const FileSystem& files;
  WorkerPool& workers;  // quantizes streamed tensors
  MemoryBudget& budget;
  Metrics& metrics;
  Executor& handlers;       // unary calls and stream steps that wait for disk or memory
  Executor& watchers_pool;  // one task for each WatchJob call while it lasts
  std::string version;
  std::atomic<bool> draining = false;
  std::atomic<int> watchers = 0;
  std::atomic<int> tensor_streams = 0;
  std::atomic<int> plan_surveys = 0;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_SERVICE_CONTEXT_H_
