// Switching by hand: the callee-saved registers go onto the old stack and come from the new one.
#include <cstdint>

#include "tests/fakes/cuda_on_cpu/fiber.h"
#include "tests/fakes/cuda_on_cpu/sanitizer.h"

extern "C" void sinq_switch_stack(void** from, void* to);
asm(R"(
.text
.globl sinq_switch_stack
.type sinq_switch_stack, @function
sinq_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sinq_switch_stack, .-sinq_switch_stack
.section .note.GNU-stack,"",@progbits
.text
)");

namespace sinq::cuda_on_cpu {
namespace {
constexpr size_t kSavedRegisters = 6;
thread_local void* starting_fiber = nullptr;  // handed to the entry, which takes no argument
}  // namespace

struct Fiber::Switch {
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};
  void* inside = nullptr;   // stack pointers of the side that does not run
  void* outside = nullptr;
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
  const auto end = reinterpret_cast<uintptr_t>(switch_->stack.get()) + kStackBytes;
  // At its entry a function finds the stack pointer 8 below a multiple of 16.
  auto* top = reinterpret_cast<void**>((end & ~uintptr_t{15}) - 16);
  *top = reinterpret_cast<void*>(&Switch::Start);
  for (size_t i = 1; i <= kSavedRegisters; ++i) *(top - i) = nullptr;
  switch_->inside = top - kSavedRegisters;
  switch_->inside_fake = nullptr;
}

void Fiber::Run(Fiber* self) {
  FinishSwitch(nullptr, &self->switch_->outside_bottom, &self->switch_->outside_bytes);
  self->entry_(self->argument_);
}

void Fiber::Resume() {
  starting_fiber = this;
  StartSwitch(&switch_->outside_fake, switch_->stack.get(), kStackBytes);
  sinq_switch_stack(&switch_->outside, switch_->inside);
  FinishSwitch(switch_->outside_fake, nullptr, nullptr);
}

void Fiber::Suspend() {
  StartSwitch(&switch_->inside_fake, switch_->outside_bottom, switch_->outside_bytes);
  sinq_switch_stack(&switch_->inside, switch_->outside);
  FinishSwitch(switch_->inside_fake, &switch_->outside_bottom, &switch_->outside_bytes);
}

}  // namespace sinq::cuda_on_cpu
