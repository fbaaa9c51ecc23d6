#include "server/job/job_spec.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <regex>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/text.h"
#include "server/job/tensor_filter.h"

namespace sinq {
namespace {

using nlohmann::json;

constexpr size_t kMaxExpressions = 64;   // of include and of exclude, as the proto documents
constexpr size_t kMaxQuotedBytes = 200;  // of a client's text in a message
constexpr size_t kMaxSpecJsonBytes = 2 * kMaxExpressions * kMaxRegexBytes * 6 + 64 * kKiB;

std::string Quote(absl::string_view text) {
  return absl::StrCat("'", PrintableText(text, kMaxQuotedBytes), "'");
}

// Collects every violation with the field it belongs to.
class Violations {
 public:
  void Add(absl::string_view field, absl::string_view rule) {
    texts_.push_back(absl::StrCat(field, " ", rule));
    if (std::find(fields_.begin(), fields_.end(), field) == fields_.end()) {
      fields_.emplace_back(field);
    }
  }

  absl::Status ToStatus() const {
    if (texts_.empty()) return absl::OkStatus();
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat(absl::StrJoin(texts_, "; "), "."),
                     {{"field", absl::StrJoin(fields_, ",")}});
  }

 private:
  std::vector<std::string> texts_;
  std::vector<std::string> fields_;
};

bool HasParentComponent(absl::string_view path) {
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '/');
  return std::find(parts.begin(), parts.end(), "..") != parts.end();
}

void CheckUri(absl::string_view field, absl::string_view uri, Violations* out) {
  if (uri.size() > kMaxUriBytes) {
    out->Add(field, absl::StrCat("must be at most ", kMaxUriBytes, " bytes; got ", uri.size()));
    return;
  }
  if (!IsValidUtf8(uri) || PrintableText(uri, 4 * kMaxUriBytes) != uri) {
    out->Add(field, absl::StrCat("must be UTF-8 without control characters; got ", Quote(uri)));
    return;
  }
  absl::string_view path = uri;
  if (absl::StartsWith(uri, "file://")) path.remove_prefix(7);
  if (!absl::StartsWith(path, "/")) {
    out->Add(field, absl::StrCat("must be an absolute path or file:///path on the server; got ",
                                 Quote(uri)));
  } else if (HasParentComponent(path)) {
    out->Add(field, absl::StrCat("must not contain '..'; got ", Quote(uri)));
  }
}

void CheckChoice(absl::string_view field, absl::string_view value,
                 std::initializer_list<absl::string_view> allowed, Violations* out) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  const absl::string_view rule = allowed.size() == 1 ? "must be " : "must be one of ";
  out->Add(field, absl::StrCat(rule, absl::StrJoin(allowed, ", "), "; got ", Quote(value)));
}

void CheckNumber(absl::string_view field, int value, std::initializer_list<int> allowed,
                 Violations* out) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  out->Add(field, absl::StrCat("must be one of ", absl::StrJoin(allowed, ", "), "; got ", value));
}

void CheckExpressions(absl::string_view field, const std::vector<std::string>& patterns,
                      Violations* out) {
  if (patterns.size() > kMaxExpressions) {
    out->Add(field, absl::StrCat("must have at most ", kMaxExpressions, " expressions; got ",
                                 patterns.size()));
    return;
  }
  for (size_t i = 0; i < patterns.size(); ++i) {
    const std::string name = absl::StrCat(field, "[", i, "]");
    if (!IsValidUtf8(patterns[i])) {
      out->Add(name, "must be UTF-8");
      continue;
    }
    const absl::StatusOr<std::regex> regex = CompileTensorRegex(patterns[i]);
    if (!regex.ok()) out->Add(name, regex.status().message());
  }
}

absl::Status Malformed(absl::string_view what) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("The job specification is not canonical JSON: ", what, "."));
}

// Depth, duplicate keys. nlohmann keeps the last of two equal keys; here they are an error.
absl::StatusOr<json> ParseStrictly(absl::string_view text) {
  if (text.size() > kMaxSpecJsonBytes) return Malformed("it is too long");
  std::set<std::string> seen;
  std::string problem;
  const auto callback = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 2 && problem.empty()) problem = "it is nested too deeply";
    if (event == json::parse_event_t::key && depth == 1 &&
        !seen.insert(value.get<std::string>()).second && problem.empty()) {
      problem = absl::StrCat("duplicate key ", Quote(value.get<std::string>()));
    }
    return true;
  };
  json value = json::parse(text.begin(), text.end(), callback, /*allow_exceptions=*/false);
  if (value.is_discarded()) return Malformed("it does not parse");
  if (!problem.empty()) return Malformed(problem);
  if (!value.is_object()) return Malformed("it is not an object");
  return value;
}

