#include "kernels/pack.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace sinq::kernels {
namespace {

static_assert(std::endian::native == std::endian::little,
              "words are written as they lie in memory");

constexpr int64_t kWordBytes = 4;
constexpr int64_t kWordBits = 32;
constexpr int kMaxBits = 8;

// Word column of AWQ: nibble i holds row 8 w + kAwqOrder[i]; row c of the eight is nibble
// kAwqNibble[c].
constexpr std::array<int64_t, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr std::array<int, 8> kAwqNibble = {0, 4, 1, 5, 2, 6, 3, 7};

int64_t Words(int64_t count, int bits) { return (count * bits + kWordBits - 1) / kWordBits; }

void StoreWords(absl::Span<std::byte> plane, int64_t first_word, const uint32_t* words,
                int64_t count) {
  std::memcpy(plane.data() + first_word * kWordBytes, words,
              static_cast<size_t>(count * kWordBytes));
}

// Eight codes, one in each byte, moved together: the lowest 8 * kBits bits, first code lowest.
template <int kBits>
uint64_t Squeeze(uint64_t codes) {
  codes = (codes & 0x00ff00ff00ff00ff) | (codes & 0xff00ff00ff00ff00) >> (8 - kBits);
  codes = (codes & 0x0000ffff0000ffff) | (codes & 0xffff0000ffff0000) >> (16 - 2 * kBits);
  return (codes & 0x00000000ffffffff) | (codes & 0xffffffff00000000) >> (32 - 4 * kBits);
}

// `count` codes (a multiple of 8) as one bit stream, lowest bits first.
template <int kBits>
void PackStream(const uint8_t* codes, int64_t count, void* out) {
  auto* bytes = static_cast<std::byte*>(out);
  for (int64_t k = 0; k < count; k += 8, bytes += kBits) {
    uint64_t eight;
    std::memcpy(&eight, codes + k, sizeof eight);
    eight = Squeeze<kBits>(eight);
    std::memcpy(bytes, &eight, kBits);
  }
}

// Two codes a byte: a loop that compilers turn into vectors.
template <>
void PackStream<4>(const uint8_t* codes, int64_t count, void* out) {
  auto* bytes = static_cast<uint8_t*>(out);
  for (int64_t k = 0; k < count / 2; ++k)
    bytes[k] = static_cast<uint8_t>(codes[2 * k] | codes[2 * k + 1] << 4);
}

void PackStream(int bits, const uint8_t* codes, int64_t count, void* out) {
  switch (bits) {
    case 2:
      return PackStream<2>(codes, count, out);
    case 3:
      return PackStream<3>(codes, count, out);
    case 4:
      return PackStream<4>(codes, count, out);
    case 5:
      return PackStream<5>(codes, count, out);
    case 6:
      return PackStream<6>(codes, count, out);
    default:
      std::memcpy(out, codes, static_cast<size_t>(count));
  }
}

// pack-quantized: every row is a stream of its own, padded to whole words.
void PackRows(const PackShape& shape, const uint8_t* codes, int64_t first_row, int64_t count,
              absl::Span<std::byte> plane) {
  const int bits = shape.params.bits;
  const int64_t row_bytes = Words(shape.cols, bits) * kWordBytes;
  const int64_t used_bytes = shape.cols / 8 * bits;
  for (int64_t r = 0; r < count; ++r) {
    std::byte* row = plane.data() + (first_row + r) * row_bytes;
    PackStream(bits, codes + r * shape.cols, shape.cols, row);
    std::memset(row + used_bytes, 0, static_cast<size_t>(row_bytes - used_bytes));
  }
}

// GPTQ: the same streams, but a stream runs down a column of the plane. At most kPackRows rows.
void PackDown(const PackShape& shape, const uint8_t* codes, int64_t first_row, int64_t count,
              absl::Span<std::byte> plane) {
  constexpr int64_t kChunkCodes = 128;  // of one row; whole words for every width
  constexpr int64_t kChunkWords = kChunkCodes * kMaxBits / kWordBits;
  std::array<std::array<uint32_t, kChunkWords>, kPackRows> chunk;
  std::array<uint32_t, kPackRows> line;
  const int bits = shape.params.bits;
  for (int64_t k = 0; k < shape.cols; k += kChunkCodes) {
    const int64_t chunk_codes = std::min(kChunkCodes, shape.cols - k);
    for (int64_t r = 0; r < count; ++r)
      PackStream(bits, codes + r * shape.cols + k, chunk_codes,
                 chunk[static_cast<size_t>(r)].data());
    const int64_t first_word = Words(k, bits);
    for (int64_t w = 0; w < Words(chunk_codes, bits); ++w) {
      for (size_t r = 0; r < static_cast<size_t>(count); ++r)
        line[r] = chunk[r][static_cast<size_t>(w)];
      StoreWords(plane, (first_word + w) * shape.rows + first_row, line.data(), count);
    }
  }
}

// AWQ gemm: eight rows share a word, a word column runs down the plane. At most kPackRows rows.
void PackAcross(const PackShape& shape, const uint8_t* codes, int64_t first_row, int64_t count,
                absl::Span<std::byte> plane) {
  constexpr int64_t kChunkCodes = 64;  // of one row
  constexpr int64_t kLineWords = kPackRows / 8;
  std::array<std::array<uint32_t, kChunkCodes>, kLineWords> chunk;
  std::array<uint32_t, kLineWords> line;
  const int64_t words = count / 8;
  for (int64_t first_k = 0; first_k < shape.cols; first_k += kChunkCodes) {
    const int64_t chunk_codes = std::min(kChunkCodes, shape.cols - first_k);
    for (int64_t w = 0; w < words; ++w) {
      uint32_t* out = chunk[static_cast<size_t>(w)].data();
      const uint8_t* eight[8];
      for (size_t i = 0; i < 8; ++i)
        eight[i] = codes + (8 * w + kAwqOrder[i]) * shape.cols + first_k;
      for (int64_t k = 0; k < chunk_codes; ++k) {
        const uint32_t low = eight[0][k] | eight[1][k] << 4 | eight[2][k] << 8 | eight[3][k] << 12;
        const uint32_t high = eight[4][k] | eight[5][k] << 4 | eight[6][k] << 8 | eight[7][k] << 12;
        out[k] = low | high << 16;
      }
    }
    for (int64_t k = 0; k < chunk_codes; ++k) {
      for (size_t w = 0; w < static_cast<size_t>(words); ++w)
        line[w] = chunk[w][static_cast<size_t>(k)];
      StoreWords(plane, (first_k + k) * (shape.rows / 8) + first_row / 8, line.data(), words);
    }
  }
}

// Bit of a stream at which the zero of row `i` begins.
int ZeroBit(Layout layout, int bits, int i) {
  return layout == Layout::kAwq ? i / 8 * 32 + 4 * kAwqNibble[static_cast<size_t>(i % 8)]
                                : i * bits;
}

uint32_t StoredZero(const PackShape& shape, const float* zero, int64_t index) {
  const uint32_t value =
      shape.params.symmetric ? 1u << (shape.params.bits - 1) : static_cast<uint32_t>(zero[index]);
  return shape.params.layout == Layout::kGptq ? value - 1 : value;
}

// Zeros of at most 32 rows of group column `j`: whole words for every width.
void StreamZeros(const PackShape& shape, const float* zero, int64_t first_row, int count, int64_t j,
                 uint32_t* words) {
  const int64_t groups = shape.cols / shape.group;
  std::fill_n(words, kMaxBits, 0u);
  for (int i = 0; i < count; ++i) {
    const uint32_t value = StoredZero(shape, zero, (first_row + i) * groups + j);
    const int bit = ZeroBit(shape.params.layout, shape.params.bits, i);
    const int shift = bit % 32;
    words[bit / 32] |= value << shift;
    if (shift + shape.params.bits > 32) words[bit / 32 + 1] |= value >> (32 - shift);
  }
}

struct BlockFormat {
  int64_t size_bytes;
  bool has_minimum;
};

constexpr int64_t kBlockValues = 32;  // of a GGUF block

BlockFormat BlockFormatOf(Layout layout) {
  if (layout == Layout::kGgufQ8_0) return {2 + kBlockValues, false};
  const bool has_minimum = layout == Layout::kGgufQ4_1;
  return {2 + (has_minimum ? 2 : 0) + kBlockValues / 2, has_minimum};
}

void PackNibbles(const uint8_t* codes, std::byte* out) {
  constexpr int64_t kHalf = kBlockValues / 2;
  for (int64_t i = 0; i < kHalf; ++i)
    out[i] = static_cast<std::byte>(codes[i] | codes[i + kHalf] << 4);
}

void PackSigned(const uint8_t* codes, std::byte* out) {
  for (int64_t i = 0; i < kBlockValues; ++i) out[i] = static_cast<std::byte>(codes[i] ^ 0x80);
}

template <class Value>
void PlaceTransposed(const PackShape& shape, const void* values, absl::Span<std::byte> plane) {
  constexpr int64_t kBlockRows = 64;  // read again for every group column while still in the cache
  const int64_t groups = shape.cols / shape.group;
  const auto* from = static_cast<const std::byte*>(values);
  for (int64_t first = 0; first < shape.rows; first += kBlockRows) {
    const int64_t last = std::min(first + kBlockRows, shape.rows);
    for (int64_t j = 0; j < groups; ++j) {
      std::byte* to = plane.data() + (j * shape.rows + first) * static_cast<int64_t>(sizeof(Value));
      for (int64_t row = first; row < last; ++row, to += sizeof(Value))
        std::memcpy(to, from + (row * groups + j) * static_cast<int64_t>(sizeof(Value)),
                    sizeof(Value));
    }
  }
}

}  // namespace

