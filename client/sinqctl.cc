// The process: signals, terminal, environment. Everything else is client/run.h.
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "client/run.h"

namespace {

// Turns SIGINT and SIGTERM into Cancel; a second one ends the process at once. Must be made before
// any other thread, so that all of them inherit the blocked signals.
class SignalWatcher {
 public:
  explicit SignalWatcher(sinq::client::CancelToken& token) : token_(token) {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::thread([this] { Watch(); });
  }
  ~SignalWatcher() {
    done_ = true;
    thread_.join();
  }

 private:
  void Watch() {
    const timespec poll{0, 100'000'000};
    while (!done_) {
      if (sigtimedwait(&signals_, nullptr, &poll) < 0) continue;
      if (token_.cancelled()) _exit(130);
      token_.Cancel();
    }
  }

  sinq::client::CancelToken& token_;
  sigset_t signals_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

sinq::client::Terminal ReadTerminal() {
  sinq::client::Terminal terminal;
  terminal.is_terminal = isatty(STDERR_FILENO) == 1;
  const char* no_color = std::getenv("NO_COLOR");
  terminal.color = terminal.is_terminal && (no_color == nullptr || *no_color == '\0');
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    terminal.columns = size.ws_col;
  return terminal;
}

}  // namespace

int main(int argc, char** argv) {
  // gRPC's own log lines ("connect failed") would stand between ours; GRPC_VERBOSITY brings them
  // back.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  sinq::client::CancelToken cancel;
  SignalWatcher signals(cancel);
  return sinq::client::Run(std::vector<std::string>(argv + 1, argv + argc), std::cout, std::cerr,
                           ReadTerminal(), cancel);
}
