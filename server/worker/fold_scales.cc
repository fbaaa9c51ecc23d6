#include "server/worker/fold_scales.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/folding.h"
#include "server/base/error.h"
#include "server/worker/weight_dtype.h"

namespace sinq {
namespace {

// The vector that takes the scale: a norm's weight, or the bias of a linear producer; -1: none.
int VectorOf(const FoldPair& pair) {
  const bool norm =
      pair.kind == FoldProducer::kNorm || pair.kind == FoldProducer::kNormPlusOne;
  return norm ? pair.producer : pair.bias;
}

// Where a channel's element lies in the vector.
size_t ElementOf(const FoldPair& pair, size_t channel) {
  return pair.row_block == 0 ? channel
                             : static_cast<size_t>(pair.RowOf(static_cast<int64_t>(channel)));
}

kernels::VectorFold VectorFoldOf(const FoldPair& pair) {
  return pair.kind == FoldProducer::kNormPlusOne ? kernels::VectorFold::kPlusOne
                                                 : kernels::VectorFold::kTimes;
}

kernels::WeightDtype StoredDtypeOf(const PlannedTensor& tensor) {
  return WeightDtypeOf(tensor.outputs.front().tensor.dtype);
}

// Codes of all measured consumers of one pair, added up by channel.
struct CodeSums {
  std::vector<int64_t> by_channel;
  int64_t count = 0;  // codes in each sum
};

absl::StatusOr<CodeSums> SumCodes(const Plan& plan, const FoldPair& pair,
                                  const std::map<std::string, UnitRecord>& measured) {
  CodeSums sums{std::vector<int64_t>(static_cast<size_t>(pair.channels)), 0};
  for (const int index : pair.consumers) {
    const PlannedTensor& tensor = plan.tensors[static_cast<size_t>(index)];
    if (!tensor.measured) continue;
    const auto found = measured.find(tensor.source.name);
    const size_t columns = static_cast<size_t>(tensor.source.shape[1]);
    if (found == measured.end() || found->second.column_codes.size() != columns) {
      return absl::DataLossError(absl::StrCat(
          "the measurement of ", tensor.source.name,
          " in the job store does not fit the tensor; delete the job and submit again"));
    }
    for (size_t k = 0; k < columns; ++k) {
      const size_t channel = static_cast<size_t>(pair.ChannelOf(static_cast<int64_t>(k)));
      sums.by_channel[channel] += found->second.column_codes[k];
    }
    sums.count += pair.repeat;
  }
  return sums;
}

}  // namespace

absl::Status FoldScales::Add(int number, const ModelSource& source,
                             const std::map<std::string, UnitRecord>& measured) {
  const FoldPair& pair = PairAt(number);
  const absl::StatusOr<CodeSums> sums = SumCodes(*plan_, pair, measured);
  if (!sums.ok()) return sums.status();
  std::vector<float> wanted;
  wanted.reserve(sums->by_channel.size());
  for (const int64_t sum : sums->by_channel)
    wanted.push_back(kernels::SharedScale(sum, sums->count, pair.power_of_two));
  PairScales& scales = pairs_[static_cast<size_t>(number)];
  scales.realized = wanted;
  const int vector = VectorOf(pair);
  if (vector < 0) return absl::OkStatus();
  const PlannedTensor& planned = plan_->tensors[static_cast<size_t>(vector)];
  const SourceTensor& tensor = planned.source;
  std::vector<std::byte> data(tensor.size_bytes);
  absl::Status status = source.Read(tensor.file_index, tensor.offset, absl::MakeSpan(data));
  if (!status.ok()) return Annotate(status, tensor.name);
  const kernels::WeightDtype dtype = WeightDtypeOf(tensor.dtype), stored = StoredDtypeOf(planned);
  for (size_t c = 0; c < wanted.size(); ++c) {
    const float w = kernels::LoadElement(data.data(), ElementOf(pair, c), dtype);
    scales.realized[c] = kernels::FoldElement(VectorFoldOf(pair), w, wanted[c], stored).scale;
  }
  scales.wanted = std::move(wanted);
  return absl::OkStatus();
}

std::vector<float> FoldScales::RowFactors(const PlannedTensor& tensor) const {
  if (tensor.fold_rows < 0) return {};
  const FoldPair& pair = PairAt(tensor.fold_rows);
  const std::vector<float>& scales = pairs_[static_cast<size_t>(tensor.fold_rows)].realized;
  std::vector<float> factors(static_cast<size_t>(tensor.source.shape[0]), 1.0f);
  for (size_t c = 0; c < scales.size(); ++c) factors[ElementOf(pair, c)] = scales[c];
  return factors;
}

std::vector<float> FoldScales::ColumnFactors(const PlannedTensor& tensor) const {
  if (tensor.fold_columns < 0) return {};
  const FoldPair& pair = PairAt(tensor.fold_columns);
  const std::vector<float>& scales = pairs_[static_cast<size_t>(tensor.fold_columns)].realized;
  std::vector<float> factors(static_cast<size_t>(tensor.source.shape[1]));
  for (size_t k = 0; k < factors.size(); ++k) {
    const size_t channel = static_cast<size_t>(pair.ChannelOf(static_cast<int64_t>(k)));
    factors[k] = static_cast<float>(1.0 / static_cast<double>(scales[channel]));
  }
  return factors;
}

void FoldScales::FoldVector(const PlannedTensor& tensor, absl::Span<const std::byte> in,
                            absl::Span<std::byte> out) const {
  const FoldPair& pair = PairAt(tensor.fold_rows);
  const std::vector<float>& wanted = pairs_[static_cast<size_t>(tensor.fold_rows)].wanted;
  const kernels::WeightDtype dtype = WeightDtypeOf(tensor.source.dtype);
  const kernels::WeightDtype stored = StoredDtypeOf(tensor);
  if (stored == dtype) {
    std::memcpy(out.data(), in.data(), in.size());
  } else {
    const size_t elements = in.size() / kernels::BytesPerElement(dtype);
    for (size_t at = 0; at < elements; ++at)
      kernels::StoreElement(kernels::LoadElement(in.data(), at, dtype), out.data(), at, stored);
  }
  for (size_t c = 0; c < wanted.size(); ++c) {
    const size_t at = ElementOf(pair, c);
    const float w = kernels::LoadElement(in.data(), at, dtype);
    kernels::StoreElement(kernels::FoldElement(VectorFoldOf(pair), w, wanted[c], stored).value,
                          out.data(), at, stored);
  }
}

}  // namespace sinq
