#include "server/job/job_spec.h"

#include <algorithm>
#include <cstddef>
#include <regex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "kernels/quant_params.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/text.h"
#include "server/job/tensor_filter.h"

namespace sinq {
namespace {

constexpr size_t kMaxQuotedBytes = 200;  // of a client's text in a message
constexpr int kBits[] = {2, 3, 4, 5, 6, 8};
constexpr int kGroupSizes[] = {32, 64, 128};

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
                 const std::vector<absl::string_view>& allowed, Violations* out) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  out->Add(field,
           absl::StrCat("must be one of ", absl::StrJoin(allowed, ", "), "; got ", Quote(value)));
}

void CheckNumber(absl::string_view field, int value, absl::Span<const int> allowed,
                 Violations* out) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  out->Add(field, absl::StrCat("must be one of ", absl::StrJoin(allowed, ", "), "; got ", value));
}

void CheckExpression(const std::string& field, const std::string& pattern, Violations* out) {
  if (!IsValidUtf8(pattern)) return out->Add(field, "must be UTF-8");
  const absl::StatusOr<std::regex> regex = CompileTensorRegex(pattern);
  if (!regex.ok()) out->Add(field, regex.status().message());
}

void CheckExpressions(absl::string_view field, const std::vector<std::string>& patterns,
                      Violations* out) {
  if (patterns.size() > kMaxRecipeExpressions) {
    out->Add(field, absl::StrCat("must have at most ", kMaxRecipeExpressions, " expressions; got ",
                                 patterns.size()));
    return;
  }
  for (size_t i = 0; i < patterns.size(); ++i) {
    CheckExpression(absl::StrCat(field, "[", i, "]"), patterns[i], out);
  }
}

bool HasCodebook(absl::string_view method) {
  kernels::Method parsed;
  if (!kernels::ParseMethod(method, &parsed)) return false;
  const kernels::Rounding rounding = kernels::RoundingOf(parsed);
  return rounding == kernels::Rounding::kNf3 || rounding == kernels::Rounding::kNf4;
}

void CheckTarget(const JobSpec& spec, Violations* out) {
  // Written so that a NaN fails.
  const bool has_rate = spec.target_bits_per_weight != 0;
  const bool has_size = spec.target_size_bytes != 0;
  if (has_rate && !(spec.target_bits_per_weight > 0 &&
                    spec.target_bits_per_weight <= kMaxTargetBitsPerWeight)) {
    out->Add("target_bits_per_weight",
             absl::StrCat("must be above 0 and at most ", kMaxTargetBitsPerWeight));
  }
  if (spec.target_size_bytes > kMaxTargetSizeBytes) {
    out->Add("target_size_bytes", absl::StrCat("must be at most ", kMaxTargetSizeBytes));
  }
  if (has_rate && has_size) {
    out->Add("target_size_bytes", "must not be given together with target_bits_per_weight");
  } else if (spec.bits != 0 && (has_rate || has_size)) {
    out->Add("bits",
             absl::StrCat("must be left to be chosen (0) when a target is given; got ", spec.bits));
  } else if (spec.bits == 0 && !has_rate && !has_size) {
    out->Add("bits", "can only be chosen under target_bits_per_weight or target_size_bytes");
  }
}

void CheckChosenBits(const JobSpec& spec, Violations* out) {
  if (spec.bits != 0) return;
  if (SelectableBits(spec.format, spec.symmetric).empty()) {
    const bool would_help = !spec.symmetric && !SelectableBits(spec.format, true).empty();
    std::vector<absl::string_view> others;
    for (const absl::string_view format : RecipeFormats()) {
      if (!SelectableBits(format, spec.symmetric).empty()) others.push_back(format);
    }
    out->Add("bits",
             absl::StrCat("cannot be chosen for format ", Quote(spec.format),
                          would_help ? " without symmetric" : "",
                          ", whose readers open one width only or whose size does not depend on "
                          "it; give bits, or use format ", absl::StrJoin(others, ", ")));
  }
  if (HasCodebook(spec.method)) {
    out->Add("bits", absl::StrCat("cannot be chosen for method ", spec.method,
                                  ", whose codebook has one width; leave the target out"));
  }
}

void CheckMethodBits(absl::string_view field, absl::string_view method, int bits, Violations* out) {
  if (bits == 0 || !HasCodebook(method) || bits == DefaultBits(method)) return;
  out->Add(field, absl::StrCat("must be ", DefaultBits(method), " for method ", method,
                               ", whose codebook has that width; got ", bits));
}

void CheckSymmetric(absl::string_view field, const JobSpec& spec, bool symmetric, int bits,
                    Violations* out) {
  if (!symmetric || bits != 2 || spec.profile != "upstream") return;
  out->Add(field,
           "must be false for bits 2 in the profile upstream, whose formula divides by zero there; "
           "use the profile default or more bits");
}

