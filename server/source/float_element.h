// Values of the plain element types, for what reads a few of them outside the kernels.
#ifndef SINQ_SERVER_SOURCE_FLOAT_ELEMENT_H_
#define SINQ_SERVER_SOURCE_FLOAT_ELEMENT_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace sinq {

bool IsPlainFloat(absl::string_view dtype);  // F32, F16, BF16
// Of such a dtype.
size_t FloatElementBytes(absl::string_view dtype);
// Element `index` of an array of such a dtype, exact. `data` needs no alignment.
float FloatElementAt(const std::byte* data, absl::string_view dtype, size_t index);

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_FLOAT_ELEMENT_H_
