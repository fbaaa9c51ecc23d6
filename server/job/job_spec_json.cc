// JobSpec as canonical JSON and back.
#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/json.h"
#include "server/base/limits.h"
#include "server/base/text.h"
#include "server/job/job_spec.h"

namespace sinq {
namespace {

using nlohmann::json;

constexpr int kSpecDepth = 3;        // the object, its list of rules, a rule
constexpr size_t kEscapedBytes = 6;  // of one byte in JSON: "\u0000"
constexpr size_t kMaxSpecJsonBytes =
    (2 * kMaxRecipeExpressions + kMaxRecipeRules) * (kMaxRegexBytes * kEscapedBytes + kKiB) +
    64 * kKiB;
constexpr size_t kMaxQuotedBytes = 200;

absl::Status Malformed(absl::string_view what) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("The job specification is not canonical JSON: ", what, "."));
}

// Reads known keys one by one and remembers the first problem.
class StrictReader {
 public:
  explicit StrictReader(const json& object) : object_(object) {
    if (!object.is_object()) problem_ = "it is not an object";
  }

  template <typename T>
  void Read(const char* key, T* out) {
    const json* value = Find(key);
    if (value == nullptr) return Fail(key, "is missing");
    Take(key, *value, out);
  }
  // Keeps what `out` holds if the key is not there.
  template <typename T>
  void ReadIfThere(const char* key, T* out) {
    if (const json* value = Find(key); value != nullptr) Take(key, *value, out);
  }

  absl::Status Finish() const {
    if (!problem_.empty()) return Malformed(problem_);
    for (const auto& [key, value] : object_.items()) {
      if (known_.count(key) == 0) {
        return Malformed(absl::StrCat("unknown key '", PrintableText(key, kMaxQuotedBytes), "'"));
      }
    }
    return absl::OkStatus();
  }

 private:
  const json* Find(const char* key) {
    known_.insert(key);
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }

  void Take(const char* key, const json& value, std::string* out) {
    if (!value.is_string()) return Fail(key, "must be a string");
    *out = value.get<std::string>();
  }
  // Checked before it is narrowed.
  void Take(const char* key, const json& value, int* out) {
    constexpr int kSmall = 1'000'000;
    const bool is_small = value.is_number_unsigned()
                              ? value.get<uint64_t>() <= kSmall
                              : value.is_number_integer() && value.get<int64_t>() >= -kSmall;
    if (!is_small) return Fail(key, "must be a small integer");
    *out = value.get<int>();
  }
  void Take(const char* key, const json& value, uint64_t* out) {
    if (!value.is_number_unsigned()) return Fail(key, "must be an integer, not negative");
    *out = value.get<uint64_t>();
  }
  void Take(const char* key, const json& value, double* out) {
    if (!value.is_number()) return Fail(key, "must be a number");
    *out = value.get<double>();
  }
  void Take(const char* key, const json& value, bool* out) {
    if (!value.is_boolean()) return Fail(key, "must be true or false");
    *out = value.get<bool>();
  }
  void Take(const char* key, const json& value, std::optional<bool>* out) {
    Take(key, value, &out->emplace());
  }
  void Take(const char* key, const json& value, std::vector<std::string>* out) {
    if (!value.is_array()) return Fail(key, "must be an array of strings");
    for (const json& item : value) Take(key, item, &out->emplace_back());
  }
  void Take(const char* key, const json& value, std::vector<RecipeRule>* out) {
    if (!value.is_array()) return Fail(key, "must be an array of rules");
    for (const json& item : value) {
      StrictReader reader(item);
      RecipeRule& rule = out->emplace_back();
      reader.Read("pattern", &rule.pattern);
      reader.ReadIfThere("quantize", &rule.quantize);
      reader.ReadIfThere("bits", &rule.bits);
      reader.ReadIfThere("group_size", &rule.group_size);
      reader.ReadIfThere("symmetric", &rule.symmetric);
      reader.ReadIfThere("method", &rule.method);
      if (!reader.Finish().ok()) Fail(key, "has a rule that is not one");
    }
  }

  void Fail(absl::string_view key, absl::string_view rule) {
    if (problem_.empty()) problem_ = absl::StrCat(key, " ", rule);
  }

  const json& object_;
  std::set<std::string> known_;
  std::string problem_;
};

json RuleObject(const RecipeRule& rule) {
  json object = {{"pattern", rule.pattern}};
  if (!rule.quantize) object["quantize"] = false;
  if (rule.bits != 0) object["bits"] = rule.bits;
  if (rule.group_size != 0) object["group_size"] = rule.group_size;
  if (rule.symmetric) object["symmetric"] = *rule.symmetric;
  if (!rule.method.empty()) object["method"] = rule.method;
  return object;
}

json RecipeObject(const JobSpec& spec) {
  const JobSpec defaults;
  json object = {{"method", spec.method},       {"profile", spec.profile},
                 {"format", spec.format},       {"aux", spec.aux},
                 {"bits", spec.bits},           {"group_size", spec.group_size},
                 {"symmetric", spec.symmetric}, {"include", spec.include},
                 {"exclude", spec.exclude}};
  const auto add = [&](const char* key, const auto& value, const auto& fallback) {
    if (value != fallback) object[key] = value;
  };
  add("tiling", spec.tiling, defaults.tiling);
  add("fold", spec.fold, defaults.fold);
  add("target_bits_per_weight", spec.target_bits_per_weight, defaults.target_bits_per_weight);
  add("target_size_bytes", spec.target_size_bytes, defaults.target_size_bytes);
  add("activations_uri", spec.activations_uri, defaults.activations_uri);
  add("gguf_template_uri", spec.gguf_template_uri, defaults.gguf_template_uri);
  for (const RecipeRule& rule : spec.rules) object["rules"].push_back(RuleObject(rule));
  return object;
}

std::string Dump(const json& object) {
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::string RecipeToJson(const JobSpec& spec) { return Dump(RecipeObject(spec)); }

std::string JobSpecToJson(const JobSpec& spec) {
  json object = RecipeObject(spec);
  object["source_uri"] = spec.source_uri;
  object["output_uri"] = spec.output_uri;
  return Dump(object);
}

absl::StatusOr<JobSpec> JobSpecFromJson(absl::string_view text) {
  if (text.size() > kMaxSpecJsonBytes) return Malformed("it is too long");
  const absl::StatusOr<json> object =
      ParseStrictJsonTree(text, kSpecDepth, "The job specification");
  if (!object.ok()) return Malformed(object.status().message());
  StrictReader reader(*object);
  JobSpec spec;
  reader.Read("source_uri", &spec.source_uri);
  reader.Read("output_uri", &spec.output_uri);
  reader.Read("method", &spec.method);
  reader.Read("profile", &spec.profile);
  reader.Read("format", &spec.format);
  reader.Read("aux", &spec.aux);
  reader.Read("bits", &spec.bits);
  reader.Read("group_size", &spec.group_size);
  reader.Read("symmetric", &spec.symmetric);
  reader.Read("include", &spec.include);
  reader.Read("exclude", &spec.exclude);
  reader.ReadIfThere("tiling", &spec.tiling);
  reader.ReadIfThere("fold", &spec.fold);
  reader.ReadIfThere("target_bits_per_weight", &spec.target_bits_per_weight);
  reader.ReadIfThere("target_size_bytes", &spec.target_size_bytes);
  reader.ReadIfThere("activations_uri", &spec.activations_uri);
  reader.ReadIfThere("gguf_template_uri", &spec.gguf_template_uri);
  reader.ReadIfThere("rules", &spec.rules);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  return spec;
}

}  // namespace sinq
