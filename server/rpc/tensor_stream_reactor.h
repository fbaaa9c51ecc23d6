// QuantizeTensors: tensors in, quantized tensors out, one read and one write in flight.
#ifndef SINQ_SERVER_RPC_TENSOR_STREAM_REACTOR_H_
#define SINQ_SERVER_RPC_TENSOR_STREAM_REACTOR_H_

#include <atomic>
#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"
#include "server/rpc/service_context.h"
#include "server/rpc/tensor_stream.h"
#include "server/rpc/unary.h"
#include "sinq/v1/tensor_service.grpc.pb.h"

namespace sinq {

// Invariants:
// 1. At most kMaxInFlight tensors hold memory: one arriving, the others in work or on their way
// back. While they are that
//    many, nothing is read: gRPC's flow control then stops the client.
// 2. gRPC is called without the lock held and by one thread at a time (`acting_`), so that nothing
// follows Finish.
// 3. Finish waits for tasks on executors; the object lives until OnDone and the last task have let
// go (shared_from_this).
class TensorStreamReactor final : public grpc::ServerBidiReactor<sinq::v1::QuantizeTensorsRequest,
                                                                 sinq::v1::QuantizeTensorsResponse>,
                                  public std::enable_shared_from_this<TensorStreamReactor> {
 public:
  // The object owns itself until OnDone.
  static TensorStreamReactor* Start(ServiceContext& context);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  using TensorPtr = std::shared_ptr<StreamedTensor>;
  struct Actions {
    bool read = false, write = false, finish = false;
    grpc::Status status;
    bool any() const { return read || write || finish; }
  };

  explicit TensorStreamReactor(ServiceContext& context);
  void Advance();
  Actions Decide() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool FillWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleRequest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status BeginTensor() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AddChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Memory for `arriving_`; no more is read before it is there.
  void StartAllocating() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AllocateTask(TensorPtr tensor, bool may_wait);
  void SubmitToWorkers(TensorPtr tensor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnQuantized(TensorPtr tensor, const absl::Status& status, absl::string_view worker_kind);
  bool Cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // Counts the stream from before its first member to after its last.
  class Counted {
   public:
    explicit Counted(std::atomic<int>& streams) : streams_(streams) { ++streams_; }
    ~Counted() { --streams_; }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;

   private:
    std::atomic<int>& streams_;
  };

  ServiceContext& context_;
  const Counted counted_;
  const SteadyTime begin_ = std::chrono::steady_clock::now();
  BufferPool buffers_;  // of this stream alone: what one client sent never reaches another
  std::atomic<bool> cancelled_ = false;
  // Touched only while the read or write they belong to is not in flight.
  sinq::v1::QuantizeTensorsRequest request_;
  sinq::v1::QuantizeTensorsResponse response_;

  Mutex mutex_;
  std::shared_ptr<TensorStreamReactor> self_ ABSL_GUARDED_BY(mutex_);
  std::optional<kernels::QuantParams> params_ ABSL_GUARDED_BY(mutex_);
  TensorPtr arriving_ ABSL_GUARDED_BY(mutex_);
  std::deque<TensorPtr> ready_ ABSL_GUARDED_BY(mutex_);
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;  // tensors that hold memory
  int tasks_ ABSL_GUARDED_BY(mutex_) = 0;      // on executors
  bool allocating_ ABSL_GUARDED_BY(mutex_) = false;
  bool starved_ ABSL_GUARDED_BY(mutex_) = false;  // `arriving_` waits for another's memory
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool input_ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool acting_ ABSL_GUARDED_BY(mutex_) = false;
  bool again_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_TENSOR_STREAM_REACTOR_H_
