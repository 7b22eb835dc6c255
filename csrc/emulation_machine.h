// The machine that runs a kernel: blocks one after another, their threads as fibers, barriers and collectives, and who
// touched which shared memory when.
#pragma once

#include "emulation_fibers.h"

namespace emulation {

using Location = std::source_location;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr size_t kMaxShared = 227 * 1024;  // as on sm_90
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kNobody = ~0u;

inline std::string text(const dim3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

inline std::string text(const Location& at) {
  std::string file = at.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(at.line());
}

// Who touched two bytes of shared memory last, and when: how many barriers the machine and its warp had passed.
struct Touch {
  unsigned thread = kNobody;
  unsigned barriers = 0;
  unsigned warp_barriers = 0;
};
struct Shadow {
  Touch writer, readers[2];
  bool arriving = false;  // of an asynchronous copy that nobody has waited for
};

// An asynchronous copy of 16 bytes; from nowhere: of zeros.
struct Copy {
  void* to;
  const void* from;
};

struct Thread {
  Fiber fiber;
  dim3 index;
  bool done;
  const char* waits;  // for what, or null
  Location where;
  std::vector<Copy> copies;
};

// A collective of the lanes in `mask` that some of them have reached.
struct Collective {
  unsigned mask, arrived;
  const char* name;
  Location where;
  void* lanes[32];
};

struct Warp {
  unsigned barriers;  // passed by all lanes; other collectives do not order what the lanes read and write
  std::vector<Collective> open;
};

class Machine {
 public:
  template <class Body>
  void run(const char* kernel, dim3 grid, dim3 block, size_t shared, const Body& body) {
    std::lock_guard<std::mutex> lock(mutex_);
    check_launch(kernel, grid, block, shared);
    kernel_ = kernel;
    gridDim = grid;
    blockDim = block;
    body_ = [](const void* function) { (*static_cast<const Body*>(function))(); };
    function_ = &body;
    shared_.resize(shared + kAlignment);
    shadows_.resize(shared / 2 + 1);
    shared_size_ = shared;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) run_block(dim3(x, y, z));
      }
    }
  }

  [[noreturn]] __attribute__((noinline, cold)) void fail(const std::string& what) const {
    throw std::runtime_error("kernel " + std::string(kernel_) + ", block " + text(blockIdx) + ", thread " +
                             text(threads_[current_].index) + ": " + what);
  }

  unsigned char* shared() {
    const auto address = reinterpret_cast<uintptr_t>(shared_.data());
    return shared_.data() + (kAlignment - address % kAlignment) % kAlignment;
  }
  size_t shared_size() const { return shared_size_; }

  // How many threads passed a predicate that is not 0.
  int barrier(const char* name, int predicate, const Location& where) {
    if (arrived_ > 0 && (barrier_name_ != name || !same(barrier_where_, where))) {
      fail(std::string(name) + " at " + text(where) + " while others wait at " + barrier_name_ + " at " +
           text(barrier_where_));
    }
    barrier_name_ = name;
    barrier_where_ = where;
    votes_ += predicate != 0;
    if (++arrived_ < threads()) {
      wait(name, where);
      return result_;
    }
    result_ = votes_;
    votes_ = 0;
    arrived_ = 0;
    ++barriers_;
    // Ascending and descending in turn, so that an order somebody relies on does not hold.
    for (unsigned i = 0; i < threads(); ++i) {
      const unsigned other = barriers_ % 2 ? threads() - 1 - i : i;
      if (other != current_) wake(other);
    }
    return result_;
  }

  // The last lane of `mask` to arrive runs action(lanes), where lanes[i] is what lane i handed over.
  template <class Action>
  void collective(const char* name, unsigned mask, void* mine, const Location& where, const Action& action) {
    Warp& warp = warps_[current_ / 32];
    const unsigned bit = 1u << lane();
    if (!(mask & bit)) fail(std::string(name) + " at " + text(where) + " by a lane that its mask does not name");
    Collective& group = join(warp, name, mask, where);
    group.arrived |= bit;
    group.lanes[lane()] = mine;
    if (group.arrived != mask) {
      wait(name, where);
      return;
    }
    action(group.lanes);
    const unsigned first = current_ / 32 * 32;
    warp.open.erase(warp.open.begin() + (&group - warp.open.data()));
    for (unsigned i = 0; i < 32; ++i) {
      if ((mask >> i & 1) && first + i != current_) wake(first + i);
    }
  }

  void pass_warp_barrier() { ++warps_[current_ / 32].barriers; }
  unsigned lane() const { return current_ % 32; }

  // `bytes` of shared memory are read or written by this thread.
  void touch(const void* address, size_t bytes, bool write) {
    const size_t offset = static_cast<const unsigned char*>(address) - shared();
    const Touch now{current_, barriers_, warps_[current_ / 32].barriers};
    for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
      Shadow& shadow = shadows_[i];
      if (shadow.arriving) {
        fail(std::string(write ? "writes" : "reads") + " byte " + std::to_string(2 * i) +
             " of the shared memory, for which a copy is under way that its thread has not waited for");
      }
      if (races(shadow.writer, now)) fail_race(i, shadow.writer, "wrote", write);
      if (write) {
        for (const Touch& reader : shadow.readers) {
          if (races(reader, now)) fail_race(i, reader, "read", write);
        }
        shadow.writer = now;
      } else {
        const bool first = shadow.readers[0].thread == current_ || !races(shadow.readers[0], now);
        shadow.readers[first ? 0 : 1] = now;
      }
    }
  }

  void begin_copy(void* to, const void* from) {
    touch(to, kCopied, true);
    std::memset(to, 0xff, kCopied);
    mark_arriving(to, true);
    threads_[current_].copies.push_back({to, from});
  }

  // All of this thread's copies arrive.
  void wait_for_copies() {
    std::vector<Copy>& copies = threads_[current_].copies;
    for (const Copy& copy : copies) {
      mark_arriving(copy.to, false);
      if (copy.from) {
        std::memcpy(copy.to, copy.from, kCopied);
      } else {
        std::memset(copy.to, 0, kCopied);
      }
      touch(copy.to, kCopied, true);
    }
    copies.clear();
  }

 private:
  static constexpr size_t kAlignment = 128;
  static constexpr size_t kCopied = 16;

  void mark_arriving(const void* to, bool arriving) {
    const size_t first = static_cast<const unsigned char*>(to) - shared();
    for (size_t i = first / 2; i < (first + kCopied) / 2; ++i) shadows_[i].arriving = arriving;
  }

  unsigned threads() const { return blockDim.x * blockDim.y * blockDim.z; }

  static bool same(const Location& a, const Location& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
  }

  static void check_launch(const char* kernel, dim3 grid, dim3 block, size_t shared) {
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > kMaxThreads || uint64_t(grid.x) * grid.y * grid.z == 0 || grid.x > 0x7fffffffu ||
        grid.y > 65535 || grid.z > 65535 || shared > kMaxShared) {
      throw std::runtime_error("kernel " + std::string(kernel) + " cannot be launched: grid " + text(grid) +
                               ", block " + text(block) + ", " + std::to_string(shared) + " bytes of shared memory");
    }
  }

  void run_block(dim3 index) {
    blockIdx = index;
    std::memset(shared_.data(), 0xff, shared_.size());  // NaN as float, half and bfloat16
    const unsigned count = threads();
    threads_.resize(count);
    warps_.resize((count + 31) / 32);
    for (Warp& warp : warps_) {
      warp.barriers = 0;
      warp.open.clear();
    }
    ready_.clear();
    next_ = 0;
    arrived_ = votes_ = finished_ = 0;
    ++barriers_;  // what other blocks touched is far behind
    error_.clear();
    for (unsigned i = 0; i < count; ++i) {
      Thread& thread = threads_[i];
      thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
      thread.done = false;
      thread.fiber = fibers_.start(i, enter);
      wake(i);
    }
    while (next_ < ready_.size() && error_.empty()) {
      current_ = ready_[next_++];
      if (next_ == ready_.size()) {
        ready_.clear();
        next_ = 0;
      }
      threadIdx = threads_[current_].index;
      fibers_.resume(threads_[current_].fiber);
    }
    if (!error_.empty() || finished_ < count) forget_copies();
    if (!error_.empty()) throw std::runtime_error(error_);
    if (finished_ < count) fail_deadlock();
  }

  // Of a block that failed: the next launch starts afresh.
  void forget_copies() {
    for (Thread& thread : threads_) {
      for (const Copy& copy : thread.copies) mark_arriving(copy.to, false);
      thread.copies.clear();
    }
  }

  static void enter();

  void run_thread() {
    try {
      body_(function_);
      if (!threads_[current_].copies.empty()) fail("returns before its copies have arrived");
    } catch (const std::exception& error) {
      error_ = error.what();  // thrown again where the launch is, on another stack
    }
    threads_[current_].done = true;
    ++finished_;
    fibers_.suspend(threads_[current_].fiber);
  }

  void wait(const char* name, const Location& where) {
    const unsigned self = current_;
    threads_[self].waits = name;
    threads_[self].where = where;
    fibers_.suspend(threads_[self].fiber);
  }

  void wake(unsigned thread) {
    threads_[thread].waits = nullptr;
    ready_.push_back(thread);
  }

  Collective& join(Warp& warp, const char* name, unsigned mask, const Location& where) {
    for (Collective& group : warp.open) {
      if (!(group.mask & mask)) continue;
      if (group.mask != mask || group.name != name || !same(group.where, where)) {
        fail(std::string(name) + " at " + text(where) + " while lanes of its warp wait at " + group.name + " at " +
             text(group.where));
      }
      return group;
    }
    warp.open.push_back(Collective{mask, 0, name, where, {}});
    return warp.open.back();
  }

  [[noreturn]] void fail_deadlock() {
    unsigned waiting = 0;
    while (!threads_[waiting].waits) ++waiting;
    current_ = waiting;
    const Thread& thread = threads_[waiting];
    fail("waits for ever in " + std::string(thread.waits) + " at " + text(thread.where) + ": " +
         std::to_string(finished_) + " of " + std::to_string(threads()) + " threads have returned");
  }

  bool races(const Touch& before, const Touch& now) const {
    if (before.thread == kNobody || before.thread == now.thread || before.barriers != now.barriers) return false;
    return before.thread / 32 != now.thread / 32 || before.warp_barriers == now.warp_barriers;
  }

  [[noreturn]] void fail_race(size_t pair, const Touch& before, const char* did, bool write) const {
    fail(std::string(write ? "writes" : "reads") + " byte " + std::to_string(2 * pair) +
         " of the shared memory, which thread " + text(threads_[before.thread].index) + " " + did +
         " with no barrier in between");
  }

  std::mutex mutex_;
  Fibers fibers_{kMaxThreads};
  const char* kernel_ = "";
  void (*body_)(const void*) = nullptr;
  const void* function_ = nullptr;
  std::vector<unsigned char> shared_;
  std::vector<Shadow> shadows_;
  size_t shared_size_ = 0;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> ready_;
  size_t next_ = 0;
  unsigned current_ = 0, finished_ = 0, arrived_ = 0, barriers_ = 0;
  int votes_ = 0, result_ = 0;
  const char* barrier_name_ = "";
  Location barrier_where_;
  std::string error_;
};

inline Machine machine;

inline void Machine::enter() { machine.run_thread(); }

}  // namespace emulation
