// sinqctl without the process around it: arguments and streams in, exit code out.
#ifndef SINQ_CLIENT_RUN_H_
#define SINQ_CLIENT_RUN_H_

#include <ostream>
#include <string>
#include <vector>

#include "client/cancel_token.h"

namespace sinq::client {

struct Terminal {
  bool is_terminal = false;  // standard error
  bool color = false;
  int columns = 80;
};

// `arguments` without the program's name. Cancelling the token is the user's Ctrl-C.
int Run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err,
        const Terminal& terminal, CancelToken& cancel);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_RUN_H_
