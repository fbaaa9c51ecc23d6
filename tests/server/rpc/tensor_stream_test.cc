#include "server/rpc/tensor_stream.h"

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "tests/fakes/fake_device.h"
#include "tests/fakes/fake_metrics.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using testing::HasSubstr;

v1::TensorHeader Header(std::vector<int64_t> shape, int64_t size_bytes,
                        const std::string& dtype = "BF16") {
  v1::TensorHeader header;
  header.set_name("a.weight");
  header.set_dtype(dtype);
  for (const int64_t extent : shape) header.add_shape(extent);
  header.set_size_bytes(size_bytes);
  return header;
}

class StreamedTensorTest : public testing::Test {
 protected:
  absl::StatusOr<StreamedTensor> Make(const v1::TensorHeader& header) {
    return StreamedTensor::Make(header, {}, workers_);
  }
  std::string Refusal(const v1::TensorHeader& header) {
    const auto tensor = Make(header);
    EXPECT_TRUE(absl::IsInvalidArgument(tensor.status())) << tensor.status();
    return GetErrorDetails(tensor.status()).metadata["field"];
  }
  const std::unique_ptr<kernels::Backend> backend_ = kernels::MakeCpuBackend();
  FakeMetrics metrics_;
  WorkerPool workers_{{kernels::MakeCpuBackend()}, {}, metrics_};
  MemoryBudget budget_{8 << 20};
  FakeHostMemory memory_;
  BufferPool buffers_{budget_, &memory_};
};

TEST_F(StreamedTensorTest, HeadersThatCannotBeRightNameTheField) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(Refusal(Header({64}, 128)), "shape");
  EXPECT_EQ(Refusal(Header({2, 64, 64}, 16384)), "shape");
  EXPECT_EQ(Refusal(Header({-64, -64}, 8192)), "shape");
  EXPECT_EQ(Refusal(Header({0, 64}, 0)), "shape");
  EXPECT_EQ(Refusal(Header({kHuge, kHuge}, 2)), "shape");
  EXPECT_EQ(Refusal(Header({int64_t{1} << 32, int64_t{1} << 32}, 0)), "shape");
  EXPECT_EQ(Refusal(Header({64, 50}, 6400)), "shape");  // no group size divides 50
  EXPECT_EQ(Refusal(Header({64, 64}, 8191)), "size_bytes");
  EXPECT_EQ(Refusal(Header({64, 64}, -8192)), "size_bytes");
  EXPECT_EQ(Refusal(Header({64, 64}, 4096, "I8")), "dtype");
  EXPECT_EQ(Refusal(Header({64, 64}, 8192, "")), "dtype");
  v1::TensorHeader header = Header({64, 64}, 8192);
  header.add_block_scales(1);
  EXPECT_EQ(Refusal(header), "block_scales");
  header = Header({64, 64}, 8192);
  header.set_name(std::string(kMaxTensorNameBytes + 1, 'n'));
  EXPECT_EQ(Refusal(header), "name");
  header.set_name("");
  EXPECT_EQ(Refusal(header), "name");
}

TEST_F(StreamedTensorTest, ChunksOfAnySizeGiveTheSameArrays) {
  const TestTensor weights = Bf16Tensor("a.weight", {64, 64}, 1);
  std::vector<std::string> results;
  for (const size_t chunk : {size_t{1}, size_t{1000}, weights.data.size()}) {
    auto tensor = Make(Header({64, 64}, 8192));
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    ASSERT_TRUE(tensor->Allocate(buffers_, [] { return false; }).ok());
    EXPECT_GT(memory_.held_bytes(), 0u);
    for (size_t at = 0; at < weights.data.size(); at += chunk) {
      EXPECT_FALSE(tensor->complete());
      ASSERT_TRUE(tensor->Append(absl::string_view(weights.data).substr(at, chunk)).ok());
    }
    EXPECT_TRUE(tensor->complete());
    EXPECT_THAT(std::string(tensor->Append("x").message()), HasSubstr("byte 8192"));
    ASSERT_TRUE(tensor->Quantize({*backend_, kernels::RunSerially}, [] { return false; }).ok());
    std::string all;
    v1::QuantizeTensorsResponse response;
    int arrays = 0;
    while (tensor->Next(&response)) {
      arrays += response.has_array();
      all += response.SerializeAsString();
      response.Clear();
    }
    EXPECT_EQ(arrays, 8);
    results.push_back(all);
    buffers_.Release(tensor->TakeBuffer());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
  EXPECT_EQ(memory_.allocations(), 1);  // the next tensor gets the memory of the one before
}

TEST_F(StreamedTensorTest, ADeviceThatFailedLeavesTheWeightsForTheNextWorker) {
  const TestTensor weights = Bf16Tensor("a.weight", {64, 64}, 1);
  const FakeDevice lost(FakeDevice::LostAt(1));
  std::vector<std::string> results;
  for (const bool fails_first : {false, true}) {
    auto tensor = Make(Header({64, 64}, 8192));
    ASSERT_TRUE(tensor->Allocate(buffers_, [] { return false; }).ok());
    ASSERT_TRUE(tensor->Append(weights.data).ok());
    if (fails_first) {
      const Computing on_lost{lost, kernels::RunSerially};
      EXPECT_TRUE(absl::IsUnavailable(tensor->Quantize(on_lost, [] { return false; })));
    }
    ASSERT_TRUE(tensor->Quantize({*backend_, kernels::RunSerially}, [] { return false; }).ok());
    v1::QuantizeTensorsResponse response;
    std::string& all = results.emplace_back();
    while (tensor->Next(&response)) {
      all += response.SerializeAsString();
      response.Clear();
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST_F(StreamedTensorTest, AnUnfinishedTensorSaysWhereItEnded) {
  auto tensor = Make(Header({64, 64}, 8192));
  ASSERT_TRUE(tensor->Allocate(buffers_, [] { return false; }).ok());
  ASSERT_TRUE(tensor->Append(std::string(100, '\0')).ok());
  EXPECT_THAT(std::string(tensor->Incomplete().message()), HasSubstr("byte 100 of 8192"));
}

}  // namespace
}  // namespace sinq
