// Codes, packing and error figures (README.md sections 3, 4, 6, 7 and 9).
#if defined(SINQ_KERNELS_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_ENCODE_INL_H_
#undef SINQ_KERNELS_ENCODE_INL_H_
#else
#define SINQ_KERNELS_ENCODE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "kernels/codebook-inl.h"
#include "kernels/hadamard-inl.h"
#include "kernels/layout.h"
#include "kernels/load-inl.h"
#include "kernels/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// Sums of 16 groups, lane by lane, in the order error, power, overlap, balanced error, balanced
// power.
struct ErrorPartials {
  static constexpr size_t kPlainSums = 2, kCloseSums = 5;
  HWY_ALIGN float sums[kCloseSums][kVirtualLanes * kVirtualLanes];
  VF largest;
};

// The sums of one group, still in the lanes. kClose: all of them, else the first two.
template <bool kClose>
class ErrorLanes {
 public:
  HWY_INLINE ErrorLanes() {
    for (auto& sum : sums_) std::fill_n(sum, kParts, hn::Zero(DF()));
  }
  // `balanced` is the weight in the space in which it was coded, `level` what the code stands for
  // there.
  HWY_INLINE void Add(size_t part, VF weight, VF value, VF balanced, VF level) {
    const VF miss = hn::Sub(value, weight);
    sums_[0][part] = Fma(miss, miss, sums_[0][part]);
    sums_[1][part] = Fma(weight, weight, sums_[1][part]);
    largest_ = hn::Max(largest_, hn::Abs(miss));
    if constexpr (kClose) {
      const VF balanced_miss = hn::Sub(level, balanced);
      sums_[2][part] = Fma(miss, weight, sums_[2][part]);
      sums_[3][part] = Fma(balanced_miss, balanced_miss, sums_[3][part]);
      sums_[4][part] = Fma(balanced, balanced, sums_[4][part]);
    }
  }
  HWY_INLINE void Store(size_t slot, ErrorPartials& partials) const {
    for (size_t sum = 0; sum < kSums; ++sum) {
      for (size_t part = 0; part < kParts; ++part) {
        hn::Store(sums_[sum][part], DF(),
                  partials.sums[sum] + slot * kVirtualLanes + part * kLanes);
      }
    }
    partials.largest = hn::Max(partials.largest, largest_);
  }

 private:
  static constexpr size_t kSums = kClose ? ErrorPartials::kCloseSums : ErrorPartials::kPlainSums;
  VF sums_[kSums][kParts];
  VF largest_ = hn::Zero(DF());
};

constexpr bool IsDivided(Coding coding) {
  return coding == Coding::kDivide || coding == Coding::kBookDivide;
}
constexpr bool HasRowFactor(Coding coding) {
  return IsDivided(coding) || coding == Coding::kMultiply;
}
constexpr bool HasBook(Coding coding) {
  return coding == Coding::kBook || coding == Coding::kBookDivide;
}

struct CodeAndLevel {
  VF code, level;
};

// What is the same for all values of a group.
template <Coding kCoding>
class GroupCoder {
 public:
  HWY_INLINE GroupCoder(const EncodeParams& p, size_t e)
      : zero_(hn::Set(DF(), p.zero[e])),
        scale_(hn::Set(DF(), p.scale[e])),
        factor_(HasRowFactor(kCoding) ? hn::Set(DF(), p.row_factor[e]) : Reciprocal(scale_)),
        stored_zero_(hn::Set(DF(), p.stored_zero[e])),
        stored_scale_(hn::Set(DF(), p.stored_scale[e])),
        lowest_(hn::Set(DF(), static_cast<float>(p.code_shift_min))),
        highest_(hn::Set(DF(), static_cast<float>(p.code_shift_max))),
        offset_(hn::Set(DF(), static_cast<float>(p.code_offset))),
        book_{HasBook(kCoding) ? CodebookOf(p.bits == 4 ? Rounding::kNf4 : Rounding::kNf3)
                               : Codebook()} {}

