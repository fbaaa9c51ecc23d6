#include "client/completion.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "client/flags.h"
#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

// What bash offers for a command line that ends with `current`.
std::string Offered(const std::string& words) {
  CommandLine line;
  const ScratchDir scratch;
  std::filesystem::create_directories(scratch.path());
  const std::string script = scratch.path() + "/completion.bash";
  std::ofstream(script)
      << CompletionScript(line.app(), "bash") << "COMP_WORDS=(" << words
      << ")\nCOMP_CWORD=$((${#COMP_WORDS[@]}-1))\n_sinqctl\necho \"${COMPREPLY[*]}\"\n";
  FILE* pipe = popen(("bash " + script).c_str(), "r");
  std::string text;
  for (int c = 0; (c = fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  EXPECT_EQ(pclose(pipe), 0);
  return text;
}

TEST(Completion, OffersCommands) {
  const std::string offered = Offered("sinqctl su");
  EXPECT_EQ(offered, "submit\n");
  for (const char* name :
       {"submit", "plan", "get", "list", "watch", "cancel", "delete", "artifacts", "download",
        "verify", "quantize", "capabilities", "health", "version", "completion"}) {
    EXPECT_NE(Offered("sinqctl ''").find(name), std::string::npos) << name;
  }
}

TEST(Completion, OffersOptionsOfTheCommandAndGlobalOnes) {
  EXPECT_EQ(Offered("sinqctl -q submit --group"), "--group-size\n");
  EXPECT_EQ(Offered("sinqctl submit x --serv"), "--server\n");
  EXPECT_EQ(Offered("sinqctl get --group"), "\n");
}

TEST(Completion, OffersValues) {
  EXPECT_EQ(Offered("sinqctl list -o j"), "json\n");
  EXPECT_EQ(Offered("sinqctl completion z"), "zsh\n");
  EXPECT_EQ(Offered("sinqctl submit x --format comp"), "compressed-tensors\n");
  EXPECT_EQ(Offered("sinqctl submit x --bits a"), "auto\n");
  EXPECT_EQ(Offered("sinqctl submit x --fold o"), "off\n");
}

TEST(Completion, ZshScriptIsForCompdef) {
  CommandLine line;
  EXPECT_EQ(CompletionScript(line.app(), "zsh").rfind("#compdef sinqctl\n", 0), 0u);
}

}  // namespace
}  // namespace sinq::client