bool NeedsActivations(absl::string_view method) {
  kernels::Method parsed;
  return kernels::ParseMethod(method, &parsed) && kernels::NeedsActivations(parsed);
}

void CheckFiles(const JobSpec& spec, Violations* out) {
  bool needs_activations = NeedsActivations(spec.method);
  for (const RecipeRule& rule : spec.rules) needs_activations |= NeedsActivations(rule.method);
  if (!spec.activations_uri.empty()) CheckUri("activations_uri", spec.activations_uri, out);
  if (needs_activations && spec.activations_uri.empty()) {
    out->Add("activations_uri",
             "must name a .safetensors file of activations, because the method "
             "needs them");
  } else if (!needs_activations && !spec.activations_uri.empty()) {
    out->Add("activations_uri",
             "is for methods that use activations (asinq, asinq_l2, awq); "
             "leave it out or choose one of them");
  }
  if (!spec.gguf_template_uri.empty()) {
    CheckUri("gguf_template_uri", spec.gguf_template_uri, out);
    if (spec.format != "gguf") out->Add("gguf_template_uri", "is for format gguf; leave it out");
  } else if (spec.format == "gguf") {
    out->Add("gguf_template_uri",
             "must name a .gguf file that llama.cpp's converter made of this model with --outtype "
             "f16, bf16 or f32, because the format gguf puts its layers into one");
  }
}

void CheckRule(const std::string& name, const JobSpec& spec, const RecipeRule& rule,
               Violations* out) {
  CheckExpression(name + ".pattern", rule.pattern, out);
  if (!rule.quantize) {
    if (rule.bits != 0 || rule.group_size != 0 || rule.symmetric || !rule.method.empty()) {
      out->Add(name, "leaves its tensors as they are (quantize false) and must set nothing else");
    }
    return;
  }
  if (rule.bits == 0 && rule.group_size == 0 && !rule.symmetric && rule.method.empty()) {
    out->Add(name, "changes nothing; give bits, group_size, symmetric, method or quantize false");
  }
  if (rule.bits != 0) CheckNumber(name + ".bits", rule.bits, kBits, out);
  if (rule.group_size != 0) CheckNumber(name + ".group_size", rule.group_size, kGroupSizes, out);
  if (!rule.method.empty()) {
    CheckChoice(name + ".method", rule.method, kernels::MethodNames(), out);
  }
  // A codebook has one width, whatever the others have.
  const int others = HasCodebook(rule.method) ? DefaultBits(rule.method) : spec.bits;
  const int bits = rule.bits != 0 ? rule.bits : others;
  const std::string& method = rule.method.empty() ? spec.method : rule.method;
  CheckMethodBits(name + ".bits", method, bits, out);
  CheckSymmetric(name + ".symmetric", spec, rule.symmetric.value_or(spec.symmetric), bits, out);
}

void CheckRules(const JobSpec& spec, Violations* out) {
  if (spec.rules.size() > kMaxRecipeRules) {
    out->Add("rules", absl::StrCat("must have at most ", kMaxRecipeRules, " rules; got ",
                                   spec.rules.size()));
    return;
  }
  for (size_t i = 0; i < spec.rules.size(); ++i) {
    CheckRule(absl::StrCat("rules[", i, "]"), spec, spec.rules[i], out);
  }
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
  CheckChoice("method", spec.method, kernels::MethodNames(), &violations);
  CheckChoice("profile", spec.profile, {"default", "upstream"}, &violations);
  CheckChoice("format", spec.format, RecipeFormats(), &violations);
  if (!spec.aux.empty()) {
    CheckChoice("aux", spec.aux, {"u8", "f16", "bf16", "f32"}, &violations);
  }
  if (spec.bits != 0) CheckNumber("bits", spec.bits, kBits, &violations);
  CheckTarget(spec, &violations);
  CheckChosenBits(spec, &violations);
  CheckMethodBits("bits", spec.method, spec.bits, &violations);
  CheckNumber("group_size", spec.group_size, kGroupSizes, &violations);
  CheckChoice("tiling", spec.tiling, {"1D", "2D"}, &violations);
  CheckChoice("fold", spec.fold, {"auto", "off"}, &violations);
  CheckSymmetric("symmetric", spec, spec.symmetric, spec.bits, &violations);
  CheckExpressions("include", spec.include, &violations);
  CheckExpressions("exclude", spec.exclude, &violations);
  CheckFiles(spec, &violations);
  CheckRules(spec, &violations);
  return violations.ToStatus();
}

}  // namespace sinq
