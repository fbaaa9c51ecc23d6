#include "client/commands/request.h"

#include <google/protobuf/util/json_util.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/format.h"
#include "client/local_file.h"

namespace sinq::client {

namespace {

constexpr int64_t kMaxRecipeFileBytes = 1 << 20;  // 64 rules and 128 expressions of 1 KiB, escaped

absl::StatusOr<v1::Recipe> ReadRecipe(const std::string& path) {
  const auto file = LocalFile::OpenForRead(path);
  if (!file.ok()) return file.status();
  if (file->size_bytes() > kMaxRecipeFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is larger than a recipe can be (", kMaxRecipeFileBytes, " bytes)."));
  }
  const auto text = file->Read(0, file->size_bytes());
  if (!text.ok()) return text.status();
  v1::Recipe recipe;
  const auto parsed = google::protobuf::util::JsonStringToMessage(*text, &recipe);
  if (parsed.ok()) return recipe;
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is not a recipe: ", Printable(parsed.message().ToString()),
                   ". It is JSON with the fields of the message Recipe in proto/sinq/v1/job.proto, "
                   "as {\"bits\": 4, \"rules\": [{\"pattern\": \"down_proj\", \"bits\": 8}]}."));
}

absl::Status SetWidths(const RecipeFlags& flags, v1::Recipe& recipe) {
  const bool has_target = flags.target_bits_per_weight != 0 || !flags.target_size.empty();
  const bool is_number = !flags.bits.empty() && flags.bits != "auto";
  if (has_target && is_number) {
    return absl::InvalidArgumentError(
        absl::StrCat("--bits ", flags.bits,
                     " leaves nothing to choose: give --bits auto with "
                     "--target-bpw or --target-size, or leave the target out."));
  }
  if (has_target || is_number) {
    recipe.clear_target_bits_per_weight();
    recipe.clear_target_size_bytes();
  }
  if (has_target || flags.bits == "auto") recipe.clear_bits();
  int bits = 0;
  if (is_number && (!absl::SimpleAtoi(flags.bits, &bits) || bits == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--bits must be a number or auto; got \"", flags.bits, "\"."));
  }
  if (is_number) recipe.set_bits(bits);
  if (flags.target_bits_per_weight != 0)
    recipe.set_target_bits_per_weight(flags.target_bits_per_weight);
  if (!flags.target_size.empty()) {
    const std::optional<int64_t> bytes = ParseBytes(flags.target_size);
    if (!bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("--target-size must be a size as 9GiB, 1.5GiB or 850MB; got \"",
                       flags.target_size, "\"."));
    }
    recipe.set_target_size_bytes(*bytes);
  }
  if (flags.bits == "auto" && recipe.target_bits_per_weight() == 0 &&
      recipe.target_size_bytes() == 0) {
    return absl::InvalidArgumentError(
        "--bits auto needs a target: add --target-bpw 4.25, for example, or --target-size 9GiB.");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::Recipe> MakeRecipe(const RecipeFlags& flags) {
  v1::Recipe recipe;
  if (!flags.file.empty()) {
    auto read = ReadRecipe(flags.file);
    if (!read.ok()) return read.status();
    recipe = *std::move(read);
  }
  if (!flags.method.empty()) recipe.set_method(flags.method);
  if (!flags.profile.empty()) recipe.set_profile(flags.profile);
  if (!flags.format.empty()) recipe.set_format(flags.format);
  if (!flags.aux.empty()) recipe.set_aux(flags.aux);
  if (!flags.tiling.empty()) recipe.set_tiling(flags.tiling);
  if (!flags.fold.empty()) recipe.set_fold(flags.fold);
  if (flags.group_size != 0) recipe.set_group_size(flags.group_size);
  if (flags.symmetric) recipe.set_symmetric(*flags.symmetric);
  if (!flags.activations.empty()) recipe.set_activations_uri(flags.activations);
  if (!flags.gguf_template.empty()) recipe.set_gguf_template_uri(flags.gguf_template);
  recipe.set_activations_uri(AbsoluteUri(recipe.activations_uri()));
  recipe.set_gguf_template_uri(AbsoluteUri(recipe.gguf_template_uri()));
  if (!flags.include.empty()) recipe.clear_include();
  if (!flags.exclude.empty()) recipe.clear_exclude();
  for (const std::string& expression : flags.include) recipe.add_include(expression);
  for (const std::string& expression : flags.exclude) recipe.add_exclude(expression);
  if (absl::Status status = SetWidths(flags, recipe); !status.ok()) return status;
  return recipe;
}

std::string AbsoluteUri(absl::string_view path_or_uri) {
  if (path_or_uri.empty() || absl::StrContains(path_or_uri, "://")) return std::string(path_or_uri);
  std::error_code error;
  const auto absolute = std::filesystem::absolute(std::string(path_or_uri), error);
  // Only a working directory that is gone makes this fail; the server then names the relative path.
  if (error) return std::string(path_or_uri);
  std::string text = absolute.lexically_normal().string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

std::string NewRequestId() {
  std::random_device random;
  std::string id = "ctl-";
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&id, "%08x", random());
  return id;
}

}  // namespace sinq::client
