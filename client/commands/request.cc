#include "client/commands/request.h"

#include <filesystem>
#include <random>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sinq::client {

v1::Recipe MakeRecipe(const RecipeFlags& flags) {
  v1::Recipe recipe;
  recipe.set_method(flags.method);
  recipe.set_profile(flags.profile);
  recipe.set_format(flags.format);
  recipe.set_bits(flags.bits);
  recipe.set_group_size(flags.group_size);
  recipe.set_symmetric(flags.symmetric);
  recipe.set_aux(flags.aux);
  for (const std::string& expression : flags.include) recipe.add_include(expression);
  for (const std::string& expression : flags.exclude) recipe.add_exclude(expression);
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
