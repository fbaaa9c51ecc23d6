#include "server/source/shard_index.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/json.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

constexpr size_t kMaxFileNameBytes = 255;  // NAME_MAX

bool IsShardName(absl::string_view name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F && c != '/' && c != '\\';
  });
  return plain && name.size() <= kMaxFileNameBytes && !absl::StartsWith(name, ".") &&
         absl::EndsWith(name, ".safetensors");
}

class IndexEvents final : public JsonEvents {
 public:
  explicit IndexEvents(absl::string_view label) : label_(label) {}

  absl::StatusOr<ShardIndex> TakeIndex() {
    if (index_.shard_of.empty()) return Malformed("weight_map is missing or empty");
    index_.shards.assign(shards_.begin(), shards_.end());
    return std::move(index_);
  }

  absl::Status OnStart(Container container, int depth) override {
    const bool object = container == Container::kObject;
    if (depth == 0 && !object) return Malformed("the index must be an object");
    if (depth == 1 && in_map_ && !object) return NotStrings();
    return depth >= 2 && in_map_ ? NotStrings() : absl::OkStatus();
  }

  absl::Status OnKey(absl::string_view key, int depth) override {
    if (depth == 1) in_map_ = key == "weight_map";
    if (depth == 2 && in_map_) tensor_ = std::string(key);
    return absl::OkStatus();
  }

  absl::Status OnString(absl::string_view value, int depth) override {
    if (!in_map_) return absl::OkStatus();
    return depth == 2 ? AddTensor(value) : NotStrings();
  }
  absl::Status OnUnsigned(uint64_t, int depth) override { return CheckOther(depth); }
  absl::Status OnOther(Other, int depth) override { return CheckOther(depth); }

 private:
  absl::Status Malformed(absl::string_view why) const {
    return Fail(Reason::kMalformedSource, why);
  }
  absl::Status Fail(Reason reason, absl::string_view why) const {
    return MakeError(absl::StatusCode::kInvalidArgument, reason,
                     absl::StrCat(label_, ": ", why, "."), {{"file", std::string(label_)}});
  }
  absl::Status NotStrings() const {
    return Malformed("weight_map must map tensor names to file names");
  }
  absl::Status CheckOther(int depth) const {
    if (depth == 0) return Malformed("the index must be an object");
    return in_map_ ? NotStrings() : absl::OkStatus();
  }

  absl::Status AddTensor(absl::string_view shard) {
    if (!IsShardName(shard)) {
      return Malformed(absl::StrCat("\"", shard,
                                    "\" is not the plain name of a .safetensors file "
                                    "beside the index"));
    }
    if (tensor_.empty() || tensor_.size() > kMaxTensorNameBytes) {
      return Fail(Reason::kLimitExceeded,
                  absl::StrCat("a tensor name of ", tensor_.size(),
                               " bytes is empty or longer than max_tensor_name_bytes = ",
                               kMaxTensorNameBytes));
    }
    if (index_.shard_of.size() >= kMaxTensorsPerSource) {
      return Fail(
          Reason::kLimitExceeded,
          absl::StrCat("more than max_tensors_per_source = ", kMaxTensorsPerSource, " tensors"));
    }
    shards_.insert(std::string(shard));
    if (shards_.size() > kMaxSourceFiles) {
      return Fail(Reason::kLimitExceeded,
                  absl::StrCat("more than max_source_files = ", kMaxSourceFiles, " shards"));
    }
    index_.shard_of.emplace(tensor_, std::string(shard));
    return absl::OkStatus();
  }

  const absl::string_view label_;
  ShardIndex index_;
  std::set<std::string> shards_;
  bool in_map_ = false;
  std::string tensor_;
};

}  // namespace

absl::StatusOr<ShardIndex> ParseShardIndex(absl::string_view json, absl::string_view label) {
  IndexEvents events(label);
  absl::Status status = ParseStrictJson(json, kMaxJsonDepth, label, events);
  if (!status.ok()) return status;
  return events.TakeIndex();
}

}  // namespace sinq
