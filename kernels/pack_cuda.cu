// Codes as bytes into the words of other layouts on a CUDA device: README.md section 12.
//
// Launch shape. A thread makes one word (one block of GGUF) from the bytes of its fields. Words
// that lie side by side go to neighbouring threads; where they run down the matrix (AWQ, GPTQ)
// their bytes are a row apart, but the next word down wants the bytes beside them, which wait in
// L1.
#include "kernels/cuda_launch.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/half.h"
#include "kernels/pack_cuda.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockValues = 32;  // of a GGUF block

struct PackParams {
  const uint8_t* codes;  // [rows, cols]
  const float* scale;    // of the tensor
  const float* minimum;  // GGUF Q4_1, else null
  unsigned char* out;
  int64_t first_row, rows, cols, groups_per_row;
  int64_t line_words;  // or bytes of a GGUF block
  int64_t units;
  int bits, group;
};

// ================================================================ device

// Word `w` of the stream that a row's codes make.
__device__ unsigned StreamWord(const PackParams& p, int64_t row, int64_t w) {
  const uint8_t* codes = p.codes + row * p.cols;
  unsigned word = 0;
  for (int64_t k = Quotient(32 * w, p.bits); k * p.bits < 32 * (w + 1) && k < p.cols; ++k)
    word |= FieldInWord(codes[k], static_cast<int>(k * p.bits - 32 * w));
  return word;
}

// compressed-tensors: [rows, words].
__global__ void __launch_bounds__(kThreads) PackRowsKernel(PackParams p) {
  auto* words = reinterpret_cast<unsigned*>(p.out);
  for (int64_t n = GlobalThread(); n < p.units; n += GlobalThreads()) {
    const int64_t row = Quotient(n, p.line_words);
    words[n] = StreamWord(p, row, n - row * p.line_words);
  }
}

// GPTQ: [words, rows].
__global__ void __launch_bounds__(kThreads) PackDownKernel(PackParams p) {
  auto* words = reinterpret_cast<unsigned*>(p.out);
  for (int64_t n = GlobalThread(); n < p.units; n += GlobalThreads()) {
    const int64_t w = Quotient(n, p.rows);
    words[n] = StreamWord(p, n - w * p.rows, w);
  }
}

// AWQ: [cols, rows / 8].
__global__ void __launch_bounds__(kThreads) PackAcrossKernel(PackParams p) {
  auto* words = reinterpret_cast<unsigned*>(p.out);
  for (int64_t n = GlobalThread(); n < p.units; n += GlobalThreads()) {
    const int64_t k = Quotient(n, p.line_words), w = n - k * p.line_words;
    unsigned word = 0;
    for (int c = 0; c < 8; ++c)
      word |= static_cast<unsigned>(p.codes[(8 * w + c) * p.cols + k]) << (4 * AwqNibble(c));
    words[n] = word;
  }
}

__device__ void StoreHalf(float value, unsigned char* out) {
  const unsigned bits = FloatToF16(value);
  out[0] = static_cast<unsigned char>(bits);
  out[1] = static_cast<unsigned char>(bits >> 8);
}

// GGUF: a block for each 32 columns of a row.
__global__ void __launch_bounds__(kThreads) PackBlocksKernel(PackParams p) {
  const int64_t row_blocks = p.cols / kBlockValues;
  for (int64_t n = GlobalThread(); n < p.units; n += GlobalThreads()) {
    const int64_t row = Quotient(n, row_blocks), col = (n - row * row_blocks) * kBlockValues;
    const int64_t e = (p.first_row + row) * p.groups_per_row + Quotient(col, p.group);
    const uint8_t* codes = p.codes + row * p.cols + col;
    unsigned char* out = p.out + n * p.line_words;
    StoreHalf(p.scale[e], out);
    out += 2;
    if (p.minimum != nullptr) {
      StoreHalf(p.minimum[e], out);
      out += 2;
    }
    if (p.bits == 8) {
      for (int i = 0; i < kBlockValues; ++i) out[i] = codes[i] ^ 0x80;
    } else {
      for (int i = 0; i < kBlockValues / 2; ++i)
        out[i] = static_cast<unsigned char>(codes[i] | codes[i + kBlockValues / 2] << 4);
    }
  }
}

}  // namespace

// ================================================================ host

int LaunchPack(const CudaTensor& tensor, const RowRange& rows, const uint8_t* codes,
               const DeviceArrays& arrays, void* lines, CudaStream stream) {
  const PackedPiece piece = PieceOf(tensor, rows);
  PackParams p{};
  p.codes = codes;
  p.scale = arrays.scale;
  p.minimum = arrays.minimum;
  p.out = static_cast<unsigned char*>(lines);
  p.first_row = rows.first;
  p.rows = rows.last - rows.first;
  p.cols = tensor.cols;
  p.groups_per_row = tensor.groups_per_row;
  p.line_words = static_cast<int64_t>(piece.line_bytes / 4);
  p.units = piece.lines * p.line_words;
  p.bits = tensor.params.bits;
  p.group = tensor.group;
  const LaunchShape words = ThreadPerUnit(p.units, kThreads);
  switch (tensor.params.layout) {
    case Layout::kCompressedTensors:
      return LaunchKernel(PackRowsKernel, words, stream, p);
    case Layout::kAwq:
      return LaunchKernel(PackAcrossKernel, words, stream, p);
    case Layout::kGptq:
    case Layout::kGptqV2:
      return LaunchKernel(PackDownKernel, words, stream, p);
    default:
      p.units = p.rows * (p.cols / kBlockValues);
      p.line_words =
          static_cast<int64_t>(piece.line_bytes) / (p.cols / kBlockValues);
      return LaunchKernel(PackBlocksKernel, ThreadPerUnit(p.units, kThreads), stream, p);
  }
}

}  // namespace sinq::kernels
