// The table that GetCapabilities shows. A test compares it with limits.h line by line.
#include "server/base/limits.h"

namespace sinq {

std::vector<LimitInfo> AllLimits() {
  return {
      {"max_safetensors_header_bytes", kMaxSafetensorsHeaderBytes,
       "The format allows 100 MB; 16 MiB holds about 100,000 tensors, more than any known shard."},
      {"max_tensors_per_source", kMaxTensorsPerSource,
       "A mixture of experts with 671B parameters has about 90,000."},
      {"max_tensor_name_bytes", kMaxTensorNameBytes,
       "The longest known names have about 100 bytes."},
      {"max_tensor_rank", kMaxTensorRank, "Weights of 3-D convolutions have 5 dimensions."},
      {"max_json_depth", kMaxJsonDepth,
       "config.json of vision-language models nests about 6 deep."},
      {"max_config_json_bytes", kMaxConfigJsonBytes,
       "A config.json with a long id2label table has about 1 MB."},
      {"max_index_json_bytes", kMaxIndexJsonBytes,
       "About 100 bytes for each of max_tensors_per_source."},
      {"max_source_files", kMaxSourceFiles,
       "Shards are numbered with five digits; practical checkpoints have fewer than 1,000."},
      {"max_copied_file_bytes", kMaxCopiedFileBytes,
       "A tokenizer or chat template is far smaller; weights are not copied as files."},
      {"max_measured_columns", kMaxMeasuredColumns,
       "One byte each in the job store; a mixture of experts with 1T parameters has 400M."},
      {"chunk_bytes", kChunkBytes, "Size of tensor and artifact chunks that the server sends."},
      {"max_message_bytes", kMaxMessageBytes,
       "A client chunk of up to 2 MiB plus framing, twice over."},
      {"max_client_chunk_bytes", kMaxClientChunkBytes, "Twice the recommended chunk of 1 MiB."},
      {"stream_budget_bytes", kStreamBudgetBytes,
       "Bytes buffered per QuantizeTensors stream and direction beyond one tensor."},
      {"max_concurrent_streams", kMaxConcurrentStreams,
       "Per connection, so that open-and-cancel floods stay cheap."},
      {"max_tensor_streams", kMaxTensorStreams,
       "QuantizeTensors calls at once: each may hold its byte budget and one tensor."},
      {"max_watchers", kMaxWatchers,
       "WatchJob calls at once: each holds one stream and one cursor."},
      {"max_metadata_bytes", kMaxMetadataBytes,
       "Request metadata carries a token and a trace context."},
      {"max_queued_jobs", kMaxQueuedJobs,
       "Days of work for one machine; beyond it CreateJob answers with a time to retry."},
      {"max_request_id_bytes", kMaxRequestIdBytes,
       "A UUID has 36 bytes; room for a prefix of the caller."},
      {"max_uri_bytes", kMaxUriBytes, "PATH_MAX of Linux."},
      {"max_regex_bytes", kMaxRegexBytes,
       "Include and exclude patterns name parts of tensor names."},
      {"max_page_size", kMaxPageSize, "A page of jobs stays below max_message_bytes."},
      {"max_events_per_job", kMaxEventsPerJob,
       "Progress is thinned to at most one event per second: more than a day."},
      {"max_attempts", kMaxAttempts,
       "A job that takes down its worker five times is not started again."},
      {"max_error_message_bytes", kMaxErrorMessageBytes, "An error is a sentence, not a dump."},
  };
}

}  // namespace sinq
