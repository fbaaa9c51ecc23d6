#include "tests/reference/golden_case.h"

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

}  // namespace

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
  for (const auto& [name, entry] : manifest["cases"].items()) names.push_back(name);
  return names;
}

GoldenCase LoadGolden(const std::string& directory, const std::string& name) {
  const Json entry = Json::parse(ReadFile(directory + "/manifest.json"))["cases"][name];
  GoldenCase golden;
  golden.name = name;
  const std::string method = entry["method"];
  golden.is_quant_aux = method.find("quantAux") != std::string::npos;
  golden.params.profile = Profile::kUpstream;
  golden.params.method = method.find("sinq") != std::string::npos ? Method::kSinq : Method::kRtn;
  golden.params.bits = entry["bits"];
  golden.params.group_size = entry["group"];
  golden.params.symmetric = entry["symmetric"];
  golden.params.aux = golden.is_quant_aux ? AuxStorage::kU8 : AuxStorage::kF16;
  golden.tile = entry["tile"];
  golden.gate_enabled = entry["gate_enabled"];
  golden.is_f16 = entry["aux_dtype"] == "f16";
  ReadTensors(ReadFile(directory + "/" + name + ".safetensors"), golden);
  golden.input = InputOf(golden);
  return golden;
}

}  // namespace sinq::kernels
