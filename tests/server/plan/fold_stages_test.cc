#include "server/plan/fold_stages.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A plan of `count` tensors; the consumers of each pair are measured.
class FoldStagesTest : public testing::Test {
 protected:
  void SetTensors(size_t count) { plan_.tensors.resize(count); }

  void AddPair(int producer, const std::vector<int>& consumers, const std::string& refusal = "") {
    const int number = static_cast<int>(plan_.fold.pairs.size());
    FoldPair pair;
    pair.producer = producer;
    pair.consumers = consumers;
    pair.refusal = refusal;
    plan_.fold.pairs.push_back(pair);
    if (!refusal.empty()) return;
    plan_.tensors[static_cast<size_t>(producer)].fold_rows = number;
    for (const int consumer : consumers) {
      plan_.tensors[static_cast<size_t>(consumer)].fold_columns = number;
      plan_.tensors[static_cast<size_t>(consumer)].measured = true;
    }
  }

  Plan plan_;
};

TEST_F(FoldStagesTest, WithoutFoldsThereIsOneStage) {
  SetTensors(3);
  AddPair(0, {1, 2}, "the producer is not there");
  const std::vector<FoldStage> stages = FoldStagesOf(plan_);
  ASSERT_EQ(stages.size(), 1u);
  EXPECT_THAT(stages[0].tensors, ElementsAre(0, 1, 2));
  EXPECT_THAT(stages[0].pairs, IsEmpty());
}

// As a block lies in a file, by name: input_layernorm 1, down 2, gate 3, up 4, post norm 5, k 6,
// o 7, q 8, v 9, between an embedding and a head.
TEST_F(FoldStagesTest, ABlockIsItsAttentionAndItsFeedForwardPart) {
  SetTensors(11);
  AddPair(1, {6, 8, 9});
  AddPair(9, {7});
  AddPair(5, {3, 4});
  AddPair(4, {2});
  const std::vector<FoldStage> stages = FoldStagesOf(plan_);
  ASSERT_EQ(stages.size(), 3u);
  EXPECT_THAT(stages[0].tensors, ElementsAre(0));
  EXPECT_THAT(stages[1].tensors, ElementsAre(1, 6, 7, 8, 9));
  EXPECT_THAT(stages[1].pairs, ElementsAre(0, 1));
  EXPECT_THAT(stages[2].tensors, ElementsAre(2, 3, 4, 5, 10));
  EXPECT_THAT(stages[2].pairs, ElementsAre(2, 3));
}

TEST_F(FoldStagesTest, NormsFarFromTheirLayersStayWithThem) {
  SetTensors(6);  // two norms, then two layers each
  AddPair(0, {2, 4});
  AddPair(1, {3, 5});
  const std::vector<FoldStage> stages = FoldStagesOf(plan_);
  ASSERT_EQ(stages.size(), 2u);
  EXPECT_THAT(stages[0].tensors, ElementsAre(0, 2, 4));
  EXPECT_THAT(stages[1].tensors, ElementsAre(1, 3, 5));
}

TEST_F(FoldStagesTest, ABiasGoesWithItsProducer) {
  SetTensors(4);
  AddPair(1, {3});
  plan_.fold.pairs[0].bias = 0;
  plan_.tensors[0].fold_rows = 0;
  const std::vector<FoldStage> stages = FoldStagesOf(plan_);
  ASSERT_EQ(stages.size(), 1u);
  EXPECT_THAT(stages[0].tensors, ElementsAre(0, 1, 2, 3));
}

}  // namespace
}  // namespace sinq
