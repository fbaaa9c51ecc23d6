// Both directions of one QuantizeTensors stream: tensors of a file go out while results come in.
#ifndef SINQ_CLIENT_TENSOR_EXCHANGE_H_
#define SINQ_CLIENT_TENSOR_EXCHANGE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/client.h"
#include "client/local_file.h"
#include "client/safetensors_file.h"

namespace sinq::client {

// A tensor to be quantized, and where its bytes lie in the source file.
struct OutgoingTensor {
  v1::TensorHeader header;
  int64_t offset_bytes = 0;
};

// An array that came back; its bytes lie in the spool.
struct ReceivedArray {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t spool_offset_bytes = 0;
  int64_t size_bytes = 0;
};

// Use once: Run, then the results. The stream's order of results is the server's choice, so their
// bytes are spooled to a file; memory stays at a chunk in each direction.
class TensorExchange {
 public:
  TensorExchange(const LocalFile& source, LocalFile& spool, std::vector<OutgoingTensor> tensors)
      : source_(source), spool_(spool), tensors_(std::move(tensors)) {}
  // `on_result` is called after each tensor with its header. Errors name the tensor.
  absl::Status Run(TensorStream& stream, const v1::Recipe& recipe,
                   const std::function<void(const v1::TensorHeader&)>& on_result);
  const std::map<std::string, ReceivedArray>& arrays() const { return arrays_; }
  const std::vector<v1::TensorResult>& results() const { return results_; }

 private:
  absl::Status Send(TensorStream& stream, const v1::Recipe& recipe) const;
  absl::Status Receive(TensorStream& stream,
                       const std::function<void(const v1::TensorHeader&)>& on_result);
  absl::Status ReceiveArray(TensorStream& stream, const std::string& tensor, bool& ended);

  const LocalFile& source_;
  LocalFile& spool_;
  const std::vector<OutgoingTensor> tensors_;
  std::map<std::string, ReceivedArray> arrays_;
  std::vector<v1::TensorResult> results_;
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_TENSOR_EXCHANGE_H_
