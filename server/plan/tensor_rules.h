// Which tensors may be quantized, by name, dtype and shape (what engines and the authors' loader
// leave dense).
#ifndef SINQ_SERVER_PLAN_TENSOR_RULES_H_
#define SINQ_SERVER_PLAN_TENSOR_RULES_H_

#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/job/job_spec.h"
#include "server/source/model_source.h"

namespace sinq {

// Why a tensor with this name, dtype and shape stays as it is; nothing if it may be quantized.
// `bare_file`: there is no config.json, so names need not follow a model's conventions.
std::optional<std::string> ReasonToCopy(const SourceTensor& tensor, bool bare_file);

// Whether a model's class has this weight as a linear layer, as far as its name and shape tell:
// formats name the linear layers that stay dense. Embeddings and norms are none.
bool IsLinear(const SourceTensor& tensor);

// The include and exclude expressions of a spec. Not thread-safe: it counts what matched.
class NameFilter {
 public:
  // InvalidArgument naming the expression that does not compile.
  static absl::StatusOr<NameFilter> Make(const JobSpec& spec);
  // Why the filter leaves this tensor alone; nothing if it lets it through. Call for every
  // quantizable tensor.
  std::optional<std::string> ReasonToCopy(const std::string& name);
  // InvalidArgument naming an expression that matched no quantizable tensor.
  absl::Status CheckAllMatched() const;

 private:
  struct Expression {
    std::string text;
    std::string field;
    std::regex regex;
    bool matched = false;
  };
  static absl::Status Compile(const std::vector<std::string>& texts, const std::string& field,
                              std::vector<Expression>& out);
  std::vector<Expression> include_, exclude_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_TENSOR_RULES_H_