  HWY_INLINE CodeAndLevel Code(VF y) const {
    const VF exact = Exact(y);
    if constexpr (HasBook(kCoding)) return {book_.Code(exact), book_.Nearest(exact)};
    const VF q = hn::Add(hn::Round(Clamp(exact, lowest_, highest_)), offset_);
    return {q, q};
  }
  HWY_INLINE VF Value(VF level) const {
    return hn::Mul(hn::Sub(level, stored_zero_), stored_scale_);
  }

 private:
  HWY_INLINE VF Exact(VF y) const {
    if constexpr (IsDivided(kCoding)) return hn::Add(hn::Div(hn::Mul(y, factor_), scale_), zero_);
    if constexpr (kCoding == Coding::kMultiply)
      return hn::Add(hn::Mul(hn::Mul(y, factor_), scale_), zero_);
    return Fma(y, factor_, zero_);
  }

  const VF zero_, scale_, factor_, stored_zero_, stored_scale_, lowest_, highest_, offset_;
  const BookLevels book_;
};

// Where a group lies: `column` is the place of its factors in the column arrays.
struct GroupPlace {
  size_t e, slot, column;
};

// Hands the group's codes and values to `sink` and leaves its error sums in the lanes of a slot.
template <Coding kCoding, bool kClose, class T, class Sink>
HWY_INLINE void EncodeGroup(const T* HWY_RESTRICT w, const EncodeParams& p, const GroupPlace& place,
                            ErrorPartials& partials, const Sink& sink) {
  const DF d;
  const GroupCoder<kCoding> coder(p, place.e);
  ErrorLanes<kClose> errors;
  for (int k = 0; k < p.group; k += kVirtualLanes) {
    for (size_t part = 0; part < kParts; ++part) {
      const size_t at = static_cast<size_t>(k) + part * kLanes;
      const VF weight = LoadWeights(d, w + at);
      const VF y = hn::Mul(weight, hn::LoadU(d, p.column + place.column + at));
      const CodeAndLevel coded = coder.Code(y);
      const VF level = coder.Value(coded.level);
      const VF value = hn::Mul(level, hn::LoadU(d, p.stored_column + place.column + at));
      errors.Add(part, weight, value, y, level);
      sink(at, coded.code, value);
    }
  }
  errors.Store(place.slot, partials);
}

// The same through the Hadamard transform.
template <class Sink>
HWY_INLINE void EncodeTransformed(const float* HWY_RESTRICT w, const EncodeParams& p,
                                  const GroupPlace& place, ErrorPartials& partials,
                                  const Sink& sink) {
  const DF d;
  const GroupCoder<Coding::kHadamard> coder(p, place.e);
  HWY_ALIGN float y[kMaxGroup];
  std::copy_n(w, p.group, y);
  TransformGroup(y, p.group);
  for (int k = 0; k < p.group; k += static_cast<int>(kLanes))
    hn::Store(coder.Value(coder.Code(hn::Load(d, y + k)).level), d, y + k);
  TransformGroup(y, p.group);
  ErrorLanes<true> errors;
  for (int k = 0; k < p.group; k += kVirtualLanes) {
    for (size_t part = 0; part < kParts; ++part) {
      const size_t at = static_cast<size_t>(k) + part * kLanes;
      const VF weight = hn::LoadU(d, w + at), value = hn::Load(d, y + at);
      errors.Add(part, weight, value, weight, value);
      sink(at, value, value);
    }
  }
  errors.Store(place.slot, partials);
}

template <Coding kCoding, bool kIsBf16, class Sink>
HWY_INLINE void EncodeGroupOf(const MatrixView& in, const EncodeParams& p, int64_t row, int64_t col,
                              const GroupPlace& place, ErrorPartials& partials, const Sink& sink) {
  if constexpr (kIsBf16 && kCoding != Coding::kHadamard) {
    HWY_ALIGN uint16_t copy[kMaxGroup];
    const uint16_t* const bits = Bf16Row(in, row, col, p.group, copy);
    if (IsCloseRow(row)) return EncodeGroup<kCoding, true>(bits, p, place, partials, sink);
    return EncodeGroup<kCoding, false>(bits, p, place, partials, sink);
  }
  HWY_ALIGN float values[kMaxGroup];
  WidenRow(in, row, col, p.group, values);
  if constexpr (kCoding == Coding::kHadamard)
    return EncodeTransformed(values, p, place, partials, sink);
  if (IsCloseRow(row)) return EncodeGroup<kCoding, true>(values, p, place, partials, sink);
  EncodeGroup<kCoding, false>(values, p, place, partials, sink);
}

