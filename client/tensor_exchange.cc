#include "client/tensor_exchange.h"

#include <thread>

#include "absl/strings/str_cat.h"

namespace sinq::client {
namespace {

constexpr int kMaxArrays = 64;  // a layer has six

absl::Status Protocol(absl::string_view what) {
  return absl::InternalError(absl::StrCat("The server broke the protocol of the tensor stream: ",
                                          what, " Are client and server of the same version?"));
}

}  // namespace

absl::Status TensorExchange::Send(TensorStream& stream, const v1::Recipe& recipe) const {
  v1::QuantizeTensorsRequest request;
  *request.mutable_recipe() = recipe;
  // A failed Write means that the stream has ended; Finish has the reason, so it is no error of its
  // own.
  if (!stream.Write(request)) return absl::OkStatus();
  for (const OutgoingTensor& tensor : tensors_) {
    *request.mutable_header() = tensor.header;
    if (!stream.Write(request)) return absl::OkStatus();
    bool broken = false;
    const absl::Status status = source_.ForEachChunk(
        tensor.offset_bytes, tensor.header.size_bytes(), [&](absl::string_view bytes) {
          request.set_chunk(std::string(bytes));
          broken = !stream.Write(request);
          return broken ? absl::CancelledError() : absl::OkStatus();
        });
    if (broken) return absl::OkStatus();
    if (!status.ok()) return status;
  }
  stream.WritesDone();
  return absl::OkStatus();
}

absl::Status TensorExchange::ReceiveArray(TensorStream& stream, const std::string& tensor,
                                          bool& ended) {
  v1::QuantizeTensorsResponse response;
  ended = !stream.Read(&response);
  if (ended) return absl::OkStatus();
  if (!response.has_array())
    return Protocol(absl::StrCat("an array header of ", tensor, " was due."));
  const v1::ArrayHeader header = response.array();
  if (header.size_bytes() < 0)
    return Protocol(absl::StrCat("array ", header.name(), " has a negative size."));
  ReceivedArray array{header.dtype(),
                      {header.shape().begin(), header.shape().end()},
                      spool_.size_bytes(),
                      header.size_bytes()};
  const int64_t end = array.spool_offset_bytes + array.size_bytes;
  while (spool_.size_bytes() < end) {
    ended = !stream.Read(&response);
    if (ended) return absl::OkStatus();
    if (!response.has_chunk())
      return Protocol(absl::StrCat("a chunk of ", header.name(), " was due."));
    if (static_cast<int64_t>(response.chunk().size()) > end - spool_.size_bytes()) {
      return Protocol(absl::StrCat("array ", header.name(), " is longer than announced."));
    }
    if (absl::Status status = spool_.Append(response.chunk()); !status.ok()) return status;
  }
  if (!arrays_.emplace(header.name(), std::move(array)).second) {
    return Protocol(absl::StrCat("array ", header.name(), " came twice."));
  }
  return absl::OkStatus();
}

absl::Status TensorExchange::Receive(
    TensorStream& stream, const std::function<void(const v1::TensorHeader&)>& on_result) {
  std::map<std::string, const v1::TensorHeader*> waiting;
  for (const OutgoingTensor& tensor : tensors_) waiting[tensor.header.name()] = &tensor.header;
  v1::QuantizeTensorsResponse response;
  while (stream.Read(&response)) {
    if (!response.has_result()) return Protocol("a tensor's result was due.");
    const v1::TensorResult result = response.result();
    const auto sent = waiting.find(result.name());
    if (sent == waiting.end())
      return Protocol(absl::StrCat("nobody asked for tensor ", result.name(), "."));
    if (result.array_count() < 0 || result.array_count() > kMaxArrays) {
      return Protocol(
          absl::StrCat("tensor ", result.name(), " has ", result.array_count(), " arrays."));
    }
    for (int i = 0; i < result.array_count(); ++i) {
      bool ended = false;
      absl::Status status = ReceiveArray(stream, result.name(), ended);
      if (!status.ok() || ended) return status;
    }
    results_.push_back(result);
    on_result(*sent->second);
    waiting.erase(sent);
  }
  return absl::OkStatus();
}

absl::Status TensorExchange::Run(TensorStream& stream, const v1::Recipe& recipe,
                                 const std::function<void(const v1::TensorHeader&)>& on_result) {
  absl::Status sent;
  std::thread sender([&] {
    sent = Send(stream, recipe);
    // The server would wait for the rest for ever.
    if (!sent.ok()) stream.Cancel();
  });
  const absl::Status received = Receive(stream, on_result);
  if (!received.ok()) stream.Cancel();
  sender.join();
  const absl::Status finished = stream.Finish();
  // A cause of our own comes first: the stream then only says that it was cancelled.
  if (!sent.ok()) return sent;
  if (!received.ok()) return received;
  if (!finished.ok()) return finished;
  if (results_.size() != tensors_.size()) {
    return Protocol(
        absl::StrCat("it ended with ", results_.size(), " of ", tensors_.size(), " tensors."));
  }
  return absl::OkStatus();
}

}  // namespace sinq::client
