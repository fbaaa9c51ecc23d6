// The worked byte examples of the formats, and round trips through readers written from their
// descriptions.
#include "kernels/pack.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq::kernels {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::ElementsAreArray;

using Bytes = std::vector<std::byte>;
using Codes = std::vector<uint8_t>;

constexpr std::byte kPoison{0xaa};

PackShape Shape(Layout layout, int bits, int64_t rows, int64_t cols, int group,
                bool symmetric = false) {
  PackShape shape;
  shape.params.layout = layout;
  shape.params.bits = bits;
  shape.params.group_size = group;
  shape.params.symmetric = symmetric;
  shape.params.aux = AuxStorage::kF16;
  shape.rows = rows;
  shape.cols = cols;
  shape.group = group;
  return shape;
}

Bytes PlaneFor(const PackShape& shape, PlaneKind kind) {
  const auto planes = PlanesOf(shape.params, shape.rows, shape.cols);
  EXPECT_TRUE(planes.ok()) << planes.status();
  for (const PlaneSpec& plane : *planes) {
    if (plane.kind == kind) return Bytes(plane.size_bytes, kPoison);
  }
  ADD_FAILURE() << "no such plane";
  return {};
}

// Packs in blocks of kPackRows, last block first.
Bytes Packed(const PackShape& shape, const Codes& codes) {
  Bytes plane = PlaneFor(shape, PlaneKind::kCodes);
  for (int64_t first = (shape.rows - 1) / kPackRows * kPackRows; first >= 0; first -= kPackRows) {
    PackCodes(shape, codes.data() + first * shape.cols, first,
              std::min(kPackRows, shape.rows - first), absl::MakeSpan(plane));
  }
  return plane;
}

Bytes PackedZeros(const PackShape& shape, const std::vector<float>& zeros) {
  Bytes plane = PlaneFor(shape, PlaneKind::kZero);
  PackZeros(shape, zeros.data(), absl::MakeSpan(plane));
  return plane;
}

std::vector<uint32_t> WordsOf(const Bytes& bytes) {
  std::vector<uint32_t> words(bytes.size() / 4);
  std::memcpy(words.data(), bytes.data(), bytes.size());
  return words;
}

Codes RandomCodes(int64_t count, int bits, uint32_t seed = 1) {
  std::mt19937 random(seed);
  Codes codes(static_cast<size_t>(count));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  return codes;
}

// Field of `bits` bits at `bit` of the stream that reads word(0), word(1), ..., lowest bits first.
template <class WordAt>
uint8_t StreamField(const WordAt& word, int64_t bit, int bits) {
  uint32_t value = 0;
  for (int i = 0; i < bits; ++i) value |= (word((bit + i) / 32) >> ((bit + i) % 32) & 1) << i;
  return static_cast<uint8_t>(value);
}

std::string Hex(const std::byte* bytes, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i)
    absl::StrAppend(&text, absl::Hex(static_cast<uint8_t>(bytes[i]), absl::kZeroPad2));
  return text;
}

// Codes of a [rows, 16] matrix: `first` in the first columns of row 0, else 0.
Codes RowBeginning(const Codes& first, int64_t rows = 1) {
  Codes codes(static_cast<size_t>(rows * 16));
  std::copy(first.begin(), first.end(), codes.begin());
  return codes;
}

TEST(PackExamplesTest, CompressedTensorsNibblesRunAlongTheRow) {
  const PackShape shape = Shape(Layout::kCompressedTensors, 4, 1, 16, 16);
  EXPECT_EQ(Hex(Packed(shape, RowBeginning({0, 1, 2, 3, 4, 5, 6, 7})).data(), 4), "10325476");
  EXPECT_EQ(Hex(Packed(shape, RowBeginning({8, 7, 9, 0, 15, 1, 2, 3})).data(), 4), "78091f32");
}

// The same words as the codes, but one below the other: word [w, j] holds rows 8 w .. 8 w + 7.
TEST(PackExamplesTest, CompressedTensorsZerosRunDownTheRows) {
  const PackShape shape = Shape(Layout::kCompressedTensors, 4, 8, 32, 16);
  std::vector<float> zeros;
  for (const float zero : {8, 7, 9, 0, 15, 1, 2, 3}) zeros.insert(zeros.end(), {zero, 15 - zero});
  EXPECT_THAT(WordsOf(PackedZeros(shape, zeros)), ElementsAre(0x321f0978, 0xcde0f687));
}

