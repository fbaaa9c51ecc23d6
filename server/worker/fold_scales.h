// The folded column scales of a plan, made pair by pair from what was measured.
#ifndef SINQ_SERVER_WORKER_FOLD_SCALES_H_
#define SINQ_SERVER_WORKER_FOLD_SCALES_H_

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/plan/plan.h"
#include "server/source/model_source.h"
#include "server/worker/unit_record.h"

namespace sinq {

// Thread-safe, as long as a pair is added before anybody asks for a tensor that it scales.
// Arithmetic: kernels/README.md section 13.
class FoldScales {
 public:
  // Has no scales yet. The plan outlives it.
  explicit FoldScales(const Plan& plan) : plan_(&plan), pairs_(plan.fold.pairs.size()) {}

  // Makes the scales of one folded pair. `measured`: the records of Phase::kMeasure by tensor name,
  // one for each of its measured consumers. Reads the pair's norm or bias of `source`. DataLoss if
  // a record does not fit its tensor.
  absl::Status Add(int pair, const ModelSource& source,
                   const std::map<std::string, UnitRecord>& measured);

  // Factors for kernels::MatrixView; empty where nothing is folded. `tensor` is a matrix.
  std::vector<float> RowFactors(const PlannedTensor& tensor) const;
  std::vector<float> ColumnFactors(const PlannedTensor& tensor) const;
  // `tensor` is a norm's or a bias' vector, `in` its bytes; `out` gets it folded, in the dtype of
  // its output: its own, or one that holds it exactly.
  void FoldVector(const PlannedTensor& tensor, absl::Span<const std::byte> in,
                  absl::Span<std::byte> out) const;

 private:
  // Scales of one pair, by channel.
  struct PairScales {
    std::vector<float> wanted;    // only for producers with a vector
    std::vector<float> realized;  // what consumers are divided by
  };
  const FoldPair& PairAt(int number) const {
    return plan_->fold.pairs[static_cast<size_t>(number)];
  }

  const Plan* plan_;
  std::vector<PairScales> pairs_;  // empty until added
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_FOLD_SCALES_H_
