// What every command gets.
#ifndef SINQ_CLIENT_COMMANDS_CONTEXT_H_
#define SINQ_CLIENT_COMMANDS_CONTEXT_H_

#include <ostream>

#include "absl/strings/string_view.h"
#include "client/cancel_token.h"
#include "client/client.h"
#include "client/flags.h"
#include "client/output.h"
#include "client/progress.h"

namespace sinq::client {

struct CommandContext {
  const GlobalFlags& flags;
  Client& client;
  Output& output;
  ProgressPrinter& progress;
  std::ostream& err;
  CancelToken& cancel;

  // A sentence on standard error, unless -q.
  void Note(absl::string_view text) {
    if (!flags.quiet) progress.Note(text);
  }
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_COMMANDS_CONTEXT_H_