TEST(PackExamplesTest, AwqInterleavesEightColumns) {
  const PackShape shape = Shape(Layout::kAwq, 4, 8, 16, 16);
  Codes codes(8 * 16);
  for (size_t n = 0; n < 8; ++n) codes[n * 16] = static_cast<uint8_t>(n);
  const Bytes plane = Packed(shape, codes);
  EXPECT_EQ(WordsOf(plane)[0], 0x75316420u);
  EXPECT_EQ(Hex(plane.data(), 4), "20643175");
}

TEST(PackExamplesTest, AwqZerosUseTheSameOrder) {
  const PackShape shape = Shape(Layout::kAwq, 4, 8, 16, 16);
  EXPECT_THAT(WordsOf(PackedZeros(shape, {0, 1, 2, 3, 4, 5, 6, 7})), ElementsAre(0x75316420));
  const PackShape symmetric = Shape(Layout::kAwq, 4, 16, 32, 16, true);
  EXPECT_THAT(WordsOf(PackedZeros(symmetric, {})), Each(0x88888888u));
}

TEST(PackExamplesTest, GptqNibblesRunDownTheColumn) {
  const PackShape shape = Shape(Layout::kGptq, 4, 8, 16, 16);
  EXPECT_EQ(WordsOf(Packed(shape, RowBeginning({0, 1, 2, 3, 4, 5, 6, 7}, 8)))[0], 0x76543210u);
}

// 32 codes in three words: code 10 has two bits in word 0 and one in word 1, code 21 one and two.
TEST(PackExamplesTest, ThreeBitCodesStraddleWords) {
  const PackShape shape = Shape(Layout::kGptq, 3, 32, 32, 32);
  Codes codes(32 * 32);
  codes[10] = 7;
  const std::vector<uint32_t> ten = WordsOf(Packed(shape, codes));
  EXPECT_EQ(ten[0], 0xc0000000u);
  EXPECT_EQ(ten[32], 0x00000001u);
  codes[10] = 0;
  codes[21] = 7;
  const std::vector<uint32_t> twenty_one = WordsOf(Packed(shape, codes));
  EXPECT_EQ(twenty_one[32], 0x80000000u);
  EXPECT_EQ(twenty_one[64], 0x00000003u);
}

TEST(PackExamplesTest, GptqSymmetricZeros) {
  const auto words = [](Layout layout, int bits) {
    return WordsOf(PackedZeros(Shape(layout, bits, 32, 32, 32, true), {}));
  };
  EXPECT_THAT(words(Layout::kGptq, 2), Each(0x55555555u));
  EXPECT_THAT(words(Layout::kGptqV2, 2), Each(0xaaaaaaaau));
  EXPECT_THAT(words(Layout::kGptq, 3), ElementsAre(0xdb6db6db, 0xb6db6db6, 0x6db6db6d));
  EXPECT_THAT(words(Layout::kGptqV2, 3), ElementsAre(0x24924924, 0x49249249, 0x92492492));
  EXPECT_THAT(words(Layout::kGptq, 4), Each(0x77777777u));
  EXPECT_THAT(words(Layout::kGptqV2, 4), Each(0x88888888u));
  EXPECT_THAT(words(Layout::kGptq, 8), Each(0x7f7f7f7fu));
  EXPECT_THAT(words(Layout::kGptqV2, 8), Each(0x80808080u));
}

TEST(PackExamplesTest, GptqVersionOneStoresOneLess) {
  const std::vector<float> zeros = {0, 5, 3, 0, 9, 15, 1, 2};
  EXPECT_THAT(WordsOf(PackedZeros(Shape(Layout::kGptqV2, 4, 8, 16, 16), zeros)),
              ElementsAre(0x21f90350));
  EXPECT_THAT(WordsOf(PackedZeros(Shape(Layout::kGptq, 4, 8, 16, 16), {1, 6, 4, 1, 10, 15, 2, 3})),
              ElementsAre(0x21e90350));
}

Codes CountingCodes() {
  Codes codes(32);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = i % 16;
  return codes;
}

TEST(PackExamplesTest, GgufFourBitBlocks) {
  constexpr uint16_t kHalf = 0x3800, kMinusFour = 0xc400;  // 0.5 and -4 in F16
  const PackShape q4_0 = Shape(Layout::kGgufQ4_0, 4, 1, 32, 32, true);
  Bytes plane = PlaneFor(q4_0, PlaneKind::kBlocks);
  PackBlocks(q4_0, CountingCodes().data(), &kHalf, nullptr, 0, 1, absl::MakeSpan(plane));
  EXPECT_EQ(Hex(plane.data(), plane.size()), "003800112233445566778899aabbccddeeff");
  const PackShape q4_1 = Shape(Layout::kGgufQ4_1, 4, 1, 32, 32);
  plane = PlaneFor(q4_1, PlaneKind::kBlocks);
  PackBlocks(q4_1, CountingCodes().data(), &kHalf, &kMinusFour, 0, 1, absl::MakeSpan(plane));
  EXPECT_EQ(Hex(plane.data(), plane.size()), "003800c400112233445566778899aabbccddeeff");
}

