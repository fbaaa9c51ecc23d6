// Strict JSON for input that may be hostile: bounded depth, no duplicate keys, no NUL, valid UTF-8.
#ifndef SINQ_SERVER_BASE_JSON_H_
#define SINQ_SERVER_BASE_JSON_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace sinq {

// What a parser meets, in order. A status that is not OK stops it and is what the parse returns.
// `depth` counts the enclosing objects and arrays: a key of the outermost object has depth 1.
class JsonEvents {
 public:
  enum class Container : uint8_t { kObject, kArray };
  enum class Other : uint8_t { kNull, kBool, kNegativeInteger, kFloat };

  virtual ~JsonEvents() = default;
  virtual absl::Status OnStart(Container, int /*depth*/) { return absl::OkStatus(); }
  virtual absl::Status OnEnd(Container, int /*depth*/) { return absl::OkStatus(); }
  virtual absl::Status OnKey(absl::string_view /*key*/, int /*depth*/) { return absl::OkStatus(); }
  virtual absl::Status OnString(absl::string_view /*value*/, int /*depth*/) {
    return absl::OkStatus();
  }
  virtual absl::Status OnUnsigned(uint64_t /*value*/, int /*depth*/) { return absl::OkStatus(); }
  virtual absl::Status OnOther(Other /*kind*/, int /*depth*/) { return absl::OkStatus(); }
};

// Streams one JSON document of at most `max_depth` levels. InvalidArgument/kMalformedSource naming
// `label` and the byte for bad syntax, a duplicate key (at any level) or too much depth. Memory:
// the keys of the objects that are open.
absl::Status ParseStrictJson(absl::string_view text, int max_depth, absl::string_view label,
                             JsonEvents& events);

// The same rules, as a tree. Bound `text` before: the tree takes about ten times its size.
absl::StatusOr<nlohmann::json> ParseStrictJsonTree(absl::string_view text, int max_depth,
                                                   absl::string_view label);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_JSON_H_
