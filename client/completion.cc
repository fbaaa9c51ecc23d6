#include "client/completion.h"

#include <CLI/CLI.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sinq::client {
namespace {

std::vector<std::string> OptionNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

// The function body is the same for both shells: zsh runs it through its bash emulation.
std::string BashFunction(const CLI::App& app) {
  std::vector<std::string> commands;
  std::string cases;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
    absl::StrAppend(&cases, "    ", command->get_name(), ") words=\"",
                    absl::StrJoin(OptionNames(*command), " "), "\" ;;\n");
  }
  const std::string names = absl::StrJoin(commands, " ");
  return absl::StrCat(
      "_sinqctl() {\n"
      "  local current=\"${COMP_WORDS[COMP_CWORD]}\" previous=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
      "  local command=\"\" word words=\"\"\n"
      "  COMPREPLY=()\n"
      "  case \"$previous\" in\n"
      "    -o) COMPREPLY=($(compgen -W \"table json name\" -- \"$current\")); return ;;\n"
      "    --method) COMPREPLY=($(compgen -W \"sinq rtn sinq_hqq hqq sinq_nf4 nf4 sinq_nf3 nf3 "
      "asinq asinq_l2 awq hadamard\" -- \"$current\")); return ;;\n"
      "    --format) COMPREPLY=($(compgen -W \"sinq compressed-tensors awq gptq hqq dense "
      "bf16-presinq gguf\" -- \"$current\")); return ;;\n"
      "    --bits) COMPREPLY=($(compgen -W \"2 3 4 5 6 8 auto\" -- \"$current\")); return ;;\n"
      "    --group-size) COMPREPLY=($(compgen -W \"32 64 128\" -- \"$current\")); return ;;\n"
      "    --tiling) COMPREPLY=($(compgen -W \"1D 2D\" -- \"$current\")); return ;;\n"
      "    --fold) COMPREPLY=($(compgen -W \"auto off\" -- \"$current\")); return ;;\n"
      "    --profile) COMPREPLY=($(compgen -W \"default upstream\" -- \"$current\")); return ;;\n"
      "    --aux) COMPREPLY=($(compgen -W \"u8 f16 bf16 f32\" -- \"$current\")); return ;;\n"
      "    --recipe|--activations|--gguf-template) COMPREPLY=($(compgen -f -- \"$current\")); "
      "return ;;\n"
      "    completion) COMPREPLY=($(compgen -W \"bash zsh\" -- \"$current\")); return ;;\n"
      "  esac\n"
      "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
      "    case \" ",
      names,
      " \" in *\" $word \"*) command=\"$word\"; break ;; esac\n"
      "  done\n"
      "  case \"$command\" in\n"
      "    \"\") words=\"",
      names, "\" ;;\n", cases,
      "  esac\n"
      "  if [[ -z \"$command\" || \"$current\" == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$words ",
      absl::StrJoin(OptionNames(app), " "),
      "\" -- \"$current\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -f -- \"$current\"))\n"
      "  fi\n"
      "}\n");
}

}  // namespace

std::string CompletionScript(const CLI::App& app, const std::string& shell) {
  const std::string head =
      shell == "zsh" ? "#compdef sinqctl\nautoload -U +X bashcompinit && bashcompinit\n" : "";
  return absl::StrCat(head, BashFunction(app), "complete -o filenames -F _sinqctl sinqctl\n");
}

}  // namespace sinq::client