TEST(PackExamplesTest, GgufEightBitBlocksAreSigned) {
  constexpr uint16_t kOne = 0x3c00;
  const PackShape shape = Shape(Layout::kGgufQ8_0, 8, 1, 32, 32, true);
  Codes codes(32, 128);
  codes[0] = 0;
  codes[1] = 127;
  codes[31] = 255;
  Bytes plane = PlaneFor(shape, PlaneKind::kBlocks);
  PackBlocks(shape, codes.data(), &kOne, nullptr, 0, 1, absl::MakeSpan(plane));
  EXPECT_EQ(Hex(plane.data(), 5), "003c80ff00");
  EXPECT_EQ(static_cast<uint8_t>(plane.back()), 0x7f);
}

// Two groups of 64 are two blocks each.
TEST(PackExamplesTest, GgufBlocksRepeatTheScaleOfTheirGroup) {
  const PackShape shape = Shape(Layout::kGgufQ4_1, 4, 2, 128, 64);
  const std::vector<uint16_t> scales = {1, 2, 3, 4}, minima = {5, 6, 7, 8};
  Bytes plane = PlaneFor(shape, PlaneKind::kBlocks);
  PackBlocks(shape, Codes(128).data(), scales.data(), minima.data(), 1, 1, absl::MakeSpan(plane));
  EXPECT_EQ(plane[79], kPoison);  // row 0 was not packed
  const std::byte* row = plane.data() + 4 * 20;
  for (int block = 0; block < 4; ++block) {
    EXPECT_EQ(Hex(row + 20 * block, 4), block < 2 ? "03000700" : "04000800") << block;
  }
}

struct RoundTrip {
  Layout layout;
  int bits;
  int64_t rows, cols;
  int group;
};

class PackRoundTripTest : public testing::TestWithParam<RoundTrip> {};

uint8_t ReadCode(const PackShape& shape, const std::vector<uint32_t>& words, int64_t n, int64_t k) {
  const int bits = shape.params.bits;
  const auto at = [&](int64_t index) { return words[static_cast<size_t>(index)]; };
  switch (shape.params.layout) {
    case Layout::kCompressedTensors: {
      const int64_t row_words = (shape.cols * bits + 31) / 32;
      return StreamField([&](int64_t w) { return at(n * row_words + w); }, k * bits, bits);
    }
    case Layout::kAwq: {
      constexpr int kReaderShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};  // AutoAWQ's inverse order
      return at(k * (shape.rows / 8) + n / 8) >> kReaderShift[n % 8] & 15;
    }
    default:
      return StreamField([&](int64_t w) { return at(w * shape.rows + n); }, k * bits, bits);
  }
}

float ReadZero(const PackShape& shape, const std::vector<uint32_t>& words, int64_t n, int64_t j) {
  const int bits = shape.params.bits;
  const int64_t groups = shape.cols / shape.group;
  const int64_t row_words = (shape.rows * bits + 31) / 32;
  const auto at = [&](int64_t index) { return words[static_cast<size_t>(index)]; };
  switch (shape.params.layout) {
    case Layout::kCompressedTensors:
      return StreamField([&](int64_t w) { return at(w * groups + j); }, n * bits, bits);
    case Layout::kAwq: {
      constexpr int kReaderShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};
      return static_cast<float>(at(j * row_words + n / 8) >> kReaderShift[n % 8] & 15);
    }
    default: {
      const uint8_t field =
          StreamField([&](int64_t w) { return at(j * row_words + w); }, n * bits, bits);
      return static_cast<float>(field + (shape.params.layout == Layout::kGptq ? 1 : 0));
    }
  }
}

TEST_P(PackRoundTripTest, EveryCodeIsWhereItsReaderLooks) {
  const RoundTrip& p = GetParam();
  const PackShape shape = Shape(p.layout, p.bits, p.rows, p.cols, p.group);
  const Codes codes = RandomCodes(p.rows * p.cols, p.bits);
  const std::vector<uint32_t> words = WordsOf(Packed(shape, codes));
  for (int64_t n = 0; n < p.rows; ++n) {
    for (int64_t k = 0; k < p.cols; ++k)
      ASSERT_EQ(ReadCode(shape, words, n, k), codes[static_cast<size_t>(n * p.cols + k)])
          << n << ", " << k;
  }
}

