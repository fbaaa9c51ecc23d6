#include "client/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <sstream>

namespace sinq::client {
namespace {

std::map<std::string, OutputFormat> OutputFormats() {
  return {{"table", OutputFormat::kTable},
          {"json", OutputFormat::kJson},
          {"name", OutputFormat::kName}};
}

// What a value may be, the server says: it knows the methods and formats, and tells all that is
// wrong at once.

// Of jobs and of streamed tensors.
void AddTensorOptions(CLI::App& command, RecipeFlags& recipe) {
  command.add_option("--method", recipe.method,
                     "sinq (default), rtn for no balancing; sinqctl capabilities shows all");
  command
      .add_option("--group-size", recipe.group_size,
                  "weights that share one scale: 32, 64 (default) or 128")
      ->type_name("N");
  CLI::Option* symmetric = command.add_flag_callback(
      "--symmetric", [&recipe] { recipe.symmetric = true; }, "no zero points");
  command
      .add_flag_callback(
          "--asymmetric", [&recipe] { recipe.symmetric = false; },
          "a zero point for each group (default: what suits the format)")
      ->excludes(symmetric);
  command.add_option("--profile", recipe.profile,
                     "default, or upstream to compare with the authors' code");
  command.add_option("--aux", recipe.aux,
                     "storage of scales and zeros: u8, f16, bf16 or f32 (default: what suits the "
                     "format)");
  command.add_option("--tiling", recipe.tiling, "blocks that are balanced: 1D (default) or 2D");
  // allow_extra_args(false): one value per option, so that a positional argument may follow.
  command
      .add_option("--include", recipe.include,
                  "quantize only tensors whose name matches RE (repeatable)")
      ->type_name("RE")
      ->allow_extra_args(false);
  command
      .add_option("--exclude", recipe.exclude,
                  "leave tensors whose name matches RE as they are (repeatable)")
      ->type_name("RE")
      ->allow_extra_args(false);
}

void AddBits(CLI::App& command, RecipeFlags& recipe, bool with_auto) {
  command
      .add_option("--bits", recipe.bits,
                  with_auto ? "bits per weight: 2, 3, 4 (default), 5, 6, 8, or auto to choose them "
                              "for each layer under a target"
                            : "bits per weight: 2, 3, 4 (default), 5, 6 or 8")
      ->type_name(with_auto ? "N|auto" : "N");
}

void AddTargets(CLI::App& command, RecipeFlags& recipe) {
  CLI::Option* rate = command
                          .add_option("--target-bpw", recipe.target_bits_per_weight,
                                      "with --bits auto: bits per quantized weight, scales counted")
                          ->check(CLI::PositiveNumber)
                          ->type_name("X");
  command
      .add_option("--target-size", recipe.target_size,
                  "with --bits auto: size of the whole output, as 9GiB or 850MB")
      ->type_name("SIZE")
      ->excludes(rate);
}

void AddJobOptions(CLI::App& command, RecipeFlags& recipe) {
  AddBits(command, recipe, /*with_auto=*/true);
  AddTargets(command, recipe);
  AddTensorOptions(command, recipe);
  command.add_option("--format", recipe.format,
                     "output format (default " SINQ_DEFAULT_FORMAT
                     "); sinqctl capabilities shows all");
  command.add_option(
      "--fold", recipe.fold,
      "auto (default): fold column scales that the format cannot store into the layers "
      "before; off: do without them");
  command
      .add_option("--activations", recipe.activations,
                  "a .safetensors file of layer inputs on the server's machine, for asinq and awq")
      ->type_name("FILE");
  command
      .add_option("--gguf-template", recipe.gguf_template,
                  "for --format gguf: a .gguf file of this model on the server's machine, made by "
                  "llama.cpp's converter (f32, f16 or bf16); the layers are put into a copy of it")
      ->type_name("FILE");
  command
      .add_option("--recipe", recipe.file,
                  "JSON of the API's message Recipe, rules for single tensors included; options "
                  "given here win over it")
      ->type_name("FILE");
}

void AddSource(CLI::App& command, SubmitFlags& flags) {
  command
      .add_option("SOURCE", flags.source,
                  "model directory or .safetensors file on the server's machine; relative paths "
                  "are completed here")
      ->required();
  AddJobOptions(command, flags.recipe);
}

}  // namespace

CommandLine::CommandLine()
    : app_(std::make_unique<CLI::App>("Client of sinqd: quantizes LLM checkpoints.", "sinqctl")) {
  AddGlobals();
  AddJobCommands();
  AddFileCommands();
  AddServerCommands();
}

CommandLine::~CommandLine() = default;

void CommandLine::AddGlobals() {
  // Before the commands: they inherit it. Global options are then accepted after the command's
  // name, too.
  app_->fallthrough();
  app_->require_subcommand(1);
  GlobalFlags& g = flags_.global;
  app_->add_option("--server", g.server, "address of sinqd, HOST:PORT")
      ->envname("SINQ_SERVER")
      ->type_name("ADDRESS")
      ->capture_default_str();
  app_->add_option("-o", g.output, "table, json (the API's messages) or name (ids and names only)")
      ->transform(CLI::CheckedTransformer(OutputFormats()))
      ->type_name("table|json|name");
  app_->add_option("--timeout", g.timeout_seconds,
                   "stop waiting after this time (0: never); a job is not stopped by it")
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("SECONDS");
  app_->add_flag("-q,--quiet", g.quiet, "no progress and no notes on standard error");
  app_->set_version_flag("--version", std::string("sinqctl ") + SINQ_VERSION);
  app_->footer(
      "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 permission, 5 unavailable,\n"
      "6 timed out, 7 verification failed, 130 interrupted.\n\n"
      "Example:\n  sinqctl submit models/tiny --output models/tiny-int4 --wait");
}

CLI::App* CommandLine::AddCommand(const std::string& name, const std::string& description,
                                  const std::string& example) {
  CLI::App* command = app_->add_subcommand(name, description);
  command->footer(
      "Example:\n  " + example +
      "\n\nGlobal options (--server, -o, --timeout, -q) are accepted here, too: sinqctl --help");
  command->callback([this, name] { flags_.command = name; });
  return command;
}

void CommandLine::AddJobCommands() {
  CLI::App* submit =
      AddCommand("submit", "Queue a quantization job and print its id",
                 "sinqctl submit models/tiny --output models/tiny-int4 --bits 4 --wait\n"
                 "  sinqctl submit models/tiny --output models/tiny-sinq --format sinq --bits 3\n"
                 "  sinqctl submit models/tiny --output models/tiny-a --format sinq --method asinq "
                 "--activations inputs.safetensors\n"
                 "  sinqctl submit models/tiny --output models/tiny-gguf --format gguf "
                 "--gguf-template models/tiny-f16.gguf\n"
                 "  sinqctl submit models/tiny --output models/tiny-r --recipe recipe.json\n"
                 "      with {\"rules\": [{\"pattern\": \"down_proj\", \"bits\": 8}]}");
  AddSource(*submit, flags_.submit);
  submit
      ->add_option("--output", flags_.submit.output, "directory to create on the server's machine")
      ->required()
      ->type_name("DEST");
  submit->add_option(
      "--request-id", flags_.submit.request_id,
      "idempotency key: repeating the request returns the first job (default: a new one)");
  CLI::Option* wait =
      submit->add_flag("--wait", flags_.submit.wait, "wait for the end, with progress");
  submit
      ->add_flag("--detach", flags_.submit.detach, "return as soon as the job is queued (default)")
      ->excludes(wait);

  CLI::App* plan = AddCommand("plan", "Show what a job would do; nothing is written",
                              "sinqctl plan models/tiny --bits 4 -o json\n"
                              "  sinqctl plan models/tiny --bits auto --target-bpw 4.25\n"
                              "  sinqctl plan models/tiny --bits auto --target-size 9GiB");
  AddSource(*plan, flags_.plan);
  plan->add_option("--output", flags_.plan.output, "also check this destination")
      ->type_name("DEST");

  CLI::App* list =
      AddCommand("list", "List jobs, newest first", "sinqctl list --filter 'state=QUEUED|RUNNING'");
  list->add_option("--filter", flags_.list.filter, "\"state=RUNNING\"; join states with |");
  list->add_option("--page-size", flags_.list.page_size, "jobs per page")
      ->check(CLI::Range(0, 1000));
  list->add_option("--page-token", flags_.list.page_token, "from the page before");

  const auto add_job = [this](const char* name, const char* description) {
    AddCommand(name, description, std::string("sinqctl ") + name + " job-0123456789abcdef")
        ->add_option("JOB", flags_.job_id, "id of the job")
        ->required();
  };
  add_job("get", "Show a job");
  add_job("cancel", "Cancel a job; a running one stops between tiles");
  add_job("delete", "Remove the record of a finished job; its output stays");
  CLI::App* watch =
      AddCommand("watch", "Follow a job to its end", "sinqctl watch job-0123456789abcdef");
  watch->add_option("JOB", flags_.watch.job_id, "id of the job")->required();
  watch->add_option("--after", flags_.watch.after, "skip events up to this sequence number")
      ->check(CLI::NonNegativeNumber);
}

void CommandLine::AddFileCommands() {
  AddCommand("artifacts", "List the files of a finished job",
             "sinqctl artifacts job-0123456789abcdef")
      ->add_option("JOB", flags_.job_id, "id of the job")
      ->required();
  CLI::App* download =
      AddCommand("download", "Copy a finished job's files here; running it again continues",
                 "sinqctl download job-0123456789abcdef --output tiny-int4");
  download->add_option("JOB", flags_.download.job_id, "id of the job")->required();
  download->add_option("FILE", flags_.download.files, "only these files");
  download->add_option("--output", flags_.download.output, "directory, created if missing")
      ->required()
      ->type_name("DIR");
  AddCommand("verify", "Check a directory's files against its manifest",
             "sinqctl verify models/tiny-int4")
      ->add_option("DIR", flags_.directory, "a published directory")
      ->required();
  CLI::App* report =
      AddCommand("report", "Show the error, balance and size of every tensor of a directory",
                 "sinqctl report models/tiny-int4 --html report.html");
  report->add_option("DIR", flags_.report.directory, "a published directory")->required();
  report
      ->add_option("--html", flags_.report.html,
                   "also write a page with plots, readable without network; replaces FILE")
      ->type_name("FILE");
  CLI::App* quantize =
      AddCommand("quantize", "Quantize a local file through the tensor stream",
                 "sinqctl quantize layer.safetensors --output layer-int4.safetensors");
  quantize->add_option("FILE", flags_.quantize.file, "a .safetensors file on this machine")
      ->required();
  quantize
      ->add_option("--output", flags_.quantize.output, "file to write; FILE.meta.json beside it")
      ->required()
      ->type_name("FILE");
  quantize->add_flag("--force", flags_.quantize.force, "replace existing files");
  AddBits(*quantize, flags_.quantize.recipe, /*with_auto=*/false);
  AddTensorOptions(*quantize, flags_.quantize.recipe);
}

void CommandLine::AddServerCommands() {
  AddCommand("capabilities", "Show the server's devices, methods, formats and limits",
             "sinqctl capabilities -o json");
  AddCommand("health", "Ask whether the server is serving; exit code 5 if not", "sinqctl health")
      ->add_option("--service", flags_.service, "name of a service (default: the whole server)");
  AddCommand("version", "Show the versions of client and server", "sinqctl version");
  AddCommand("completion", "Print a completion script", "source <(sinqctl completion bash)")
      ->add_option("SHELL", flags_.shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
}

bool CommandLine::Parse(const std::vector<std::string>& arguments, std::string& text,
                        int& exit_code) {
  constexpr int kUsage = 2;
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
  try {
    app_->parse(reversed);
    return true;
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    exit_code = app_->exit(error, out, out) == 0 ? 0 : kUsage;
    text = out.str();
    // CLI11 only says that a command is missing when there is one that it does not know.
    const std::vector<std::string> unknown = app_->remaining();
    if (exit_code == kUsage && flags_.command.empty() && app_->get_subcommands().empty() &&
        !unknown.empty()) {
      text = "There is no command or option \"" + unknown[0] + "\".\n" + text;
    }
    return false;
  }
}

}  // namespace sinq::client