HWY_INLINE bool HasCloseRow(int64_t first, int64_t last) {
  while (first <= last && !IsCloseRow(first)) ++first;
  return first <= last;
}

// Groups base .. base + count, at most 16; body(i, row, col, place, partials) codes the i-th.
// Bodies are structs, because a lambda for so few values would not be inlined.
template <class Body>
HWY_INLINE void EncodeBatch(const MatrixView& in, const EncodeParams& p, int64_t base,
                            int64_t count, const RowOrder& order, const Body& body) {
  const int64_t groups_per_row = in.cols / p.group;
  const bool close = HasCloseRow(base / groups_per_row, (base + count - 1) / groups_per_row);
  const size_t sums_taken = close ? ErrorPartials::kCloseSums : ErrorPartials::kPlainSums;
  ErrorPartials partials;
  // Absent groups add nothing.
  if (count < kVirtualLanes)
    std::memset(partials.sums, 0, sums_taken * sizeof(partials.sums[0]));
  partials.largest = hn::Zero(DF());
  int64_t row = base / groups_per_row, col = (base - row * groups_per_row) * p.group;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t column = p.column_rows == 0 ? col : row / p.column_rows * in.cols + col;
    body(i, row, col,
         GroupPlace{static_cast<size_t>(base + i), order.slot[i], static_cast<size_t>(column)},
         partials);
    col += p.group;
    if (col == in.cols) {
      col = 0;
      ++row;
    }
  }
  float* const sums[ErrorPartials::kCloseSums] = {
      p.sums.error, p.sums.power, p.sums.overlap, p.sums.balanced_error, p.sums.balanced_power};
  for (size_t sum = 0; sum < sums_taken; ++sum) {
    HWY_ALIGN float totals[kVirtualLanes];
    ReduceRows(partials.sums[sum], totals);
    std::copy_n(totals, count, sums[sum] + base);
  }
  std::fill_n(p.sums.largest + base, count, hn::GetLane(hn::MaxOfLanes(DF(), partials.largest)));
}

// Shifts codes into words; the first of a word replaces what is there.
struct PackSink {
  int32_t* words;
  int bits;
  bool is_first;
  HWY_INLINE void operator()(size_t at, VF code, VF /*value*/) const {
    const DI di;
    auto word = SmallToInt(code);
    if (!is_first) word = hn::Or(word, hn::ShiftLeftSame(hn::Load(di, words + at), bits));
    hn::Store(word, di, words + at);
  }
};

HWY_INLINE void StorePacked(const int32_t* HWY_RESTRICT words, size_t count, int word_bytes,
                            std::byte* HWY_RESTRICT out) {
  if (word_bytes == 4) {
    std::memcpy(out, words, 4 * count);
    return;
  }
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(words[i]);
}

template <Coding kCoding, bool kIsBf16>
struct PackBody {
  const MatrixView& in;
  const EncodeParams& p;
  int32_t* words;
  bool is_first;
  HWY_INLINE void operator()(int64_t i, int64_t row, int64_t col, const GroupPlace& place,
                             ErrorPartials& partials) const {
    EncodeGroupOf<kCoding, kIsBf16>(in, p, row, col, place, partials,
                                    PackSink{words + i * p.group, p.bits, is_first});
  }
};

