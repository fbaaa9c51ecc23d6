#include "server/source/aux_file_rules.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace sinq {
namespace {

// Weights in other containers (a copy of them would undo the point), indexes of such, and leftovers
// of downloads.
constexpr std::array<absl::string_view, 24> kNotCopied = {
    ".safetensors", ".index.json", ".bin",  ".pt",         ".pth",     ".ckpt",
    ".gguf",        ".ggml",       ".ggmf", ".h5",         ".msgpack", ".onnx",
    ".onnx_data",   ".tflite",     ".npz",  ".npy",        ".pkl",     ".pickle",
    ".mlmodel",     ".nemo",       ".ot",   ".incomplete", ".lock",    ".partial"};

// What tells how the source's weights are stored, or were made: not true of the output's. Some are
// names that an output has itself.
constexpr std::array<absl::string_view, 6> kOfTheWeights = {
    "config.json",       "sinq-manifest.json", "quantization_config.json", "quantize_config.json",
    "quant_config.json", "hf_quant_config.json"};

bool IsOfTheWeights(absl::string_view name) {
  return std::find(kOfTheWeights.begin(), kOfTheWeights.end(), name) != kOfTheWeights.end() ||
         absl::EndsWith(name, ".index.json.meta.json");
}

}  // namespace

bool IsAuxFileName(absl::string_view name) {
  if (name.empty() || name.front() == '.' || IsOfTheWeights(name)) return false;
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F;
  });
  if (!printable) return false;
  const std::string lower = absl::AsciiStrToLower(name);
  return std::none_of(kNotCopied.begin(), kNotCopied.end(),
                      [&lower](absl::string_view suffix) { return absl::EndsWith(lower, suffix); });
}

}  // namespace sinq
