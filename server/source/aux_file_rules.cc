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

}  // namespace

bool IsAuxFileName(absl::string_view name) {
  if (name.empty() || name.front() == '.' || name == "config.json") return false;
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F;
  });
  if (!printable) return false;
  const std::string lower = absl::AsciiStrToLower(name);
  return std::none_of(kNotCopied.begin(), kNotCopied.end(),
                      [&lower](absl::string_view suffix) { return absl::EndsWith(lower, suffix); });
}

}  // namespace sinq
