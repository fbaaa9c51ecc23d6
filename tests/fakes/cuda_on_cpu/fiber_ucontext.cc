// Switching through ucontext: one system call each time, so for machines without a switch by hand.
#include <ucontext.h>

#include "tests/fakes/cuda_on_cpu/fiber.h"
#include "tests/fakes/cuda_on_cpu/sanitizer.h"

namespace sinq::cuda_on_cpu {
namespace {
thread_local void* starting_fiber = nullptr;  // handed to the entry, which takes no argument
}  // namespace

struct Fiber::Switch {
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};
  ucontext_t inside, outside;
  void* inside_fake = nullptr;  // AddressSanitizer's
  void* outside_fake = nullptr;
  const void* outside_bottom = nullptr;
  size_t outside_bytes = 0;

  static void Start() { Run(static_cast<Fiber*>(starting_fiber)); }
};

Fiber::Fiber(Entry entry, void* argument)
    : entry_(entry), argument_(argument), switch_(std::make_unique<Switch>()) {
  Reset();
}
Fiber::~Fiber() = default;

void Fiber::Reset() {
  Allow(switch_->stack.get(), kStackBytes);
  getcontext(&switch_->inside);
  switch_->inside.uc_stack.ss_sp = switch_->stack.get();
  switch_->inside.uc_stack.ss_size = kStackBytes;
  switch_->inside.uc_link = nullptr;
  makecontext(&switch_->inside, &Switch::Start, 0);
  switch_->inside_fake = nullptr;
}

void Fiber::Run(Fiber* self) {
  FinishSwitch(nullptr, &self->switch_->outside_bottom, &self->switch_->outside_bytes);
  self->entry_(self->argument_);
}

void Fiber::Resume() {
  starting_fiber = this;
  StartSwitch(&switch_->outside_fake, switch_->stack.get(), kStackBytes);
  swapcontext(&switch_->outside, &switch_->inside);
  FinishSwitch(switch_->outside_fake, nullptr, nullptr);
}

void Fiber::Suspend() {
  StartSwitch(&switch_->inside_fake, switch_->outside_bottom, switch_->outside_bytes);
  swapcontext(&switch_->inside, &switch_->outside);
  FinishSwitch(switch_->inside_fake, &switch_->outside_bottom, &switch_->outside_bytes);
}

}  // namespace sinq::cuda_on_cpu
