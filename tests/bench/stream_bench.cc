// Ratio of a tensor stream through sinqd to a stream that only echoes, with the same chunks, in one
// run.
//
//   stream_bench --server HOST:PORT [rows cols tensors repeats]
//
// The echo server lives in this process and speaks the same messages over loopback; both sides are
// driven by the same client code, in turn. Prints one JSON line per repeat and the median ratio. It
// prints, it does not judge.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "sinq/v1/tensor_service.grpc.pb.h"

namespace {

constexpr size_t kChunkBytes = 1 << 20;

using sinq::v1::QuantizeTensorsRequest;
using sinq::v1::QuantizeTensorsResponse;

// Sends every chunk back unchanged.
class EchoReactor
    : public grpc::ServerBidiReactor<QuantizeTensorsRequest, QuantizeTensorsResponse> {
 public:
  EchoReactor() { StartRead(&request_); }
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    if (!request_.has_chunk()) return StartRead(&request_);
    response_.set_allocated_chunk(request_.release_chunk());
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (ok) StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  QuantizeTensorsRequest request_;
  QuantizeTensorsResponse response_;
};

class EchoService : public sinq::v1::TensorService::CallbackService {
  grpc::ServerBidiReactor<QuantizeTensorsRequest, QuantizeTensorsResponse>* QuantizeTensors(
      grpc::CallbackServerContext*) override {
    return new EchoReactor();
  }
};

struct Shape {
  int64_t rows = 4096, cols = 4096;
  int tensors = 8;
};

std::string RandomBf16(const Shape& shape) {
  std::string bytes(static_cast<size_t>(shape.rows * shape.cols * 2), '\0');
  std::mt19937 random(1);
  for (size_t i = 0; i < bytes.size(); i += 2) {
    // Sign, an exponent around 2^-6, random mantissa: what a layer's weights look like to the
    // balancing.
    const uint32_t bits = random();
    const uint16_t value = static_cast<uint16_t>((bits & 0x807f) | ((118 + (bits >> 29) % 4) << 7));
    bytes[i] = static_cast<char>(value & 0xff);
    bytes[i + 1] = static_cast<char>(value >> 8);
  }
  return bytes;
}

void SendTensors(grpc::ClientReaderWriter<QuantizeTensorsRequest, QuantizeTensorsResponse>& stream,
                 const Shape& shape, const std::string& weights) {
  QuantizeTensorsRequest request;
  request.mutable_recipe()->set_method("sinq");
  if (!stream.Write(request)) return;
  for (int i = 0; i < shape.tensors; ++i) {
    QuantizeTensorsRequest header;
    header.mutable_header()->set_name("layer." + std::to_string(i) + ".weight");
    header.mutable_header()->set_dtype("BF16");
    header.mutable_header()->add_shape(shape.rows);
    header.mutable_header()->add_shape(shape.cols);
    header.mutable_header()->set_size_bytes(static_cast<int64_t>(weights.size()));
    if (!stream.Write(header)) return;
    for (size_t at = 0; at < weights.size(); at += kChunkBytes) {
      QuantizeTensorsRequest chunk;
      chunk.set_chunk(weights.substr(at, kChunkBytes));
      if (!stream.Write(chunk)) return;
    }
  }
  stream.WritesDone();
}

// Seconds for the whole stream; negative if it failed.
double Run(const std::string& address, const Shape& shape, const std::string& weights) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(8 << 20);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  auto stub = sinq::v1::TensorService::NewStub(channel);
  grpc::ClientContext context;
  const auto begin = std::chrono::steady_clock::now();
  auto stream = stub->QuantizeTensors(&context);
  std::thread sender([&] { SendTensors(*stream, shape, weights); });
  QuantizeTensorsResponse response;
  while (stream->Read(&response)) {
  }
  sender.join();
  const grpc::Status status = stream->Finish();
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", address.c_str(), status.error_message().c_str());
    return -1;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || std::string(argv[1]) != "--server") {
    std::fprintf(stderr, "usage: stream_bench --server HOST:PORT [rows cols tensors repeats]\n");
    return 2;
  }
  Shape shape;
  if (argc > 5) shape = {std::atoll(argv[3]), std::atoll(argv[4]), std::atoi(argv[5])};
  const int repeats = argc > 6 ? std::atoi(argv[6]) : 5;

  EchoService echo;
  grpc::ServerBuilder builder;
  int echo_port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &echo_port);
  builder.SetMaxReceiveMessageSize(8 << 20);
  builder.RegisterService(&echo);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const std::string echo_address = "127.0.0.1:" + std::to_string(echo_port);

  const std::string weights = RandomBf16(shape);
  const double bytes = static_cast<double>(weights.size()) * shape.tensors;
  std::vector<double> ratios;
  for (int i = 0; i <= repeats; ++i) {
    const double ours = Run(argv[2], shape, weights);
    const double echoed = Run(echo_address, shape, weights);
    if (ours < 0 || echoed < 0) return 1;
    if (i == 0) continue;  // warm-up
    ratios.push_back(echoed / ours);
    std::printf(
        "{\"sinqd_bytes_per_second\": %.4g, \"echo_bytes_per_second\": %.4g, \"ratio\": %.3f}\n",
        bytes / ours, bytes / echoed, ratios.back());
  }
  std::sort(ratios.begin(), ratios.end());
  std::printf("{\"median_ratio\": %.3f}\n", ratios[ratios.size() / 2]);
  return 0;
}
