// The command line: every command's arguments, parsed once into one struct.
#ifndef SINQ_CLIENT_FLAGS_H_
#define SINQ_CLIENT_FLAGS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace sinq::client {

enum class OutputFormat { kTable, kJson, kName };

struct GlobalFlags {
  std::string server = "127.0.0.1:7461";
  OutputFormat output = OutputFormat::kTable;
  double timeout_seconds = 0;  // 0: none
  bool quiet = false;
};

// Only what was given: the rest comes from `file`, and then from the server's defaults.
struct RecipeFlags {
  std::string file;  // JSON of the message Recipe
  std::string method, profile, format, aux, tiling, fold, activations, gguf_template;
  std::string bits;         // a number or "auto"
  std::string target_size;  // "9GiB"
  double target_bits_per_weight = 0;
  int group_size = 0;
  std::optional<bool> symmetric;
  std::vector<std::string> include, exclude;
};

struct SubmitFlags {  // also of plan
  std::string source, output, request_id;
  RecipeFlags recipe;
  bool wait = false, detach = false;
};

struct ListFlags {
  std::string filter, page_token;
  int page_size = 0;
};

struct WatchFlags {
  std::string job_id;
  int64_t after = 0;
};

struct DownloadFlags {
  std::string job_id, output;
  std::vector<std::string> files;  // empty: all
};

struct ReportFlags {
  std::string directory;
  std::string html;  // empty: no page
};

struct QuantizeFlags {
  std::string file, output;
  RecipeFlags recipe;
  bool force = false;
};

struct Flags {
  GlobalFlags global;
  std::string command;  // "submit", ...
  SubmitFlags submit, plan;
  ListFlags list;
  WatchFlags watch;
  DownloadFlags download;
  ReportFlags report;
  QuantizeFlags quantize;
  std::string job_id;     // get, cancel, delete, artifacts
  std::string directory;  // verify
  std::string service;    // health
  std::string shell;      // completion
};

// Owns the parser and the struct that it fills. Not thread-safe.
class CommandLine {
 public:
  CommandLine();
  ~CommandLine();
  // Parses arguments (without the program's name). True: run flags().command. False: nothing to run
  // (help, version or a usage error); then `text` is to be printed, `exit_code` says what kind it
  // was.
  bool Parse(const std::vector<std::string>& arguments, std::string& text, int& exit_code);
  const Flags& flags() const { return flags_; }
  const CLI::App& app() const { return *app_; }

 private:
  void AddGlobals();
  void AddJobCommands();
  void AddFileCommands();
  void AddServerCommands();
  CLI::App* AddCommand(const std::string& name, const std::string& description,
                       const std::string& example);

  Flags flags_;
  std::unique_ptr<CLI::App> app_;
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_FLAGS_H_
