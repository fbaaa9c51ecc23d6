// What is done to one tensor: method, widths, storage of the auxiliaries and layout of the result.
#ifndef SINQ_KERNELS_QUANT_PARAMS_H_
#define SINQ_KERNELS_QUANT_PARAMS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sinq::kernels {

// The authors' method strings in parentheses. README.md sections 2 - 4 and 8 - 11.
enum class Method : uint8_t {
  kSinq,      // balanced, uniform codes (sinq)
  kRtn,       // no balancing, t = 1 (rtn)
  kSinqHqq,   // balanced, zero refined by HQQ (sinq_hqq)
  kHqq,       // HQQ alone (hqq)
  kSinqNf4,   // balanced, NF4 codebook (sinq_nf4); 4 bits
  kNf4,       // (nf4)
  kSinqNf3,   // balanced, NF3 codebook (sinq_nf3); 3 bits
  kNf3,       // (nf3)
  kAsinq,     // balanced, column scale from activations, mean |error| (sinq_awq_l1)
  kAsinqL2,   // the same with mean squares (sinq_awq)
  kAwq,       // activations without balancing, mean |error| (awq_l1)
  kHadamard,  // orthonormal Hadamard transform of each group, then rtn; for comparison, dense only
};

enum class Profile : uint8_t { kDefault, kUpstream };  // README.md sections 3 and 4

// Storage of scales and zeros. kBf16, kF32: for formats and codebooks that want them.
enum class AuxStorage : uint8_t { kU8, kF16, kBf16, kF32 };

// Which block of W one (t, r) pair covers: N x g columns, or g x g squares.
enum class Tiling : uint8_t { k1D, k2D };

// Where codes, scales and zeros come to lie (layout.h). All but kSinq and kDense have no place for
// a column scale: t is 1 there, and whoever wants balancing divides the columns beforehand
// (MatrixView::column_factor).
enum class Layout : uint8_t {
  kSinq,               // authors' bitpack.py
  kHqq,                // group rows packed like kSinq, no column scale
  kCompressedTensors,  // pack-quantized
  kAwq,                // AutoAWQ "gemm"; 4 bits
  kGptq,               // v1: zero - 1 is stored
  kGptqV2,             // v2: zero as it is
  kGgufQ4_0,           // 32-blocks, symmetric 4 bits
  kGgufQ4_1,           // 32-blocks, asymmetric 4 bits
  kGgufQ8_0,           // 32-blocks, symmetric 8 bits
  kDense,              // the dequantized weights, in the dtype of the input
};

// What a zero point may be; README.md section 4 (zeta).
enum class ZeroRule : uint8_t {
  kSixteenths,      // multiples of 1/16 in 0 .. 2^b - 1: what an 8-bit zero grid holds
  kReal,            // any F16 (or aux dtype) value
  kInteger,         // 0 .. 2^b - 1
  kIntegerFromOne,  // 1 .. 2^b - 1: GPTQ v1
};

struct QuantParams {
  Method method = Method::kSinq;
  Profile profile = Profile::kDefault;
  AuxStorage aux = AuxStorage::kU8;
  int bits = 4;         // 2, 3, 4, 5, 6, 8
  int group_size = 64;  // 32, 64, 128 as requested by a user; a planner may pass the halved 16
  bool symmetric = false;
  Tiling tiling = Tiling::k1D;
  Layout layout = Layout::kSinq;
  // kDense and kSinq only: false leaves t = 1 also for balancing methods (the input was divided
  // by a folded t already).
  bool own_column_scale = true;

  friend bool operator==(const QuantParams&, const QuantParams&) = default;
};

// How codes are chosen once the values are balanced.
enum class Rounding : uint8_t { kUniform, kHqq, kNf4, kNf3, kHadamard };
Rounding RoundingOf(Method method);
bool Balances(Method method);          // the method has a t of its own
bool NeedsActivations(Method method);  // MatrixView::activations must be there
// Whether a column scale t is made by the kernel: the method balances (or scales by activations),
// the layout can store t and own_column_scale is set.
bool MakesColumnScale(const QuantParams& params);
// Whether each group is brought near 1 by a power of two of its own before its scale is searched,
// not by its tile's (README.md section 8.2).
bool ScalesGroups(const QuantParams& params);
// From layout, aux and symmetric.
ZeroRule ZeroRuleOf(const QuantParams& params);

// Every violated rule, one sentence each naming the field and the values that work; empty if valid.
std::vector<std::string> Violations(const QuantParams& params);
// OK, or InvalidArgument with all violations joined.
absl::Status Validate(const QuantParams& params);

absl::string_view MethodName(Method method);     // "sinq", "rtn", "sinq_hqq", ...
absl::string_view ProfileName(Profile profile);  // "default", "upstream"
absl::string_view AuxName(AuxStorage aux);       // "u8", "f16", "bf16", "f32"
absl::string_view TilingName(Tiling tiling);     // "1D", "2D"
bool ParseMethod(absl::string_view name, Method* out);
bool ParseProfile(absl::string_view name, Profile* out);
bool ParseAux(absl::string_view name, AuxStorage* out);
bool ParseTiling(absl::string_view name, Tiling* out);
// All names that ParseMethod takes, in the order of the enum.
std::vector<absl::string_view> MethodNames();

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_QUANT_PARAMS_H_
