#include "server/plan/gguf_plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/error.h"
#include "server/base/text.h"
#include "server/export/export_gguf.h"
#include "server/plan/gguf_names.h"
#include "server/source/float_element.h"

namespace sinq {
namespace {

constexpr size_t kMaxQuotedBytes = 100;  // of a file's text in a message
constexpr char kConvert[] = "convert this checkpoint with llama.cpp's convert_hf_to_gguf.py";
constexpr char kOutTypes[] = "--outtype f16, bf16 or f32";
// Of ggml.h; written where a file has quantized tensors.
constexpr uint32_t kQuantizationVersion = 2;
// How much of a tensor is compared: enough to tell any two checkpoints or orders of rows apart.
constexpr int64_t kComparedColumns = 1024;

// llama.cpp's llama_ftype for "mostly this type".
uint32_t FileTypeOf(GgmlType type) {
  if (type == GgmlType::kQ8_0) return 7;
  return type == GgmlType::kQ4_0 ? 2 : 3;
}

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", PrintableText(text, kMaxQuotedBytes), "\"");
}

absl::Status Refuse(absl::string_view message, absl::string_view tensor = "") {
  std::map<std::string, std::string> metadata = {{"field", "recipe.gguf_template_uri"}};
  if (!tensor.empty()) metadata["tensor"] = std::string(tensor);
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kUnsupportedSource, message,
                   std::move(metadata));
}

// As checkpoints have it: the fastest dimension last.
std::vector<int64_t> ShapeOf(const GgufTensor& tensor) {
  return {tensor.dimensions.rbegin(), tensor.dimensions.rend()};
}

// One planning; on the stack of PlanGguf.
class GgufPlanner {
 public:
  GgufPlanner(const GgufTemplate& gguf_template, const ModelSource& source, const ModelShape& shape,
              Plan& plan)
      : template_(gguf_template),
        source_(source),
        shape_(shape),
        plan_(plan),
        file_(gguf_template.file()),
        replaced_(gguf_template.file().tensors.size(), -1) {}

