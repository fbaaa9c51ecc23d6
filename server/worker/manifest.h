// The manifest of an output: what it was made from, how, and the digest of every file.
// Deterministic but for the job id.
#ifndef SINQ_SERVER_WORKER_MANIFEST_H_
#define SINQ_SERVER_WORKER_MANIFEST_H_

#include <map>
#include <string>
#include <vector>

#include "server/job/job.h"
#include "server/plan/plan.h"
#include "server/source/model_source.h"
#include "server/worker/unit_record.h"

namespace sinq {

struct ManifestFile {
  std::string name;
  uint64_t size_bytes = 0;
  std::string sha256;  // hex, what sha256sum prints
};

struct CodeVersion {
  std::string release;
  int arithmetic = 0;  // kernels/arithmetic_version.h
};

// `records` by source tensor name.
std::string MakeManifest(const Job& job, const Plan& plan, const ModelSource& source,
                         const std::map<std::string, UnitRecord>& records,
                         const std::vector<ManifestFile>& files, const CodeVersion& version);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_MANIFEST_H_
