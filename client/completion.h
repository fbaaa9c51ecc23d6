// Shell completion scripts, made from the command line's own definition so that they cannot lag
// behind it.
#ifndef SINQ_CLIENT_COMPLETION_H_
#define SINQ_CLIENT_COMPLETION_H_

#include <string>

namespace CLI {
class App;
}

namespace sinq::client {

// `shell`: "bash" or "zsh".
std::string CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_COMPLETION_H_
