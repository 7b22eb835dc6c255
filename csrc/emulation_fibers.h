// Fibers: a function of their own stack that can be left and entered again.
#pragma once

#if defined(__x86_64__)
// Saves what a call must preserve on this stack, and goes on where the other stack stopped.
asm(R"(
  .pushsection .text
  .weak scsco_emulation_switch
  .hidden scsco_emulation_switch
  .type scsco_emulation_switch, @function
scsco_emulation_switch:
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
  .size scsco_emulation_switch, . - scsco_emulation_switch
  .popsection
)");
extern "C" void scsco_emulation_switch(void** from, void* to) __attribute__((visibility("hidden")));
#elif defined(__aarch64__)
asm(R"(
  .pushsection .text
  .weak scsco_emulation_switch
  .hidden scsco_emulation_switch
  .type scsco_emulation_switch, %function
scsco_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size scsco_emulation_switch, . - scsco_emulation_switch
  .popsection
)");
extern "C" void scsco_emulation_switch(void** from, void* to) __attribute__((visibility("hidden")));
#endif

namespace emulation {

#if defined(__x86_64__) || defined(__aarch64__)
using Fiber = void*;  // where the stack of a fiber that does not run ends
#else
using Fiber = ucontext_t*;
#endif

// The stacks are mapped once and used again; only pages that were touched take memory. A page below each stack is
// not accessible, so that an overflow stops the program instead of spoiling its neighbour.
class Fibers {
 public:
  explicit Fibers(unsigned count) : count_(count) {}
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;
  ~Fibers() {
    if (stacks_) munmap(stacks_, count_ * kStack);
  }

  Fiber start(unsigned index, void (*enter)()) {
    if (!stacks_) map();
    unsigned char* const top = stacks_ + (index + 1) * kStack;
#if defined(__x86_64__)
    void** const frame = reinterpret_cast<void**>(top) - 8;  // six registers, the address to return to, and its caller
    std::memset(frame, 0, 8 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(enter);
    return frame;
#elif defined(__aarch64__)
    void** const frame = reinterpret_cast<void**>(top) - 20;
    std::memset(frame, 0, 20 * sizeof(void*));
    frame[11] = reinterpret_cast<void*>(enter);
    return frame;
#else
    contexts_.resize(count_);
    Fiber const fiber = &contexts_[index];
    getcontext(fiber);
    fiber->uc_stack.ss_sp = top - kStack + page();
    fiber->uc_stack.ss_size = kStack - page();
    fiber->uc_link = nullptr;
    makecontext(fiber, enter, 0);
    return fiber;
#endif
  }

#if defined(__x86_64__) || defined(__aarch64__)
  void resume(Fiber& fiber) { scsco_emulation_switch(&caller_, fiber); }
  void suspend(Fiber& fiber) { scsco_emulation_switch(&fiber, caller_); }
#else
  void resume(Fiber& fiber) { swapcontext(&caller_, fiber); }
  void suspend(Fiber& fiber) { swapcontext(fiber, &caller_); }
#endif

 private:
  static constexpr size_t kStack = 128 * 1024;

  static size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

  void map() {
    void* const memory = mmap(nullptr, count_ * kStack, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("the emulation's stacks cannot be mapped");
    stacks_ = static_cast<unsigned char*>(memory);
    for (unsigned i = 0; i < count_; ++i) mprotect(stacks_ + i * kStack, page(), PROT_NONE);
  }

  unsigned count_;
  unsigned char* stacks_ = nullptr;
#if defined(__x86_64__) || defined(__aarch64__)
  void* caller_ = nullptr;
#else
  ucontext_t caller_;
  std::vector<ucontext_t> contexts_;
#endif
};

}  // namespace emulation
