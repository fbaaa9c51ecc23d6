#include "server/plan/bit_allocation.h"

#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sinq {
namespace {

struct Total {
  uint64_t bytes = 0;
  double error = 0;
};

Total TotalOf(const std::vector<WidthItem>& items, const std::vector<size_t>& chosen) {
  Total total;
  for (size_t i = 0; i < items.size(); ++i) {
    total.bytes += items[i].widths[chosen[i]].bytes;
    total.error += items[i].widths[chosen[i]].error;
  }
  return total;
}

// The smallest error of all combinations within the budget.
double BruteForce(const std::vector<WidthItem>& items, uint64_t budget_bytes) {
  std::vector<size_t> chosen(items.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  while (true) {
    const Total total = TotalOf(items, chosen);
    if (total.bytes <= budget_bytes) best = std::min(best, total.error);
    size_t i = 0;
    while (i < items.size() && ++chosen[i] == items[i].widths.size()) chosen[i++] = 0;
    if (i == items.size()) return best;
  }
}

// Errors fall by about four for each bit, as those of a quantizer do, with some disorder.
std::vector<WidthItem> RandomItems(std::mt19937& random, size_t count) {
  std::uniform_real_distribution<double> uniform(0.5, 2);
  std::vector<WidthItem> items;
  for (size_t i = 0; i < count; ++i) {
    WidthItem item{"layer" + std::to_string(i), {}};
    const double weights = 1000 * uniform(random) * (i % 3 + 1), size = uniform(random);
    for (const int bits : {2, 3, 4, 6, 8}) {
      item.widths.push_back({static_cast<uint64_t>(weights * bits * uniform(random)),
                             size * uniform(random) / static_cast<double>(1 << (2 * bits))});
    }
    std::shuffle(item.widths.begin(), item.widths.end(), random);
    items.push_back(std::move(item));
  }
  return items;
}

// The most error that one step along any hull saves is at most what the best width saves over the
// cheapest.
double LargestSaving(const std::vector<WidthItem>& items) {
  double largest = 0;
  for (const WidthItem& item : items) {
    double best = std::numeric_limits<double>::infinity();
    for (const WidthCost& width : item.widths) best = std::min(best, width.error);
    largest = std::max(largest, item.widths[CheapestWidth(item)].error - best);
  }
  return largest;
}

TEST(BitAllocation, IsWithinTheBudgetAndNearTheBest) {
  std::mt19937 random(7);
  int best = 0, cases = 0;
  double sum = 0, sum_of_best = 0;
  for (int round = 0; round < 200; ++round) {
    const std::vector<WidthItem> items = RandomItems(random, 1 + round % 6);
    uint64_t least = 0, most = 0;
    for (const WidthItem& item : items) {
      least += item.widths[CheapestWidth(item)].bytes;
      most += std::max_element(item.widths.begin(), item.widths.end(),
                               [](const auto& a, const auto& b) { return a.bytes < b.bytes; })
                  ->bytes;
    }
    for (const double part : {0.0, 0.1, 0.3, 0.5, 0.8, 1.0}) {
      const uint64_t budget =
          least + static_cast<uint64_t>(static_cast<double>(most - least) * part);
      const Total total = TotalOf(items, AllocateWidths(items, budget));
      const double brute = BruteForce(items, budget);
      ASSERT_LE(total.bytes, budget);
      ASSERT_LE(total.error, brute + LargestSaving(items) + 1e-12);
      ++cases;
      best += total.error <= brute * (1 + 1e-12);
      sum += total.error;
      sum_of_best += brute;
    }
  }
  EXPECT_GE(best, cases * 9 / 10);
  EXPECT_LE(sum, sum_of_best * 1.01);
}

TEST(BitAllocation, ABudgetThatHoldsEverythingTakesTheSmallestErrors) {
  std::mt19937 random(3);
  const std::vector<WidthItem> items = RandomItems(random, 50);
  const std::vector<size_t> chosen = AllocateWidths(items, std::numeric_limits<uint64_t>::max());
  for (size_t i = 0; i < items.size(); ++i) {
    for (const WidthCost& width : items[i].widths)
      EXPECT_LE(items[i].widths[chosen[i]].error, width.error);
  }
}

TEST(BitAllocation, ABudgetThatIsTooSmallTakesTheCheapest) {
  std::mt19937 random(4);
  const std::vector<WidthItem> items = RandomItems(random, 5);
  const std::vector<size_t> chosen = AllocateWidths(items, 1);
  for (size_t i = 0; i < items.size(); ++i) EXPECT_EQ(chosen[i], CheapestWidth(items[i]));
}

TEST(BitAllocation, ALargerBudgetIsNeverMuchWorse) {
  std::mt19937 random(5);
  const std::vector<WidthItem> items = RandomItems(random, 40);
  double last = std::numeric_limits<double>::infinity();
  for (uint64_t budget = 200'000; budget < 1'000'000; budget += 10'000) {
    const double error = TotalOf(items, AllocateWidths(items, budget)).error;
    EXPECT_LE(error, last * 1.001) << budget;
    last = error;
  }
}

TEST(BitAllocation, OrderOfItemsAndWidthsDoesNotMatter) {
  std::mt19937 random(6);
  std::vector<WidthItem> items = RandomItems(random, 30);
  const Total before = TotalOf(items, AllocateWidths(items, 400'000));
  std::shuffle(items.begin(), items.end(), random);
  const Total after = TotalOf(items, AllocateWidths(items, 400'000));
  EXPECT_EQ(after.bytes, before.bytes);
  EXPECT_DOUBLE_EQ(after.error, before.error);
}

TEST(BitAllocation, EqualLayersAreServedByName) {
  const std::vector<WidthCost> widths = {{10, 4}, {20, 1}};
  const std::vector<WidthItem> items = {{"c", widths}, {"a", widths}, {"b", widths}};
  EXPECT_EQ(AllocateWidths(items, 50), (std::vector<size_t>{0, 1, 1}));
}

// More than the pairs are exchanged for: still within the budget, and not slow.
TEST(BitAllocation, ManyItems) {
  std::mt19937 random(8);
  const std::vector<WidthItem> items = RandomItems(random, 20'000);
  const Total total = TotalOf(items, AllocateWidths(items, 200'000'000));
  EXPECT_LE(total.bytes, 200'000'000u);
  EXPECT_GE(total.bytes, 199'000'000u);
}

TEST(BitAllocation, NothingToChoose) {
  EXPECT_TRUE(AllocateWidths({}, 0).empty());
  EXPECT_EQ(AllocateWidths(std::vector<WidthItem>{{"a", {{5, 1}}}}, 5), std::vector<size_t>{0});
}

}  // namespace
}  // namespace sinq
