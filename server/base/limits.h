// Every bound of the server, with its derivation. GetCapabilities shows the table; each bound has a
// test.
#ifndef SINQ_SERVER_BASE_LIMITS_H_
#define SINQ_SERVER_BASE_LIMITS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace sinq {

inline constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB;

// --- source ---
// The format allows 100 MB; 16 MiB holds about 100,000 tensors, more than any known model's shard.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 16 * kMiB;
inline constexpr uint64_t kMaxTensorsPerSource = 1'000'000;  // 671B MoE: about 90,000
inline constexpr uint64_t kMaxTensorNameBytes = 512;         // longest known: about 100
inline constexpr int kMaxTensorRank = 8;                     // conv3d weights have 5
inline constexpr int kMaxJsonDepth = 32;                     // config.json of VLMs: about 6
// config.json with long id2label tables: about 1 MB
inline constexpr uint64_t kMaxConfigJsonBytes = 8 * kMiB;
// 100 bytes for each of kMaxTensorsPerSource
inline constexpr uint64_t kMaxIndexJsonBytes = 128 * kMiB;
// 2.5 KB for each of 200,000 quantized tensors; 671B MoE: about 90,000
inline constexpr uint64_t kMaxManifestBytes = 512 * kMiB;
// 5-digit shard numbers, practical checkpoints: under 1,000
inline constexpr uint64_t kMaxSourceFiles = 10'000;
// a tokenizer or chat template; weights are not copied as files
inline constexpr uint64_t kMaxCopiedFileBytes = 1 * kGiB;
// columns measured for folding, one byte each in the job store: 1T parameters of experts have 400M
inline constexpr uint64_t kMaxMeasuredColumns = 512 * kMiB;
// tokens, merges and scores of a vocabulary of 256,000: about 15 MB
inline constexpr uint64_t kMaxGgufHeaderBytes = 64 * kMiB;
// of metadata; converters write fewer than 100
inline constexpr uint64_t kMaxGgufPairs = 65'536;
// --- rpc ---
// tensor and artifact chunks sent by the server
inline constexpr uint64_t kChunkBytes = 1 * kMiB;
// a client chunk of up to 2 MiB, plus framing, twice over
inline constexpr uint64_t kMaxMessageBytes = 4 * kMiB;
inline constexpr uint64_t kMaxClientChunkBytes = 2 * kMiB;
// of one QuantizeTensors stream in memory: one arriving, one in work, one on its way back
inline constexpr int kMaxTensorsPerStream = 3;
// per connection: open+cancel floods stay cheap
inline constexpr int kMaxConcurrentStreams = 256;
// QuantizeTensors at once: each may hold its tensors, all of them within the memory budget
inline constexpr int kMaxTensorStreams = 16;
inline constexpr int kMaxWatchers = 256;
inline constexpr uint64_t kMaxMetadataBytes = 16 * kKiB;
// what a QuantizeTensors header alone may make the server lock in memory; a layer of
// 32768 x 16384 in BF16
inline constexpr uint64_t kMaxPinnedStreamBytes = 1 * kGiB;
// --- workers ---
// CPU threads that work on one tensor: each takes scratch of one tile, 2 to 20 MiB
inline constexpr int kMaxThreadsPerTensor = 8;
// devices that one tensor may take down before only the CPU does it
inline constexpr int kMaxDevicesLostPerTensor = 2;
// launches that may fail one after another before a device is taken out
inline constexpr int kMaxDeviceErrorsInARow = 3;
// devices of one machine: the largest have 16
inline constexpr int kMaxDevices = 16;
// tensors that one device works on at once: copy in, compute, copy out and spares
inline constexpr int kMaxCudaStreams = 16;
// --- jobs ---
inline constexpr uint64_t kMaxQueuedJobs = 10'000;
inline constexpr uint64_t kMaxRequestIdBytes = 128;
inline constexpr uint64_t kMaxUriBytes = 4 * kKiB;  // PATH_MAX
inline constexpr uint64_t kMaxRegexBytes = 1 * kKiB;
// of include, and of exclude: each is matched with every tensor name
inline constexpr uint64_t kMaxRecipeExpressions = 64;
// a rule for each kind of projection in several parts of a model
inline constexpr uint64_t kMaxRecipeRules = 64;
// samples of one layer: 64 times what AWQ's authors use; second moments say the same in less
inline constexpr int64_t kMaxActivationTokens = 32'768;
// what a dry run measures to choose widths: about a minute on eight cores; a job has no such bound
inline constexpr uint64_t kMaxPlanSurveyBytes = 4 * kGiB;
// dry runs that measure at once: they share the workers with the jobs
inline constexpr int kMaxPlanSurveys = 1;
// what a source in F16 or BF16 has already
inline constexpr int kMaxTargetBitsPerWeight = 16;
// 1 PiB: a hundred times the largest known model, and far from any overflow
inline constexpr uint64_t kMaxTargetSizeBytes = 1024 * 1024 * kGiB;
inline constexpr int kMaxPageSize = 1'000, kDefaultPageSize = 100;
// progress is thinned to at most 1 per second: more than a day
inline constexpr uint64_t kMaxEventsPerJob = 100'000;
inline constexpr int kMaxAttempts = 5;
inline constexpr uint64_t kMaxErrorMessageBytes = 4 * kKiB;

struct LimitInfo {
  std::string name;  // "max_safetensors_header_bytes"
  uint64_t value = 0;
  std::string derivation;  // one sentence
};
// All of the above.
std::vector<LimitInfo> AllLimits();

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_LIMITS_H_
