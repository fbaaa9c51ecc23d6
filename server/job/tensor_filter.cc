#include "server/job/tensor_filter.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <new>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

// Length times counted repetitions bounds the states of the automaton. The matcher recurses once
// per state at most, about 300 bytes each, which 4,096 of them keep far within any thread's stack.
constexpr uint64_t kMaxStates = 4096;

absl::Status Refuse(absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument, why);
}

// Number at `*position`, saturating; moves past it.
uint64_t ReadNumber(absl::string_view text, size_t* position) {
  uint64_t value = 0;
  while (*position < text.size() && std::isdigit(static_cast<unsigned char>(text[*position]))) {
    value = std::min<uint64_t>(value * 10 + (text[*position] - '0'), kMaxStates + 1);
    ++*position;
  }
  return value;
}

// Product of the counts of all {m}, {m,} and {m,n}, as if all were nested: an upper bound.
uint64_t ExpansionFactor(absl::string_view pattern) {
  uint64_t factor = 1;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '{') continue;
    size_t position = i + 1;
    uint64_t count = ReadNumber(pattern, &position);
    if (position < pattern.size() && pattern[position] == ',') {
      ++position;
      count = std::max(count + 1, ReadNumber(pattern, &position));
    }
    factor = std::min(factor * std::max<uint64_t>(count, 1), kMaxStates + 1);
  }
  return factor;
}

bool HasLookAhead(absl::string_view pattern) {
  return pattern.find("(?=") != absl::string_view::npos ||
         pattern.find("(?!") != absl::string_view::npos;
}

absl::StatusOr<std::regex> Compile(const std::string& pattern) {
  // __polynomial is libstdc++'s name for the matcher that never backtracks.
  constexpr auto kFlags = std::regex_constants::ECMAScript | std::regex_constants::nosubs |
                          std::regex_constants::__polynomial;
  try {
    return std::regex(pattern, kFlags);
  } catch (const std::regex_error& error) {
    return Refuse(
        absl::StrCat("is not a valid ECMAScript regular expression without "
                     "back-references: ",
                     error.what()));
  } catch (const std::bad_alloc&) {
    return Refuse("needs too much memory to compile");
  }
}

bool MatchesAny(const std::vector<std::regex>& expressions, const std::string& name) {
  return std::any_of(expressions.begin(), expressions.end(),
                     [&name](const std::regex& regex) { return std::regex_match(name, regex); });
}

absl::Status CompileAll(const std::vector<std::string>& patterns, std::vector<std::regex>* out) {
  for (const std::string& pattern : patterns) {
    absl::StatusOr<std::regex> regex = CompileTensorRegex(pattern);
    if (!regex.ok()) return regex.status();
    out->push_back(*std::move(regex));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::regex> CompileTensorRegex(absl::string_view pattern) {
  if (pattern.empty()) return Refuse("is empty; leave it out instead");
  if (pattern.size() > kMaxRegexBytes) {
    return Refuse(absl::StrCat("is ", pattern.size(), " bytes long; at most ", kMaxRegexBytes));
  }
  if (HasLookAhead(pattern)) return Refuse("has a look-ahead; use include and exclude together");
  if (pattern.size() * ExpansionFactor(pattern) > kMaxStates) {
    return Refuse(absl::StrCat("expands too far: its length times its counted repetitions may be ",
                               "at most ", kMaxStates));
  }
  // Alone first: "a)(b" must not become valid by what is put around it.
  const absl::StatusOr<std::regex> alone = Compile(std::string(pattern));
  if (!alone.ok()) return alone.status();
  // A full match of this is a search for the pattern, in one pass instead of one per position.
  return Compile(absl::StrCat("[\\s\\S]*(?:", pattern, ")[\\s\\S]*"));
}

absl::StatusOr<TensorFilter> TensorFilter::Make(const std::vector<std::string>& include,
                                                const std::vector<std::string>& exclude) {
  TensorFilter filter;
  if (absl::Status status = CompileAll(include, &filter.include_); !status.ok()) {
    return Annotate(status, "include");
  }
  if (absl::Status status = CompileAll(exclude, &filter.exclude_); !status.ok()) {
    return Annotate(status, "exclude");
  }
  return filter;
}

bool TensorFilter::Matches(absl::string_view tensor) const {
  // Names are bounded where they are read; this keeps the cost bounded for any other caller.
  const std::string name(tensor.substr(0, kMaxTensorNameBytes));
  return (include_.empty() || MatchesAny(include_, name)) && !MatchesAny(exclude_, name);
}

}  // namespace sinq
