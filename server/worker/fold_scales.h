// The folded column scales of a plan, made from what its measuring phase found.
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

// Immutable; thread-safe. Arithmetic: kernels/README.md section 13.
class FoldScales {
 public:
  // `measured`: the records of Phase::kMeasure by tensor name, one for each measured tensor of the
  // plan. Reads the norms and biases of `source`. DataLoss if a record does not fit its tensor.
  static absl::StatusOr<FoldScales> Make(const Plan& plan, const ModelSource& source,
                                         const std::map<std::string, UnitRecord>& measured);

  // Factors for kernels::MatrixView; empty where nothing is folded. `tensor` is a matrix.
  std::vector<float> RowFactors(const PlannedTensor& tensor) const;
  std::vector<float> ColumnFactors(const PlannedTensor& tensor) const;
  // `tensor` is a norm's or a bias' vector, `data` its bytes; folded in place.
  void FoldVector(const PlannedTensor& tensor, absl::Span<std::byte> data) const;

 private:
  // Scales of one pair, by channel.
  struct PairScales {
    std::vector<float> wanted;    // only for producers with a vector
    std::vector<float> realized;  // what consumers are divided by
  };
  explicit FoldScales(const Plan& plan) : plan_(&plan), pairs_(plan.fold.pairs.size()) {}

  absl::Status MakePair(size_t number, const ModelSource& source,
                        const std::map<std::string, UnitRecord>& measured);
  const FoldPair& PairAt(int number) const {
    return plan_->fold.pairs[static_cast<size_t>(number)];
  }

  const Plan* plan_;
  std::vector<PairScales> pairs_;  // empty for refused ones
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_FOLD_SCALES_H_
