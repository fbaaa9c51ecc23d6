#include "server/rpc/tensor_stream_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/rpc/convert.h"

namespace sinq {
namespace {

absl::Status Misplaced(absl::string_view what) {
  return MakeError(
      absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
      absl::StrCat(what, " The order is: recipe, then for each tensor its header and its chunks."),
      {{"field", "message"}});
}

}  // namespace

// A header alone must not lock more than so much memory: its bytes may never come.
TensorStreamReactor::TensorStreamReactor(ServiceContext& context)
    : context_(context),
      counted_(context.tensor_streams),
      buffers_(context.budget, context.workers.host_memory(), kMaxPinnedStreamBytes) {}

TensorStreamReactor* TensorStreamReactor::Start(ServiceContext& context) {
  std::shared_ptr<TensorStreamReactor> reactor(new TensorStreamReactor(context));
  TensorStreamReactor* raw = reactor.get();
  {
    MutexLock lock(&raw->mutex_);
    raw->self_ = std::move(reactor);
    if (context.tensor_streams > kMaxTensorStreams) {
      raw->Fail(MakeError(absl::StatusCode::kResourceExhausted, Reason::kLimitExceeded,
                          "Too many tensor streams; try again later.",
                          {{"limit", "max_tensor_streams"}}, absl::Seconds(2)));
    }
  }
  raw->Advance();
  return raw;
}

void TensorStreamReactor::Advance() {
  std::shared_ptr<TensorStreamReactor> self;
  mutex_.Lock();
  self = self_;
  if (acting_ || self == nullptr) {
    again_ = true;
    mutex_.Unlock();
    return;
  }
  acting_ = true;
  for (;;) {
    again_ = false;
    const Actions actions = Decide();
    mutex_.Unlock();
    if (actions.write) StartWrite(&response_);
    if (actions.read) StartRead(&request_);
    if (actions.finish) Finish(actions.status);
    mutex_.Lock();
    if (!actions.any() && !again_) break;
  }
  acting_ = false;
  mutex_.Unlock();
}

TensorStreamReactor::Actions TensorStreamReactor::Decide() {
  Actions actions;
  if (finished_) return actions;
  const bool over = !status_.ok() || Cancelled() || (input_ended_ && in_flight_ == 0);
  if (over) {
    if (tasks_ > 0 || writing_) return actions;
    finished_ = actions.finish = true;
    // Its memory is free before the client hears of the end.
    arriving_ = nullptr;
    ready_.clear();
    buffers_.GiveUpIdle();
    actions.status = ToGrpcStatus(
        status_.ok() && Cancelled() ? absl::CancelledError("the client went away") : status_);
    ObserveRpc(context_.metrics, "QuantizeTensors", actions.status.error_code(), begin_);
    return actions;
  }
  if (!writing_ && FillWrite()) writing_ = actions.write = true;
  if (!reading_ && !input_ended_ && !allocating_ &&
      (arriving_ != nullptr || in_flight_ < kMaxTensorsPerStream)) {
    reading_ = actions.read = true;
  }
  return actions;
}

bool TensorStreamReactor::FillWrite() {
  while (!ready_.empty()) {
    response_.Clear();
    if (ready_.front()->Next(&response_)) {
      context_.metrics.Observe("sinq_rpc_message_bytes",
                               static_cast<double>(response_.ByteSizeLong()),
                               {{"method", "QuantizeTensors"}, {"direction", "out"}});
      context_.metrics.Add("sinq_weight_bytes_out_total",
                           static_cast<double>(response_.chunk().size()), {{"sink", "stream"}});
      return true;
    }
    buffers_.Release(ready_.front()->TakeBuffer());
    ready_.pop_front();
    --in_flight_;
    if (std::exchange(starved_, false)) StartAllocating();
  }
  // The last tensor just left: there may be nothing more to wait for.
  if (input_ended_ && in_flight_ == 0) again_ = true;
  return false;
}

void TensorStreamReactor::OnReadDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    reading_ = false;
    if (!ok) {
      input_ended_ = true;
      if (arriving_ != nullptr && status_.ok()) Fail(arriving_->Incomplete());
    } else if (status_.ok()) {
      if (absl::Status status = HandleRequest(); !status.ok()) Fail(status);
    }
  }
  Advance();
}

absl::Status TensorStreamReactor::HandleRequest() {
  context_.metrics.Observe("sinq_rpc_message_bytes", static_cast<double>(request_.ByteSizeLong()),
                           {{"method", "QuantizeTensors"}, {"direction", "in"}});
  switch (request_.message_case()) {
    case sinq::v1::QuantizeTensorsRequest::kRecipe: {
      if (params_.has_value()) return Misplaced("A second recipe arrived.");
      absl::StatusOr<kernels::QuantParams> params = ToQuantParams(request_.recipe());
      if (!params.ok()) return params.status();
      params_ = *params;
      return absl::OkStatus();
    }
    case sinq::v1::QuantizeTensorsRequest::kHeader:
      return BeginTensor();
    case sinq::v1::QuantizeTensorsRequest::kChunk:
      return AddChunk();
    case sinq::v1::QuantizeTensorsRequest::MESSAGE_NOT_SET:
      break;
  }
  return Misplaced("An empty message arrived.");
}