// Reads known keys one by one and remembers the first problem.
class StrictReader {
 public:
  explicit StrictReader(const json& object) : object_(object) {}

  void Read(const char* key, std::string* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_string()) return Fail(key, "must be a string");
    *out = value->get<std::string>();
  }

  void Read(const char* key, int* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!IsSmallInteger(*value)) return Fail(key, "must be a small integer");
    *out = value->get<int>();
  }

  void Read(const char* key, bool* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fail(key, "must be true or false");
    *out = value->get<bool>();
  }

  void Read(const char* key, std::vector<std::string>* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_array()) return Fail(key, "must be an array of strings");
    for (const json& item : *value) {
      if (!item.is_string()) return Fail(key, "must be an array of strings");
      out->push_back(item.get<std::string>());
    }
  }

  absl::Status Finish() const {
    if (!problem_.empty()) return Malformed(problem_);
    for (const auto& [key, value] : object_.items()) {
      if (known_.count(key) == 0) return Malformed(absl::StrCat("unknown key ", Quote(key)));
    }
    return absl::OkStatus();
  }

 private:
  // Checked before it is narrowed.
  static bool IsSmallInteger(const json& value) {
    constexpr int kSmall = 1'000'000;
    if (value.is_number_unsigned()) return value.get<uint64_t>() <= kSmall;
    return value.is_number_integer() && value.get<int64_t>() >= -kSmall;
  }

  const json* Find(const char* key) {
    known_.insert(key);
    const auto found = object_.find(key);
    if (found != object_.end()) return &*found;
    Fail(key, "is missing");
    return nullptr;
  }

  void Fail(absl::string_view key, absl::string_view rule) {
    if (problem_.empty()) problem_ = absl::StrCat(key, " ", rule);
  }

  const json& object_;
  std::set<std::string> known_;
  std::string problem_;
};

json RecipeObject(const JobSpec& spec) {
  json recipe = {{"method", spec.method},       {"profile", spec.profile},
                 {"format", spec.format},       {"aux", spec.aux},
                 {"bits", spec.bits},           {"group_size", spec.group_size},
                 {"symmetric", spec.symmetric}, {"include", spec.include},
                 {"exclude", spec.exclude}};
  if (spec.fold != "auto") recipe["fold"] = spec.fold;
  return recipe;
}

}  // namespace

absl::Status ValidateJobSpec(const JobSpec& spec, bool needs_output) {
  Violations violations;
  if (spec.source_uri.empty()) {
    violations.Add("source_uri", "must name a model directory or a .safetensors file");
  } else {
    CheckUri("source_uri", spec.source_uri, &violations);
  }
  if (!spec.output_uri.empty()) {
    CheckUri("output_uri", spec.output_uri, &violations);
  } else if (needs_output) {
    violations.Add("output_uri", "must name a directory that does not exist yet");
  }
  CheckChoice("method", spec.method, {"sinq", "rtn"}, &violations);
  CheckChoice("profile", spec.profile, {"default", "upstream"}, &violations);
  CheckChoice("format", spec.format, {"sinq", "bf16-presinq"}, &violations);
  CheckChoice("aux", spec.aux, {"u8", "f16"}, &violations);
  CheckChoice("fold", spec.fold, {"auto", "off"}, &violations);
  CheckNumber("bits", spec.bits, {2, 3, 4, 5, 6, 8}, &violations);
  CheckNumber("group_size", spec.group_size, {32, 64, 128}, &violations);
  if (spec.symmetric && spec.bits == 2 && spec.profile == "upstream") {
    violations.Add("symmetric",
                   "must be false for bits 2 in the profile upstream, whose formula "
                   "divides by zero there; use the profile default or more bits");
  }
  CheckExpressions("include", spec.include, &violations);
  CheckExpressions("exclude", spec.exclude, &violations);
  return violations.ToStatus();
}

std::string RecipeToJson(const JobSpec& spec) {
  return RecipeObject(spec).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string JobSpecToJson(const JobSpec& spec) {
  json object = RecipeObject(spec);
  object["source_uri"] = spec.source_uri;
  object["output_uri"] = spec.output_uri;
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}
absl::StatusOr<JobSpec> JobSpecFromJson(absl::string_view text) {
  const absl::StatusOr<json> object = ParseStrictly(text);
  if (!object.ok()) return object.status();
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
  if (object->contains("fold")) reader.Read("fold", &spec.fold);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  return spec;
}

}  // namespace sinq