template <Coding kCoding, bool kIsBf16>
HWY_INLINE void EncodePackedOf(const MatrixView& in, const EncodeParams& p, int64_t first,
                               int64_t last, std::byte* packed) {
  const CodePacking& packing = PackingFor(p.bits);
  const int64_t group_rows = in.rows * (in.cols / p.group);
  const int64_t step = (group_rows + packing.codes_per_word - 1) / packing.codes_per_word;
  const RowOrder order = MakeRowOrder();
  HWY_ALIGN int32_t words[kVirtualLanes * kMaxGroup];
  for (int64_t q = first; q < last; q += kVirtualLanes) {
    const int64_t count = std::min<int64_t>(kVirtualLanes, last - q);
    // The first chunk has all of the groups: there are fewer only at the end of the last one.
    for (int64_t chunk = 0; chunk < packing.codes_per_word; ++chunk) {
      const int64_t base = q + chunk * step;
      const int64_t present = std::clamp<int64_t>(group_rows - base, 0, count);
      EncodeBatch(in, p, base, present, order,
                  PackBody<kCoding, kIsBf16>{in, p, words, chunk == 0});
      for (int64_t i = present * p.group; i < count * p.group; ++i) words[i] <<= p.bits;
    }
    StorePacked(words, static_cast<size_t>(count * p.group), packing.word_bytes,
                packed + static_cast<size_t>(q * p.group * packing.word_bytes));
  }
}

template <Coding kCoding>
void EncodePacked(const MatrixView& in, const EncodeParams& p, int64_t first, int64_t last,
                  std::byte* packed) {
  if (TilesAreBf16(in)) return EncodePackedOf<kCoding, true>(in, p, first, last, packed);
  EncodePackedOf<kCoding, false>(in, p, first, last, packed);
}

void Encode(const MatrixView& in, const EncodeParams& params, int64_t first, int64_t last,
            std::byte* packed) {
  switch (params.coding) {
    case Coding::kDivide:
      return EncodePacked<Coding::kDivide>(in, params, first, last, packed);
    case Coding::kMultiply:
      return EncodePacked<Coding::kMultiply>(in, params, first, last, packed);
    case Coding::kBook:
      return EncodePacked<Coding::kBook>(in, params, first, last, packed);
    case Coding::kBookDivide:
      return EncodePacked<Coding::kBookDivide>(in, params, first, last, packed);
    default:
      return EncodePacked<Coding::kStored>(in, params, first, last, packed);
  }
}

// Rows [first, first + count), 16 groups at a time; body as for EncodeBatch.
template <class Body>
HWY_INLINE void EncodeRows(const MatrixView& in, const EncodeParams& p, int64_t first,
                           int64_t count, const Body& body) {
  const int64_t groups_per_row = in.cols / p.group;
  const int64_t last = (first + count) * groups_per_row;
  const RowOrder order = MakeRowOrder();
  for (int64_t base = first * groups_per_row; base < last; base += kVirtualLanes)
    EncodeBatch(in, p, base, std::min<int64_t>(kVirtualLanes, last - base), order, body);
}

struct ByteSink {
  uint8_t* codes;
  HWY_INLINE void operator()(size_t at, VF code, VF /*value*/) const {
    const hn::Rebind<uint8_t, DI> d8;
    hn::StoreU(hn::DemoteTo(d8, SmallToInt(code)), d8, codes + at);
  }
};

template <bool kIsBf16>
struct ByteBody {
  const MatrixView& in;
  const EncodeParams& p;
  int64_t first;
  uint8_t* codes;
  HWY_INLINE void operator()(int64_t /*i*/, int64_t row, int64_t col, const GroupPlace& place,
                             ErrorPartials& partials) const {
    EncodeGroupOf<Coding::kStored, kIsBf16>(in, p, row, col, place, partials,
                                            ByteSink{codes + (row - first) * in.cols + col});
  }
};

void EncodeRowBytes(const MatrixView& in, const EncodeParams& params, int64_t first, int64_t count,
                    uint8_t* codes) {
  if (TilesAreBf16(in))
    return EncodeRows(in, params, first, count, ByteBody<true>{in, params, first, codes});
  EncodeRows(in, params, first, count, ByteBody<false>{in, params, first, codes});
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