absl::Status TensorStreamReactor::BeginTensor() {
  if (!params_.has_value()) return Misplaced("A tensor header arrived before the recipe.");
  if (arriving_ != nullptr) return arriving_->Incomplete();
  absl::StatusOr<StreamedTensor> tensor =
      StreamedTensor::Make(request_.header(), *params_, context_.workers);
  if (!tensor.ok()) return tensor.status();
  arriving_ = std::make_shared<StreamedTensor>(*std::move(tensor));
  ++in_flight_;
  StartAllocating();
  return absl::OkStatus();
}

// Whoever holds memory must not wait for more (memory_budget.h): a client that takes no results
// would hold up everybody behind it. What does not fit beside the stream's own tensors is asked for
// again as each of them leaves, and waited for once none is left.
void TensorStreamReactor::StartAllocating() {
  ++tasks_;
  allocating_ = true;
  const bool may_wait = in_flight_ == 1;
  // Waiting for the budget must not hold up gRPC's threads.
  context_.handlers.Run([self = self_, tensor = arriving_, may_wait] {
    self->AllocateTask(tensor, may_wait);
  });
}

void TensorStreamReactor::AllocateTask(TensorPtr tensor, bool may_wait) {
  absl::StatusOr<bool> has_memory = true;
  if (may_wait) {
    const absl::Status status = tensor->Allocate(buffers_, [this] { return Cancelled(); });
    if (!status.ok()) has_memory = status;
  } else {
    has_memory = tensor->TryAllocate(buffers_);
  }
  {
    MutexLock lock(&mutex_);
    --tasks_;
    if (!has_memory.ok()) {
      Fail(has_memory.status());
    } else if (*has_memory) {
      allocating_ = false;
    } else if (in_flight_ == 1) {
      StartAllocating();  // the others left meanwhile
    } else {
      starved_ = true;
    }
  }
  Advance();
}

absl::Status TensorStreamReactor::AddChunk() {
  if (arriving_ == nullptr) return Misplaced("A chunk arrived without a tensor header before it.");
  if (request_.chunk().size() > kMaxClientChunkBytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                     absl::StrCat("A chunk has ", request_.chunk().size(), " bytes; at most ",
                                  kMaxClientChunkBytes, " are taken."),
                     {{"limit", "max_client_chunk_bytes"}});
  }
  if (absl::Status status = arriving_->Append(request_.chunk()); !status.ok()) return status;
  context_.metrics.Add("sinq_weight_bytes_in_total", static_cast<double>(request_.chunk().size()),
                       {{"source", "stream"}});
  if (!arriving_->complete()) return absl::OkStatus();
  SubmitToWorkers(std::move(arriving_));
  arriving_ = nullptr;
  return absl::OkStatus();
}

void TensorStreamReactor::SubmitToWorkers(TensorPtr tensor) {
  ++tasks_;
  WorkerTask task;
  task.compute = [self = self_, tensor](const Computing& computing) {
    return tensor->Quantize(computing, [&self] { return self->Cancelled(); });
  };
  task.finish = [self = self_, tensor](const absl::Status& status, absl::string_view worker_kind) {
    self->OnQuantized(tensor, status, worker_kind);
  };
  context_.workers.Submit(std::move(task));
}

void TensorStreamReactor::OnQuantized(TensorPtr tensor, const absl::Status& status,
                                      absl::string_view worker_kind) {
  if (status.ok()) {
    context_.metrics.Add("sinq_weights_quantized_total", tensor->weights(),
                         {{"backend", std::string(worker_kind)}});
  }
  {
    MutexLock lock(&mutex_);
    --tasks_;
    if (status.ok()) {
      ready_.push_back(std::move(tensor));
    } else {
      Fail(status);
    }
  }
  Advance();
}

void TensorStreamReactor::Fail(const absl::Status& status) {
  if (status_.ok()) status_ = status;
  cancelled_ = true;  // stops tasks
}

void TensorStreamReactor::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) cancelled_ = true;
  }
  Advance();
}

void TensorStreamReactor::OnCancel() {
  cancelled_ = true;
  Advance();
}

void TensorStreamReactor::OnDone() {
  std::shared_ptr<TensorStreamReactor> last;  // outlives the lock
  {
    MutexLock lock(&mutex_);
    last.swap(self_);
  }
}

}  // namespace sinq
