#include "server/base/json.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

absl::Status Malformed(absl::string_view label, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                   absl::StrCat(label, ": ", why, "."), {{"file", std::string(label)}});
}

// nlohmann's interface on one side, JsonEvents on the other; keeps depth and keys in between.
class Adapter final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Adapter(int max_depth, absl::string_view label, JsonEvents& events)
      : max_depth_(max_depth), label_(label), events_(events) {}

  absl::Status TakeStatus() { return std::move(status_); }

  bool null() override { return Go(events_.OnOther(JsonEvents::Other::kNull, depth_)); }
  bool boolean(bool) override { return Go(events_.OnOther(JsonEvents::Other::kBool, depth_)); }
  bool number_integer(number_integer_t) override {
    return Go(events_.OnOther(JsonEvents::Other::kNegativeInteger, depth_));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return Go(events_.OnUnsigned(value, depth_));
  }
  bool number_float(number_float_t, const string_t&) override {
    return Go(events_.OnOther(JsonEvents::Other::kFloat, depth_));
  }
  bool string(string_t& value) override { return Go(events_.OnString(value, depth_)); }
  bool binary(binary_t&) override { return Go(Malformed(label_, "binary data is not JSON")); }

  bool start_object(std::size_t) override { return Enter(JsonEvents::Container::kObject); }
  bool start_array(std::size_t) override { return Enter(JsonEvents::Container::kArray); }
  bool end_object() override { return Go(events_.OnEnd(JsonEvents::Container::kObject, --depth_)); }
  bool end_array() override { return Go(events_.OnEnd(JsonEvents::Container::kArray, --depth_)); }

  bool key(string_t& key) override {
    if (!keys_[static_cast<size_t>(depth_ - 1)].insert(key).second) {
      return Go(Malformed(label_, absl::StrCat("the key \"", key, "\" occurs twice in an object")));
    }
    return Go(events_.OnKey(key, depth_));
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Go(Malformed(label_, absl::StrCat("not valid JSON near byte ", position)));
  }

 private:
  bool Go(absl::Status status) {
    status_ = std::move(status);
    return status_.ok();
  }

  bool Enter(JsonEvents::Container container) {
    if (depth_ >= max_depth_) {
      return Go(
          Malformed(label_, absl::StrCat("nested deeper than max_json_depth = ", max_depth_)));
    }
    if (!Go(events_.OnStart(container, depth_))) return false;
    ++depth_;
    // Sets are kept per depth, so that many small objects cost no allocations.
    if (keys_.size() < static_cast<size_t>(depth_)) keys_.resize(static_cast<size_t>(depth_));
    keys_[static_cast<size_t>(depth_ - 1)].clear();
    return true;
  }

  const int max_depth_;
  const absl::string_view label_;
  JsonEvents& events_;
  int depth_ = 0;
  std::vector<absl::flat_hash_set<std::string>> keys_;  // by depth of the enclosing object
  absl::Status status_;
};

}  // namespace

absl::Status ParseStrictJson(absl::string_view text, int max_depth, absl::string_view label,
                             JsonEvents& events) {
  // nlohmann takes a NUL for the end of its input and would not see what follows.
  if (const size_t at = text.find('\0'); at != absl::string_view::npos) {
    return Malformed(label, absl::StrCat("a NUL byte at byte ", at, " is not JSON"));
  }
  Adapter adapter(max_depth, label, events);
  const bool parsed = nlohmann::json::sax_parse(text.begin(), text.end(), &adapter);
  absl::Status status = adapter.TakeStatus();
  if (status.ok() && !parsed) return Malformed(label, "not valid JSON");
  return status;
}

absl::StatusOr<nlohmann::json> ParseStrictJsonTree(absl::string_view text, int max_depth,
                                                   absl::string_view label) {
  JsonEvents nothing;
  absl::Status status = ParseStrictJson(text, max_depth, label, nothing);
  if (!status.ok()) return status;
  nlohmann::json tree =
      nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (tree.is_discarded()) return Malformed(label, "not valid JSON");
  return tree;
}

}  // namespace sinq
