#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/commands/commands.h"
#include "client/commands/request.h"
#include "client/format.h"
#include "client/local_file.h"
#include "client/safetensors_file.h"
#include "client/tensor_exchange.h"

namespace sinq::client {
namespace {

using Json = nlohmann::json;

// Removes a temporary file when it was not published. Not thread-safe.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

absl::StatusOr<std::vector<std::regex>> Compile(const std::vector<std::string>& expressions) {
  std::vector<std::regex> compiled;
  for (const std::string& expression : expressions) {
    try {
      compiled.emplace_back(expression, std::regex::ECMAScript | std::regex::optimize);
    } catch (const std::regex_error& error) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", expression, "\" is not a regular expression: ", error.what(), "."));
    }
  }
  return compiled;
}

bool MatchesAny(const std::string& name, const std::vector<std::regex>& expressions) {
  for (const std::regex& expression : expressions) {
    if (std::regex_search(name, expression)) return true;
  }
  return false;
}

bool IsQuantizable(const TensorEntry& entry) {
  return entry.shape.size() == 2 && entry.size_bytes > 0 &&
         (entry.dtype == "BF16" || entry.dtype == "F16" || entry.dtype == "F32" ||
          entry.dtype == "F8_E4M3");
}

// One `quantize`. Not thread-safe.
class Quantization {
 public:
  Quantization(CommandContext& context, const QuantizeFlags& flags)
      : context_(context), flags_(flags), sidecar_path_(flags.output + ".meta.json") {}

  absl::Status Run() {
    if (absl::Status status = CheckOutput(); !status.ok()) return status;
    auto source = LocalFile::OpenForRead(flags_.file);
    if (!source.ok()) return source.status();
    auto entries = ReadSafetensorsHeader(*source);
    if (!entries.ok()) return entries.status();
    entries_ = *std::move(entries);
    auto outgoing = Select(*source);
    if (!outgoing.ok()) return outgoing.status();

    TemporaryFile spool_path(flags_.output + ".spool.part");
    auto spool = LocalFile::Create(spool_path.path());
    if (!spool.ok()) return spool.status();
    TensorExchange exchange(*source, *spool, *std::move(outgoing));
    if (absl::Status status = Exchange(exchange); !status.ok()) return status;
    return Write(*source, *spool, exchange);
  }

 private:
  absl::Status CheckOutput() const {
    if (flags_.force) return absl::OkStatus();
    for (const std::string& path : {flags_.output, sidecar_path_}) {
      if (Exists(path))
        return absl::AlreadyExistsError(absl::StrCat(path, " exists; --force replaces it."));
    }
    return absl::OkStatus();
  }

  // Moves what is to be quantized out of entries_; the rest is copied.
  absl::StatusOr<std::vector<OutgoingTensor>> Select(const LocalFile& source) {
    const auto include = Compile(flags_.recipe.include);
    if (!include.ok()) return include.status();
    const auto exclude = Compile(flags_.recipe.exclude);
    if (!exclude.ok()) return exclude.status();
    std::vector<OutgoingTensor> outgoing;
    std::vector<std::string> taken;
    for (const auto& [name, entry] : entries_) {
      if (!IsQuantizable(entry) || IsBlockScale(name)) continue;
      if (MatchesAny(name, *exclude) || (!include->empty() && !MatchesAny(name, *include)))
        continue;
      OutgoingTensor tensor;
      tensor.offset_bytes = entry.offset_bytes;
      tensor.header.set_name(name);
      tensor.header.set_dtype(entry.dtype);
      for (int64_t size : entry.shape) tensor.header.add_shape(size);
      tensor.header.set_size_bytes(entry.size_bytes);
      if (absl::Status status = AddBlockScales(source, tensor, taken); !status.ok()) return status;
      bytes_total_ += entry.size_bytes;
      taken.push_back(name);
      outgoing.push_back(std::move(tensor));
    }
    for (const std::string& name : taken) entries_.erase(name);
    tensors_total_ = static_cast<int64_t>(outgoing.size());
    return outgoing;
  }

  // "x.weight_scale_inv" beside an FP8 "x.weight".
  bool IsBlockScale(const std::string& name) const {
    absl::string_view weight = name;
    if (!absl::ConsumeSuffix(&weight, "_scale_inv")) return false;
    const auto found = entries_.find(std::string(weight));
    return found != entries_.end() && found->second.dtype == "F8_E4M3";
  }

