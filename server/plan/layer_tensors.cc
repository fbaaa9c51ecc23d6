#include "server/plan/layer_tensors.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace sinq {
namespace {

constexpr std::array<absl::string_view, 8> kLayerLists = {
    "layers.",
    "model.layers.",
    "language_model.model.layers.",
    "model.language_model.layers.",
    "language_model.layers.",
    "model.text_model.layers.",
    "language_model.model.encoder.layers.",
    "language_model.model.blocks."};
constexpr size_t kMaxDigits = 6;

// (number of the list, layer) and the length of the prefix; 0 if the name is of no layer.
size_t PrefixOf(absl::string_view name, std::pair<size_t, int>* key) {
  for (size_t list = 0; list < kLayerLists.size(); ++list) {
    if (!absl::StartsWith(name, kLayerLists[list])) continue;
    const size_t begin = kLayerLists[list].size();
    size_t end = begin;
    while (end < name.size() && absl::ascii_isdigit(static_cast<unsigned char>(name[end]))) ++end;
    const absl::string_view digits = name.substr(begin, end - begin);
    const bool is_padded = digits.size() > 1 && digits.front() == '0';  // no loader writes that
    int layer = 0;
    if (is_padded || digits.size() > kMaxDigits || end == name.size() || name[end] != '.' ||
        !absl::SimpleAtoi(digits, &layer))
      return 0;
    *key = {list, layer};
    return end + 1;
  }
  return 0;
}

}  // namespace

int LayerTensors::Find(absl::string_view name) const {
  const auto found = index.find(std::string(name));
  return found == index.end() ? -1 : found->second;
}

std::vector<LayerTensors> GroupByLayer(const std::vector<PlannedTensor>& tensors) {
  std::map<std::pair<size_t, int>, LayerTensors> layers;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string& name = tensors[i].source.name;
    std::pair<size_t, int> key;
    const size_t length = PrefixOf(name, &key);
    const std::vector<int64_t>& shape = tensors[i].source.shape;
    const bool is_empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
    if (length == 0 || is_empty) continue;
    LayerTensors& layer = layers[key];
    layer.prefix = name.substr(0, length);
    layer.index[name.substr(length)] = static_cast<int>(i);
  }
  std::map<int, LayerTensors*> first;  // by the layer's number
  for (auto& [key, layer] : layers) {
    const auto [other, is_new] = first.try_emplace(key.second, &layer);
    if (is_new) continue;
    layer.twin = other->second->prefix;
    other->second->twin = layer.prefix;
  }
  std::vector<LayerTensors> ordered;
  for (auto& [key, layer] : layers) ordered.push_back(std::move(layer));
  return ordered;
}

}  // namespace sinq