  absl::Status Run() {
    if (absl::Status status = FindArchitecture(); !status.ok()) return status;
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      if (absl::Status status = Place(i); !status.ok()) return status;
    }
    if (absl::Status status = KeepOthers(); !status.ok()) return status;
    if (absl::Status status = SetFileType(); !status.ok()) return status;
    plan_.gguf_template = {template_.size_bytes(), template_.header_sha256()};
    return LayOut();
  }

 private:
  absl::Status FindArchitecture() {
    const std::string& name = file_.architecture;
    architecture_ = FindGgufArchitecture(name);
    if (architecture_ == nullptr) {
      std::vector<absl::string_view> known;
      for (const GgufArchitecture& each : AllGgufArchitectures()) known.push_back(each.name);
      return Refuse(absl::StrCat("The template has the architecture ", Quoted(name),
                                 ", whose names are not known here (known are ",
                                 absl::StrJoin(known, ", "),
                                 "); use format bf16-presinq, convert its output and quantize that "
                                 "with llama.cpp."));
    }
    const auto& types = architecture_->model_types;
    // A bare file has no model type; then the comparison of rows has to do.
    if (shape_.model_type.empty() ||
        std::find(types.begin(), types.end(), shape_.model_type) != types.end())
      return absl::OkStatus();
    return Refuse(absl::StrCat("The template has the architecture ", Quoted(name),
                               ", but the source is of the model type ", Quoted(shape_.model_type),
                               ", which is not put into it here (", absl::StrJoin(types, ", "),
                               (types.size() > 1 ? " are" : " is"), "); ", kConvert,
                               ", or use format bf16-presinq."));
  }

  absl::Status Place(size_t index) {
    PlannedTensor& tensor = plan_.tensors[index];
    const std::string& name = tensor.source.name;
    const std::optional<GgufPlace> place = GgufPlaceOf(*architecture_, name);
    const int target = place ? template_.Find(place->name) : -1;
    const bool replaces = tensor.action == TensorAction::kQuantize ||
                          (tensor.action == TensorAction::kFold && tensor.is_folded());
    if (target < 0) {
      if (replaces) return HasNoPlace(name, place);
      return Drop(tensor, "the template has no such tensor");
    }
    const GgufTensor& stored = template_.file().tensors[static_cast<size_t>(target)];
    if (ShapeOf(stored) != tensor.source.shape) return HasOtherShape(tensor, stored);
    if (absl::Status status = FindHeads(*place, tensor); !status.ok()) return status;
    if (absl::Status status = CheckAlike(tensor, stored); !status.ok()) return status;
    if (!replaces) return Drop(tensor, absl::StrCat("the template's ", stored.name, " is kept"));
    replaced_[static_cast<size_t>(target)] = static_cast<int>(index);
    return Replace(tensor, stored, file_.tensors[static_cast<size_t>(target)]);
  }

  static absl::Status Drop(PlannedTensor& tensor, absl::string_view why) {
    if (tensor.action == TensorAction::kDrop) return absl::OkStatus();  // has its reason
    tensor.action = TensorAction::kDrop;
    tensor.alternating_heads = 0;
    absl::StrAppend(&tensor.reason, "; ", why);
    tensor.outputs.clear();
    return absl::OkStatus();
  }

  absl::Status HasNoPlace(const std::string& name, const std::optional<GgufPlace>& place) const {
    if (!place) {
      return Refuse(absl::StrCat(name, " has no place in a GGUF file of the architecture ",
                                 Quoted(file_.architecture), "; exclude it."),
                    name);
    }
    return Refuse(absl::StrCat("The template has no ", place->name, " for ", name, "; ", kConvert,
                               ", or exclude the tensor."),
                  name);
  }

  static absl::Status HasOtherShape(const PlannedTensor& tensor, const GgufTensor& stored) {
    return Refuse(absl::StrCat(tensor.source.name, " is [",
                               absl::StrJoin(tensor.source.shape, ", "), "], but the template's ",
                               stored.name, " is [", absl::StrJoin(ShapeOf(stored), ", "),
                               "]: it is of another model; ", kConvert, "."),
                  tensor.source.name);
  }

  // How the template has the tensor's rows ordered.
  absl::Status FindHeads(const GgufPlace& place, PlannedTensor& tensor) const {
    if (place.rows == GgufRows::kAsTheyAre) return absl::OkStatus();
    const std::string all = absl::StrCat(file_.architecture, ".attention.head_count");
    const auto heads = file_.numbers.find(all);
    auto found = heads;
    if (place.rows == GgufRows::kHalvesOfKeyHeads) {
      // Without one there are as many as query heads.
      const auto of_keys = file_.numbers.find(all + "_kv");
      if (of_keys != file_.numbers.end()) found = of_keys;
    }
    if (found == file_.numbers.end()) {
      return Refuse(absl::StrCat("The template's metadata has no number ", all,
                                 ", by which the rows of ", place.name, " are ordered; ", kConvert,
                                 "."));
    }
    const uint64_t rows = static_cast<uint64_t>(tensor.source.shape[0]);
    const uint64_t count = found->second.value;
    if (count == 0 || count > rows || rows % (2 * count) != 0) {
      return Refuse(absl::StrCat(tensor.source.name, " has ", rows, " rows, which are not ", count,
                                 " heads of an even number of rows, as the template's ",
                                 found->first, " says; ", kConvert, "."),
                    tensor.source.name);
    }
    tensor.alternating_heads = static_cast<int64_t>(count);
    return absl::OkStatus();
  }

  // Compares some rows of both files.
  absl::Status CheckAlike(const PlannedTensor& tensor, const GgufTensor& stored) const {
    const SourceTensor& source = tensor.source;
    const bool is_plain = IsPlainFloat(source.dtype) && IsFloat(stored.type);
    if (!is_plain || source.shape.empty() || source.shape.size() > 2) return absl::OkStatus();
    const int64_t rows = source.shape.size() == 2 ? source.shape[0] : 1;
    if (rows == 0) return absl::OkStatus();
    const std::set<int64_t> compared = {0, std::min<int64_t>(1, rows - 1), rows / 2, rows - 1};
    for (const int64_t row : compared) {
      if (absl::Status status = CompareRow(tensor, stored, row); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status CompareRow(const PlannedTensor& tensor, const GgufTensor& stored,
                          int64_t row) const {
    const SourceTensor& source = tensor.source;
    const absl::string_view type = GgmlTypeName(stored.type);
    const uint64_t cols = static_cast<uint64_t>(source.shape.back());
    const uint64_t width = FloatElementBytes(source.dtype), stored_width = FloatElementBytes(type);
    const size_t count = static_cast<size_t>(std::min(source.shape.back(), kComparedColumns));
    std::vector<std::byte> ours(count * width), theirs(count * stored_width);
    const uint64_t our_offset = static_cast<uint64_t>(tensor.SourceRow(row)) * cols * width;
    const uint64_t their_offset = static_cast<uint64_t>(row) * cols * stored_width;
    absl::Status status =
        source_.Read(source.file_index, source.offset + our_offset, absl::MakeSpan(ours));
    if (!status.ok()) return Annotate(status, source.name);
    status = template_.Read(template_.file().data_offset + stored.offset + their_offset,
                            absl::MakeSpan(theirs));
    if (!status.ok()) return Annotate(status, stored.name);
    for (size_t k = 0; k < count; ++k) {
      const size_t our_k = ElementOf(tensor, k);
      if (our_k >= count) continue;
      const float a = FloatElementAt(ours.data(), source.dtype, our_k);
      if (IsRounded(a, FloatElementAt(theirs.data(), type, k))) continue;
      return Refuse(
          absl::StrCat("The template's ", stored.name, " is not ", source.name, ": at [", row, ", ",
                       k,
                       "] they differ. It was made from another checkpoint, or puts rows in "
                       "another order; ",
                       kConvert, "."),
          source.name);
    }
    return absl::OkStatus();
  }

  // Of a vector (a bias) the elements are in the order that rows of a matrix have.
  static size_t ElementOf(const PlannedTensor& tensor, size_t k) {
    if (tensor.source.shape.size() == 2) return k;
    return static_cast<size_t>(tensor.SourceRow(static_cast<int64_t>(k)));
  }

  // Whether a converter may have made `b` of `a`: rounding to BF16 moves by less than 2^-8, to F16
  // by less near 0 than its smallest step; what is beyond F16 can be anything.
  static bool IsRounded(float a, float b) {
    constexpr float kLargestF16 = 65504;
    return !(std::fabs(a) <= kLargestF16) || std::fabs(a - b) <= 0x1p-8f * std::fabs(a) + 0x1p-24f;
  }

  absl::Status Replace(PlannedTensor& tensor, const GgufTensor& stored, GgufTensor& written) {
    if (!IsFloat(stored.type)) {
      return Refuse(absl::StrCat("The template's ", stored.name, " is ", GgmlTypeName(stored.type),
                                 " already; ", kConvert, " ", kOutTypes, "."),
                    tensor.source.name);
    }
    OutputTensor& output = tensor.outputs.front().tensor;
    output.name = stored.name;
    if (tensor.action == TensorAction::kQuantize) {
      written.type = GgmlTypeOf(tensor.params.layout);
      weights_[written.type] += output.size_bytes;
      return absl::OkStatus();
    }
    // An F16 norm could not keep a value that has no room for its scale.
    const absl::string_view dtype = GgmlTypeName(stored.type);
    if (tensor.source.shape.size() == 1 && stored.type != GgmlType::kF32 &&
        dtype != tensor.source.dtype) {
      return Refuse(absl::StrCat("The template's ", stored.name, " is ", dtype,
                                 ", but a column scale is folded into it: it must be F32, as "
                                 "converters write it; ",
                                 kConvert, ", or submit with fold off."),
                    tensor.source.name);
    }
    output.dtype = std::string(dtype);
    output.size_bytes = stored.size_bytes;
    return absl::OkStatus();
  }

  // The rest of the template.
  absl::Status KeepOthers() {
    std::set<absl::string_view> names;
    const size_t ours = plan_.tensors.size();
    for (const PlannedTensor& tensor : plan_.tensors) names.insert(tensor.source.name);
    std::vector<PlannedTensor> kept;
    for (size_t i = 0; i < replaced_.size(); ++i) {
      if (replaced_[i] >= 0) continue;
      const GgufTensor& stored = template_.file().tensors[i];
      if (names.contains(stored.name)) {
        return Refuse(absl::StrCat("Source and template both have a tensor ", stored.name,
                                   ", which the source's names do not allow; rename it there."),
                      stored.name);
      }
      replaced_[i] = static_cast<int>(ours + kept.size());
      kept.push_back(Kept(stored));
    }
    plan_.tensors.insert(plan_.tensors.end(), std::make_move_iterator(kept.begin()),
                         std::make_move_iterator(kept.end()));
    return absl::OkStatus();
  }

  PlannedTensor Kept(const GgufTensor& stored) const {
    PlannedTensor tensor;
    tensor.source = {stored.name, std::string(GgmlTypeName(stored.type)),       ShapeOf(stored),
                     0,           template_.file().data_offset + stored.offset, stored.size_bytes};
    tensor.reason = "as it is in the template";
    tensor.from_template = true;
    tensor.outputs.push_back(
        {{stored.name, tensor.source.dtype, tensor.source.shape, stored.size_bytes}});
    return tensor;
  }

  // The type that most of the quantized weights have; nothing changes without any.
  absl::Status SetFileType() {
    if (weights_.empty()) return absl::OkStatus();
    const auto most =
        std::max_element(weights_.begin(), weights_.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    absl::Status status = SetGgufNumber(file_, "general.file_type", FileTypeOf(most->first));
    if (!status.ok()) return status;
    return SetGgufNumber(file_, "general.quantization_version", kQuantizationVersion);
  }

  absl::Status LayOut() {
    absl::StatusOr<std::string> header = LayOutGguf(file_);
    if (!header.ok()) return header.status();
    PlannedFile& planned = plan_.files.emplace_back();
    planned.name = kGgufFileName;
    planned.size_bytes = header->size();
    planned.header = *std::move(header);
    for (size_t i = 0; i < file_.tensors.size(); ++i) {
      const GgufTensor& written = file_.tensors[i];
      OutputRange& range = plan_.tensors[static_cast<size_t>(replaced_[i])].outputs.front();
      if (range.tensor.size_bytes != written.size_bytes)
        return absl::InternalError(absl::StrCat(written.name, " was planned with another size"));
      range.file_index = 0;
      range.offset = file_.data_offset + written.offset;
      const uint64_t end = range.offset + written.size_bytes;
      planned.size_bytes = (end + file_.alignment - 1) / file_.alignment * file_.alignment;
      if (planned.size_bytes > end) planned.padding.push_back({end, planned.size_bytes - end});
    }
    return absl::OkStatus();
  }

  const GgufTemplate& template_;
  const ModelSource& source_;
  const ModelShape& shape_;
  Plan& plan_;
  GgufFile file_;              // as it will be written
  std::vector<int> replaced_;  // by tensor of the file: into plan_.tensors; -1: not yet
  const GgufArchitecture* architecture_ = nullptr;
  std::map<GgmlType, uint64_t> weights_;  // bytes of quantized layers
};

}  // namespace

absl::Status PlanGguf(const GgufTemplate& gguf_template, const ModelSource& source,
                      const ModelShape& shape, Plan& plan) {
  return GgufPlanner(gguf_template, source, shape, plan).Run();
}

}  // namespace sinq
