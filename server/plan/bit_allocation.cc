#include "server/plan/bit_allocation.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace sinq {
namespace {

constexpr size_t kMaxExchangedItems = 256;  // pairs of them times pairs of widths: a few million
constexpr int kMaxExchanges = 1024;         // each saves error, so that they end by themselves

// From one width on the hull of an item to the next larger one.
struct Step {
  size_t item = 0;
  size_t from = 0, to = 0;  // widths
  double saved_per_byte = 0;
};

const WidthCost& CostOf(const WidthItem& item, size_t width) { return item.widths[width]; }

// Widths that are not worse in both: by bytes ascending, error descending.
std::vector<size_t> Frontier(const WidthItem& item) {
  std::vector<size_t> order(item.widths.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const WidthCost &x = CostOf(item, a), &y = CostOf(item, b);
    return std::tie(x.bytes, x.error, a) < std::tie(y.bytes, y.error, b);
  });
  std::vector<size_t> frontier;
  for (const size_t width : order) {
    if (frontier.empty() || CostOf(item, width).error < CostOf(item, frontier.back()).error)
      frontier.push_back(width);
  }
  return frontier;
}

double SavedPerByte(const WidthItem& item, size_t from, size_t to) {
  const WidthCost &a = CostOf(item, from), &b = CostOf(item, to);
  return (a.error - b.error) / static_cast<double>(b.bytes - a.bytes);
}

// The lower convex hull of the frontier: savings per byte fall from step to step.
std::vector<size_t> Hull(const WidthItem& item, const std::vector<size_t>& frontier) {
  std::vector<size_t> hull;
  for (const size_t width : frontier) {
    while (hull.size() >= 2 && SavedPerByte(item, hull[hull.size() - 2], hull.back()) <=
                                   SavedPerByte(item, hull.back(), width)) {
      hull.pop_back();
    }
    hull.push_back(width);
  }
  return hull;
}

class Allocator {
 public:
  Allocator(absl::Span<const WidthItem> items, uint64_t budget_bytes)
      : items_(items), budget_bytes_(budget_bytes) {
    for (const WidthItem& item : items) {
      frontiers_.push_back(Frontier(item));
      chosen_.push_back(frontiers_.back().front());
      bytes_ += CostOf(item, chosen_.back()).bytes;
    }
    by_name_.resize(items.size());
    std::iota(by_name_.begin(), by_name_.end(), size_t{0});
    std::sort(by_name_.begin(), by_name_.end(),
              [&](size_t a, size_t b) { return items[a].name < items[b].name; });
  }

  std::vector<size_t> Run() {
    if (bytes_ > budget_bytes_) return chosen_;
    Climb();
    for (int i = 0; i < kMaxExchanges && Exchange(); ++i) {
    }
    return chosen_;
  }

 private:
  std::vector<Step> Steps() const {
    std::vector<Step> steps;
    for (const size_t item : by_name_) {
      const std::vector<size_t> hull = Hull(items_[item], frontiers_[item]);
      for (size_t i = 1; i < hull.size(); ++i) {
        steps.push_back(
            {item, hull[i - 1], hull[i], SavedPerByte(items_[item], hull[i - 1], hull[i])});
      }
    }
    // Stable: of equal steps the smaller name, and within an item the hull's order, comes first.
    std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
      return a.saved_per_byte > b.saved_per_byte;
    });
    return steps;
  }

  void Climb() {
    for (const Step& step : Steps()) {
      // The item stopped at a smaller width that was the last to fit.
      if (chosen_[step.item] != step.from) continue;
      if (Fits(step.item, step.to, bytes_)) Choose(step.item, step.to);
    }
  }

  // With the rest of the items taking what `bytes` says they and `item` take now.
  bool Fits(size_t item, size_t width, uint64_t bytes) const {
    return bytes - CostOf(items_[item], chosen_[item]).bytes + CostOf(items_[item], width).bytes <=
           budget_bytes_;
  }

  void Choose(size_t item, size_t width) {
    bytes_ -= CostOf(items_[item], chosen_[item]).bytes;
    bytes_ += CostOf(items_[item], width).bytes;
    chosen_[item] = width;
  }

  double Saved(size_t item, size_t width) const {
    return CostOf(items_[item], chosen_[item]).error - CostOf(items_[item], width).error;
  }

  // One change of one item, or of one item paid for by another. False if none saves error.
  bool Exchange() {
    best_saved_ = 0;
    for (const size_t item : by_name_) {
      for (const size_t width : frontiers_[item]) {
        if (Saved(item, width) <= best_saved_) continue;
        if (Fits(item, width, bytes_)) {
          Remember(item, width, item, width);
        } else if (items_.size() <= kMaxExchangedItems) {
          PayWithAnother(item, width);
        }
      }
    }
    if (best_saved_ <= 0) return false;
    Choose(best_payer_, best_payer_width_);
    Choose(best_item_, best_width_);
    return true;
  }

  void PayWithAnother(size_t item, size_t width) {
    const uint64_t bytes =
        bytes_ - CostOf(items_[item], chosen_[item]).bytes + CostOf(items_[item], width).bytes;
    for (const size_t payer : by_name_) {
      if (payer == item) continue;
      for (const size_t smaller : frontiers_[payer]) {
        if (!Fits(payer, smaller, bytes)) break;  // and neither do the larger ones after it
        if (Saved(item, width) + Saved(payer, smaller) > best_saved_)
          Remember(item, width, payer, smaller);
      }
    }
  }

  void Remember(size_t item, size_t width, size_t payer, size_t payer_width) {
    best_saved_ = Saved(item, width) + (payer == item ? 0 : Saved(payer, payer_width));
    best_item_ = item;
    best_width_ = width;
    best_payer_ = payer;
    best_payer_width_ = payer_width;
  }

  const absl::Span<const WidthItem> items_;
  const uint64_t budget_bytes_;
  std::vector<std::vector<size_t>> frontiers_;  // by item: widths
  std::vector<size_t> by_name_;                 // items
  std::vector<size_t> chosen_;                  // by item: a width
  uint64_t bytes_ = 0;                          // of the chosen widths
  // The best change that Exchange found so far.
  double best_saved_ = 0;
  size_t best_item_ = 0, best_width_ = 0, best_payer_ = 0, best_payer_width_ = 0;
};

}  // namespace

size_t CheapestWidth(const WidthItem& item) { return Frontier(item).front(); }

std::vector<size_t> AllocateWidths(absl::Span<const WidthItem> items, uint64_t budget_bytes) {
  return Allocator(items, budget_bytes).Run();
}

}  // namespace sinq
