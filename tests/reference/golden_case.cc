#include "tests/reference/golden_case.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "kernels/half.h"
#include "nlohmann/json.hpp"

namespace sinq::kernels {
namespace {

using Json = nlohmann::ordered_json;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

template <class T>
T At(const std::vector<std::byte>& bytes, size_t index) {
  T value;
  std::memcpy(&value, &bytes[index * sizeof(T)], sizeof value);
  return value;
}

size_t WidthOf(const std::string& dtype) {
  if (dtype == "F32" || dtype == "I32") return 4;
  return dtype == "U8" ? 1 : 2;
}

void ReadTensors(const std::string& text, GoldenCase& golden) {
  uint64_t header_bytes;
  std::memcpy(&header_bytes, text.data(), sizeof header_bytes);
  const Json header = Json::parse(text.substr(8, header_bytes));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    GoldenTensor tensor;
    tensor.dtype = entry["dtype"];
    tensor.shape = entry["shape"].get<std::vector<int64_t>>();
    const uint64_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    tensor.bytes.resize(end - begin);
    if (end > begin)
      std::memcpy(tensor.bytes.data(), text.data() + 8 + header_bytes + begin, end - begin);
    golden.tensors[name] = std::move(tensor);
  }
}

std::vector<std::byte> InputOf(const GoldenCase& golden) {
  const GoldenTensor& w = golden.tensors.at("W");
  if (!golden.is_f16) return w.bytes;
  std::vector<std::byte> halves;
  for (const float value : w.Floats()) {
    const uint16_t bits = FloatToF16(value);
    halves.push_back(static_cast<std::byte>(bits & 0xff));
    halves.push_back(static_cast<std::byte>(bits >> 8));
  }
  return halves;
}

bool Has(const std::string& method, const char* part) {
  return method.find(part) != std::string::npos;
}

Method MethodOf(const std::string& name) {
  const bool balances = Has(name, "sinq");
  if (Has(name, "nf4")) return balances ? Method::kSinqNf4 : Method::kNf4;
  if (Has(name, "nf3")) return balances ? Method::kSinqNf3 : Method::kNf3;
  if (Has(name, "hqq")) return balances ? Method::kSinqHqq : Method::kHqq;
  if (Has(name, "awq") && balances) return Has(name, "l1") ? Method::kAsinq : Method::kAsinqL2;
  if (Has(name, "awq")) return Method::kAwq;
  return balances ? Method::kSinq : Method::kRtn;
}

void ReadEntry(const Json& entry, GoldenCase& golden) {
  golden.input = entry["input"];
  golden.method = entry["method"];
  golden.is_quant_aux = Has(golden.method, "quantAux");
  golden.params.profile = Profile::kUpstream;
  golden.params.method = MethodOf(golden.method);
  golden.params.bits = entry["bits"];
  golden.params.group_size = entry["group"];
  golden.params.symmetric = entry["symmetric"];
  golden.params.tiling = entry["tiling"] == "2D" ? Tiling::k2D : Tiling::k1D;
  golden.params.aux = golden.is_quant_aux ? AuxStorage::kU8 : AuxStorage::kF16;
  golden.tile = entry["tile"];
  golden.gate_enabled = entry["gate_enabled"];
  golden.gate_triggered = entry["gate_triggered"];
  golden.is_f16 = entry["aux_dtype"] == "f16";
}

}  // namespace

std::string GoldenDirectory(const std::string& built_in) {
  const char* chosen = std::getenv("SINQ_GOLDEN_DIR");
  return chosen == nullptr ? built_in : chosen;
}

std::vector<float> GoldenCase::InRowOrder(const std::vector<float>& stored) const {
  if (!is_square() || stored.size() <= 1) return stored;
  const size_t side = static_cast<size_t>(tile), tiles = static_cast<size_t>(cols()) / side;
  std::vector<float> values(stored.size());
  for (size_t e = 0; e < values.size(); ++e) {
    const size_t row = e / tiles, j = e % tiles;
    values[e] = stored[(row / side * tiles + j) * side + row % side];
  }
  return values;
}

std::vector<float> GoldenTensor::Floats() const {
  const size_t count = bytes.size() / WidthOf(dtype);
  std::vector<float> values;
  for (size_t i = 0; i < count; ++i) {
    if (dtype == "F32") values.push_back(At<float>(bytes, i));
    if (dtype == "I32") values.push_back(static_cast<float>(At<int32_t>(bytes, i)));
    if (dtype == "U8") values.push_back(static_cast<float>(At<uint8_t>(bytes, i)));
    if (dtype == "F16") values.push_back(F16ToFloat(At<uint16_t>(bytes, i)));
    if (dtype == "BF16") values.push_back(Bf16ToFloat(At<uint16_t>(bytes, i)));
  }
  return values;
}

std::vector<std::string> GoldenNames(const std::string& directory) {
  std::vector<std::string> names;
  const Json manifest = Json::parse(ReadFile(directory + "/manifest.json"));
  for (const auto& [name, entry] : manifest["cases"].items()) {
    if (entry["kind"] == "quantize") names.push_back(name);
  }
  return names;
}

GoldenCase LoadGolden(const std::string& directory, const std::string& name) {
  const Json entry = Json::parse(ReadFile(directory + "/manifest.json"))["cases"][name];
  GoldenCase golden;
  golden.name = name;
  ReadEntry(entry, golden);
  ReadTensors(ReadFile(directory + "/" + name + ".safetensors"), golden);
  golden.weights = InputOf(golden);
  if (golden.tensors.count("activations") > 0) {
    golden.samples = golden.Floats("activations");
    golden.activations.samples = golden.samples;
    golden.activations.tokens = static_cast<int64_t>(golden.samples.size()) / golden.cols();
  }
  return golden;
}

}  // namespace sinq::kernels
