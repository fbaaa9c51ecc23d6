// A recipe for the format that stores all that SINQ knows of a tensor: what most tests of the
// service look at. The service's own default is a format of serving engines.
#ifndef SINQ_TESTS_FAKES_NATIVE_SPEC_H_
#define SINQ_TESTS_FAKES_NATIVE_SPEC_H_

#include "server/job/job_spec.h"

namespace sinq {

inline JobSpec NativeSpec() {
  JobSpec spec;
  spec.format = "sinq";
  spec.aux = DefaultAux(spec.format);
  spec.group_size = DefaultGroupSize(spec.format);
  spec.symmetric = DefaultSymmetric(spec.format, spec.bits);
  return spec;
}

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_NATIVE_SPEC_H_