TEST_P(PackRoundTripTest, EveryZeroIsWhereItsReaderLooks) {
  const RoundTrip& p = GetParam();
  const PackShape shape = Shape(p.layout, p.bits, p.rows, p.cols, p.group);
  const int64_t groups = p.cols / p.group;
  std::vector<float> zeros;
  for (const uint8_t code : RandomCodes(p.rows * groups, p.bits, 7))
    zeros.push_back(std::max<float>(code, p.layout == Layout::kGptq ? 1 : 0));
  const std::vector<uint32_t> words = WordsOf(PackedZeros(shape, zeros));
  for (int64_t n = 0; n < p.rows; ++n) {
    for (int64_t j = 0; j < groups; ++j)
      ASSERT_EQ(ReadZero(shape, words, n, j), zeros[static_cast<size_t>(n * groups + j)])
          << n << ", " << j;
  }
}

// What a stream does not fill up to a whole word is zero.
TEST_P(PackRoundTripTest, PaddingBitsAreZero) {
  const RoundTrip& p = GetParam();
  const PackShape shape = Shape(p.layout, p.bits, p.rows, p.cols, p.group);
  EXPECT_THAT(Packed(shape, Codes(static_cast<size_t>(p.rows * p.cols))), Each(std::byte{0}));
  const std::vector<float> zeros(static_cast<size_t>(p.rows * (p.cols / p.group)),
                                 p.layout == Layout::kGptq ? 1.0f : 0.0f);
  EXPECT_THAT(PackedZeros(shape, zeros), Each(std::byte{0}));
}

// 128, 136, 200, ...: one block, one and a bit, and a short last one.
INSTANTIATE_TEST_SUITE_P(All, PackRoundTripTest,
                         testing::Values(RoundTrip{Layout::kCompressedTensors, 4, 200, 128, 64},
                                         RoundTrip{Layout::kCompressedTensors, 8, 131, 96, 32},
                                         RoundTrip{Layout::kCompressedTensors, 2, 130, 48, 16},
                                         RoundTrip{Layout::kCompressedTensors, 3, 130, 80, 16},
                                         RoundTrip{Layout::kCompressedTensors, 5, 7, 80, 16},
                                         RoundTrip{Layout::kCompressedTensors, 6, 129, 48, 16},
                                         RoundTrip{Layout::kAwq, 4, 8, 16, 16},
                                         RoundTrip{Layout::kAwq, 4, 136, 80, 16},
                                         RoundTrip{Layout::kAwq, 4, 256, 192, 64},
                                         RoundTrip{Layout::kGptq, 4, 200, 144, 16},
                                         RoundTrip{Layout::kGptq, 8, 132, 192, 64},
                                         RoundTrip{Layout::kGptq, 2, 144, 160, 32},
                                         RoundTrip{Layout::kGptq, 3, 160, 160, 32},
                                         RoundTrip{Layout::kGptqV2, 4, 256, 320, 64},
                                         RoundTrip{Layout::kGptqV2, 3, 32, 288, 32}));

TEST(PackTest, GroupValuesAreTransposedForKernelsThatReadDown) {
  const std::vector<uint16_t> values = {1, 2, 3, 4, 5, 6};  // three rows of two groups
  PackShape shape = Shape(Layout::kAwq, 4, 3, 32, 16);
  std::vector<uint16_t> out(6);
  const auto place = [&] {
    PlaceGroupValues(shape, values.data(), 2,
                     absl::MakeSpan(reinterpret_cast<std::byte*>(out.data()), 12));
    return out;
  };
  for (const Layout layout : {Layout::kAwq, Layout::kGptq, Layout::kGptqV2}) {
    shape.params.layout = layout;
    EXPECT_THAT(place(), ElementsAre(1, 3, 5, 2, 4, 6));
  }
  for (const Layout layout : {Layout::kCompressedTensors, Layout::kHqq}) {
    shape.params.layout = layout;
    EXPECT_THAT(place(), ElementsAreArray(values));
  }
}

TEST(PackTest, LongColumnsOfGroupValuesAreTransposedWhole) {
  const PackShape shape = Shape(Layout::kGptq, 4, 200, 48, 16);
  std::vector<uint32_t> values(600), out(600);
  std::iota(values.begin(), values.end(), 0u);
  PlaceGroupValues(shape, values.data(), 4,
                   absl::MakeSpan(reinterpret_cast<std::byte*>(out.data()), 2400));
  for (size_t n = 0; n < 200; ++n) {
    for (size_t j = 0; j < 3; ++j) ASSERT_EQ(out[j * 200 + n], n * 3 + j);
  }
}

}  // namespace
}  // namespace sinq::kernels
