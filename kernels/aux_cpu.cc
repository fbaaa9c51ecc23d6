#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/aux.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

constexpr float kF16Max = 65504.0f;
constexpr float kF16Overflow = 65520.0f;  // rounds to 65536

void PutF16(float value, std::byte* out, size_t index) {
  const uint16_t bits = FloatToF16(value);
  std::memcpy(out + 2 * index, &bits, sizeof bits);
}

absl::Status TooLarge(const char* what, float value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat("a ", what, " of ", value, " does not fit ", limit,
                                                 "; exclude this tensor or rescale the model"));
}
constexpr char kF16Limit[] = "F16 (largest 65504)";

struct Grid {
  float minimum = 0, step = 0;                // what the codes are made with
  float stored_minimum = 0, stored_step = 0;  // what F16 holds
};

Grid MakeGrid(float low, float high, Profile profile) {
  if (profile == Profile::kUpstream) {
    const float step = (high - low) / 255.0f;
    return {low, step, RoundToF16(low), RoundToF16(step)};
  }
  const float minimum = F16Below(low);
  const float step = F16Above((high - minimum) / 255.0f);
  return {minimum, step, minimum, step};
}

// Grids of `count` columns as arrays, for the vector code.
struct GridArrays {
  explicit GridArrays(size_t count)
      : minimum(count), step(count), stored_minimum(count), stored_step(count) {}
  void Set(size_t i, const Grid& grid) {
    minimum[i] = grid.minimum;
    step[i] = grid.step;
    stored_minimum[i] = grid.stored_minimum;
    stored_step[i] = grid.stored_step;
  }
  AuxGrids View(size_t first, bool shared) const {
    return {&minimum[first], &step[first], &stored_minimum[first], &stored_step[first], shared};
  }
  std::vector<float> minimum, step, stored_minimum, stored_step;
};

constexpr size_t kColumnsAtOnce = 1024;  // of grids: 24 KiB with their ranges

absl::Status CheckRange(float low, float high) {
  if (!(low >= -kF16Max)) return TooLarge("scale or zero", low, kF16Limit);
  if (!(high <= kF16Max)) return TooLarge("scale or zero", high, kF16Limit);
  return absl::OkStatus();
}

// Smallest and largest of each of `count` columns that start at `values`.
void Ranges(const TileOps& ops, const float* values, size_t count, size_t columns, size_t strands,
            std::vector<float>& low, std::vector<float>& high) {
  if (columns == 1) return ops.extremes(values, static_cast<int64_t>(strands), &low[0], &high[0]);
  std::copy_n(values, count, low.begin());
  std::copy_n(values, count, high.begin());
  for (size_t i = 1; i < strands; ++i)
    ops.widen(values + i * columns, static_cast<int64_t>(count), low.data(), high.data());
}

void EncodeColumns(const TileOps& ops, float* values, size_t count, size_t columns, size_t strands,
                   const GridArrays& grids, uint8_t* codes) {
  if (columns == 1)
    return ops.encode_aux(values, static_cast<int64_t>(strands), grids.View(0, true), codes);
  for (size_t i = 0; i < strands; ++i) {
    ops.encode_aux(values + i * columns, static_cast<int64_t>(count), grids.View(0, false),
                   codes + i * columns);
  }
}

absl::Status StoreF16(const TileOps& ops, absl::Span<float> values, const char* what,
                      std::byte* out) {
  if (ops.store_f16(values.data(), static_cast<int64_t>(values.size()), out))
    return absl::OkStatus();
  const auto found = std::find_if(values.begin(), values.end(),
                                  [](float value) { return !(std::abs(value) < kF16Overflow); });
  return TooLarge(what, found == values.end() ? kF16Overflow : *found, kF16Limit);
}

absl::Status StoreBf16(absl::Span<float> values, const char* what, std::byte* out) {
  for (size_t i = 0; i < values.size(); ++i) {
    const float rounded = RoundToBf16(values[i]) + 0.0f;
    if (!std::isfinite(rounded)) return TooLarge(what, values[i], "BF16");
    const uint16_t bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded) >> 16);
    std::memcpy(out + 2 * i, &bits, sizeof bits);
    values[i] = rounded;
  }
  return absl::OkStatus();
}

absl::Status StoreF32(absl::Span<float> values, const char* what, std::byte* out) {
  for (float& value : values) {
    value += 0.0f;
    if (!std::isfinite(value)) return TooLarge(what, value, "F32");
  }
  std::memcpy(out, values.data(), sizeof(float) * values.size());
  return absl::OkStatus();
}

}  // namespace

absl::Status QuantizeAux(const TileOps& ops, absl::Span<float> values, size_t strands,
                         Profile profile, uint8_t* codes, std::byte* steps, std::byte* minima) {
  const size_t columns = values.size() / strands;
  const size_t block = std::min(columns, kColumnsAtOnce);
  GridArrays grids(block);
  std::vector<float> low(block), high(block);
  for (size_t first = 0; first < columns; first += block) {
    const size_t count = std::min(block, columns - first);
    Ranges(ops, values.data() + first, count, columns, strands, low, high);
    for (size_t c = 0; c < count; ++c) {
      if (absl::Status status = CheckRange(low[c], high[c]); !status.ok()) return status;
      const Grid grid = MakeGrid(low[c], high[c], profile);
      PutF16(grid.step, steps, first + c);
      PutF16(grid.minimum, minima, first + c);
      grids.Set(c, grid);
    }
    EncodeColumns(ops, values.data() + first, count, columns, strands, grids, codes + first);
  }
  return absl::OkStatus();
}

float RoundToStored(float value, AuxStorage aux) {
  if (aux == AuxStorage::kF32) return value;
  return aux == AuxStorage::kBf16 ? RoundToBf16(value) : RoundToF16(value);
}

absl::Status StoreValues(const TileOps& ops, absl::Span<float> values, AuxStorage aux,
                         const char* what, std::byte* out) {
  if (aux == AuxStorage::kBf16) return StoreBf16(values, what, out);
  if (aux == AuxStorage::kF32) return StoreF32(values, what, out);
  return StoreF16(ops, values, what, out);
}

}  // namespace sinq::kernels