void PackCodes(const PackShape& shape, const uint8_t* codes, int64_t first_row, int64_t count,
               absl::Span<std::byte> plane) {
  if (shape.params.layout == Layout::kCompressedTensors)
    return PackRows(shape, codes, first_row, count, plane);
  const auto pack = shape.params.layout == Layout::kAwq ? PackAcross : PackDown;
  for (int64_t r = 0; r < count; r += kPackRows)
    pack(shape, codes + r * shape.cols, first_row + r, std::min(kPackRows, count - r), plane);
}

void PackBlocks(const PackShape& shape, const uint8_t* codes, const uint16_t* scale_bits,
                const uint16_t* minimum_bits, int64_t first_row, int64_t count,
                absl::Span<std::byte> plane) {
  const BlockFormat format = BlockFormatOf(shape.params.layout);
  const auto pack = shape.params.bits == 8 ? PackSigned : PackNibbles;
  const int64_t groups = shape.cols / shape.group;
  std::byte* block = plane.data() + first_row * (shape.cols / kBlockValues) * format.size_bytes;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t k = 0; k < shape.cols; k += kBlockValues, block += format.size_bytes) {
      const int64_t e = (first_row + r) * groups + k / shape.group;
      std::memcpy(block, scale_bits + e, 2);
      if (format.has_minimum) std::memcpy(block + 2, minimum_bits + e, 2);
      pack(codes + r * shape.cols + k, block + (format.has_minimum ? 4 : 2));
    }
  }
}

