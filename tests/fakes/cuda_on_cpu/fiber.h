// A fiber: a function with a stack of its own that runs until it hands control back. Two files
// implement the switch, and the build picks one: fiber_x86_64.cc (no system call) and
// fiber_ucontext.cc (any POSIX machine).
#ifndef SINQ_TESTS_FAKES_CUDA_ON_CPU_FIBER_H_
#define SINQ_TESTS_FAKES_CUDA_ON_CPU_FIBER_H_

#include <cstddef>
#include <memory>

namespace sinq::cuda_on_cpu {

// Belongs to the OS thread that resumes it. Destroying or resetting one that has not finished drops
// its stack without running destructors.
class Fiber {
 public:
  using Entry = void (*)(void*);
  // `entry(argument)` must never return: it ends each piece of work with Suspend.
  Fiber(Entry entry, void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the fiber until it calls Suspend. Called from outside.
  void Resume();
  // Returns to whoever resumed the fiber. Called from inside.
  void Suspend();
  // Starts again at the entry, whatever it was doing.
  void Reset();

 private:
  struct Switch;
  static void Run(Fiber* self);

  const Entry entry_;
  void* const argument_;
  std::unique_ptr<Switch> switch_;
};

}  // namespace sinq::cuda_on_cpu

#endif  // SINQ_TESTS_FAKES_CUDA_ON_CPU_FIBER_H_
