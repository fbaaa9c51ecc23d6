// One place where a column scale can go: a producer and all tensors that read what it makes.
#ifndef SINQ_SERVER_PLAN_FOLD_PAIR_H_
#define SINQ_SERVER_PLAN_FOLD_PAIR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "server/plan/architectures.h"

namespace sinq {

// The producer is multiplied by a scale t [channels], the consumers' columns are divided by it.
// Tensors are indexes into Plan::tensors.
struct FoldPair {
  std::string name;  // the producing tensor, or what the refusal is about
  FoldProducer kind = FoldProducer::kNorm;
  int producer = -1;
  int bias = -1;  // of a linear producer, if it has one
  std::vector<int> consumers;
  int64_t channels = 0;

  // Linear producers: channel c is row first_row + c / row_block * row_stride + c % row_block.
  int64_t first_row = 0, row_block = 0, row_stride = 0;
  // Column k of a consumer belongs to channel k / (head_size * repeat) * head_size + k % head_size:
  // `repeat` query heads share one kv head. Consumers have channels * repeat columns.
  int64_t head_size = 0, repeat = 1;

  // t is a power of two, so that a producer that stays dense is multiplied without rounding.
  bool power_of_two = false;
  std::string refusal;  // a sentence for people; empty: folded

  bool folded() const { return refusal.empty(); }
  int64_t RowOf(int64_t channel) const {
    return first_row + channel / row_block * row_stride + channel % row_block;
  }
  int64_t ChannelOf(int64_t column) const {
    return column / (head_size * repeat) * head_size + column % head_size;
  }
};

// The folds of a plan.
struct FoldPlan {
  std::string note;  // a sentence for people: whether and by which table tensors are folded
  std::vector<FoldPair> pairs;
  uint64_t measured_columns = 0;  // over all measured tensors
  uint64_t channels = 0;          // over all folded pairs

  bool active() const { return measured_columns > 0; }
};

// For people: the note with the number of folds, then "NAME: reason" of at most `max_refusals`.
// Empty where folding does not come into question.
std::vector<std::string> FoldNotes(const FoldPlan& plan, size_t max_refusals);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_FOLD_PAIR_H_