void PackZeros(const PackShape& shape, const float* zero, absl::Span<std::byte> plane) {
  constexpr int64_t kStreamRows = 32;
  const int bits = shape.params.bits;
  const int64_t groups = shape.cols / shape.group;
  const bool words_down = shape.params.layout == Layout::kCompressedTensors;  // [words, groups]
  const int64_t row_words = Words(shape.rows, bits);
  std::array<uint32_t, kMaxBits> words;
  for (int64_t first = 0; first < shape.rows; first += kStreamRows) {
    const int count = static_cast<int>(std::min(kStreamRows, shape.rows - first));
    const int64_t first_word = Words(first, bits), used = Words(count, bits);
    for (int64_t j = 0; j < groups; ++j) {
      StreamZeros(shape, zero, first, count, j, words.data());
      if (!words_down) {
        StoreWords(plane, j * row_words + first_word, words.data(), used);
        continue;
      }
      for (int64_t w = 0; w < used; ++w)
        StoreWords(plane, (first_word + w) * groups + j, &words[static_cast<size_t>(w)], 1);
    }
  }
}

void PlaceGroupValues(const PackShape& shape, const void* values, size_t bytes_each,
                      absl::Span<std::byte> plane) {
  switch (shape.params.layout) {
    case Layout::kAwq:
    case Layout::kGptq:
    case Layout::kGptqV2:
      return bytes_each == 2 ? PlaceTransposed<uint16_t>(shape, values, plane)
                             : PlaceTransposed<uint32_t>(shape, values, plane);
    default:
      std::memcpy(plane.data(), values, plane.size());
  }
}

}  // namespace sinq::kernels