  absl::Status AddBlockScales(const LocalFile& source, OutgoingTensor& tensor,
                              std::vector<std::string>& taken) const {
    constexpr int64_t kBlock = 128, kMaxScales = 1024 * 1024;
    const std::string name = tensor.header.name() + "_scale_inv";
    const auto found = entries_.find(name);
    if (tensor.header.dtype() != "F8_E4M3" || found == entries_.end()) return absl::OkStatus();
    const TensorEntry& scale = found->second;
    const std::vector<int64_t> expected = {(tensor.header.shape(0) + kBlock - 1) / kBlock,
                                           (tensor.header.shape(1) + kBlock - 1) / kBlock};
    if (scale.shape != expected || (scale.dtype != "F32" && scale.dtype != "BF16") ||
        scale.size_bytes > kMaxScales) {
      return absl::InvalidArgumentError(absl::StrCat("Tensor ", name, " is ", scale.dtype, " ",
                                                     FormatShape(scale.shape), "; F32 or BF16 ",
                                                     FormatShape(expected), " was expected."));
    }
    const auto bytes = source.Read(scale.offset_bytes, scale.size_bytes);
    if (!bytes.ok()) return bytes.status();
    const size_t width = scale.dtype == "F32" ? 4 : 2;
    for (size_t at = 0; at < bytes->size(); at += width) {
      // A BF16 is the upper half of the F32 of the same value.
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<char*>(&bits) + (4 - width), bytes->data() + at, width);
      float value = 0;
      std::memcpy(&value, &bits, sizeof(value));
      tensor.header.add_block_scales(value);
    }
    taken.push_back(name);
    return absl::OkStatus();
  }

  absl::Status Exchange(TensorExchange& exchange) {
    if (tensors_total_ == 0) {
      context_.Note("No tensor is to be quantized; everything is copied.");
      return absl::OkStatus();
    }
    const auto recipe = MakeRecipe(flags_.recipe);
    if (!recipe.ok()) return recipe.status();
    const auto stream = context_.client.OpenTensorStream();
    int64_t done = 0, bytes = 0;
    const absl::Status status = exchange.Run(*stream, *recipe, [&](const v1::TensorHeader& header) {
      bytes += header.size_bytes();
      context_.progress.Update({"quantize", bytes, bytes_total_, ++done, tensors_total_},
                               absl::Now());
    });
    context_.progress.Finish();
    return context_.cancel.cancelled() ? absl::CancelledError("Interrupted; nothing was written.")
                                       : status;
  }

  absl::StatusOr<std::map<std::string, TensorContent>> Contents(
      const LocalFile& source, const LocalFile& spool, const TensorExchange& exchange) const {
    std::map<std::string, TensorContent> contents;
    const auto range = [](const LocalFile& file, int64_t offset, int64_t size) {
      return [&file, offset, size](const std::function<absl::Status(absl::string_view)>& write) {
        return file.ForEachChunk(offset, size, write);
      };
    };
    for (const auto& [name, entry] : entries_) {
      contents[name] = {entry.dtype, entry.shape, entry.size_bytes,
                        range(source, entry.offset_bytes, entry.size_bytes)};
    }
    for (const auto& [name, array] : exchange.arrays()) {
      if (contents.contains(name)) {
        return absl::AlreadyExistsError(
            absl::StrCat("The source already has a tensor named ", name, "."));
      }
      contents[name] = {array.dtype, array.shape, array.size_bytes,
                        range(spool, array.spool_offset_bytes, array.size_bytes)};
    }
    return contents;
  }

  absl::StatusOr<std::string> Sidecar(const TensorExchange& exchange) const {
    Json sidecar = Json::object();
    for (const v1::TensorResult& result : exchange.results()) {
      Json entry = Json::parse(result.sidecar_json(), nullptr, /*allow_exceptions=*/false);
      if (!entry.is_object()) {
        return absl::InternalError(
            absl::StrCat("The server's sidecar entry of ", result.name(), " is not JSON."));
      }
      const std::string layer(absl::StripSuffix(result.name(), ".weight"));
      sidecar[layer] = entry.size() == 1 && entry.contains(layer) ? entry[layer] : entry;
    }
    return sidecar.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  }

  absl::Status Write(const LocalFile& source, const LocalFile& spool,
                     const TensorExchange& exchange) {
    const auto contents = Contents(source, spool, exchange);
    if (!contents.ok()) return contents.status();
    const auto sidecar = Sidecar(exchange);
    if (!sidecar.ok()) return sidecar.status();

    TemporaryFile weights_part(flags_.output + ".part"), sidecar_part(sidecar_path_ + ".part");
    auto weights = LocalFile::Create(weights_part.path());
    if (!weights.ok()) return weights.status();
    auto meta = LocalFile::Create(sidecar_part.path());
    if (!meta.ok()) return meta.status();
    absl::Status status = WriteSafetensors(*contents, *weights);
    if (status.ok()) status = weights->Sync();
    if (status.ok()) status = meta->Append(*sidecar);
    if (status.ok()) status = meta->Sync();
    // The sidecar first: weights that are visible have theirs.
    if (status.ok()) status = PublishFile(sidecar_part.path(), sidecar_path_, flags_.force);
    if (status.ok()) status = PublishFile(weights_part.path(), flags_.output, flags_.force);
    return status.ok() ? Report(source, *weights, exchange) : status;
  }

  absl::Status Report(const LocalFile& source, const LocalFile& weights,
                      const TensorExchange& exchange) {
    if (context_.output.format() == OutputFormat::kName)
      return context_.output.PrintText(flags_.output);
    if (context_.output.format() == OutputFormat::kJson) {
      Json tensors = Json::array();
      for (const v1::TensorResult& result : exchange.results()) {
        const auto json = MessageJson(result, /*pretty=*/false);
        if (!json.ok()) return json.status();
        tensors.push_back(Json::parse(*json, nullptr, false));
      }
      return context_.output.PrintText(Json{
          {"file", flags_.output},
          {"size_bytes", weights.size_bytes()},
          {"sidecar", sidecar_path_},
          {"copied_tensors", entries_.size()},
          {"tensors", tensors}}.dump(2));
    }
    Table table({"RESULT", flags_.output});
    table.Add({"sidecar", sidecar_path_});
    table.Add({"size", absl::StrCat(FormatBytes(weights.size_bytes()), " (from ",
                                    FormatBytes(source.size_bytes()), ")")});
    table.Add({"quantized", absl::StrCat(exchange.results().size(), " tensors")});
    table.Add({"copied", absl::StrCat(entries_.size(), " tensors")});
    return context_.output.PrintText(table.Render());
  }

  CommandContext& context_;
  const QuantizeFlags& flags_;
  const std::string sidecar_path_;
  TensorEntries entries_;
  int64_t bytes_total_ = 0, tensors_total_ = 0;
};

}  // namespace

absl::Status RunQuantize(CommandContext& context, const QuantizeFlags& flags) {
  return Quantization(context, flags).Run();
}

}  // namespace sinq::client
