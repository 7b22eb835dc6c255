// What CUDA C++ gives to a kernel, as plain C++: the same kernel bodies and host functions run on the CPU.
//
// A launch runs its blocks one after another. The threads of a block are fibers of one OS thread: each runs until it
// waits at a barrier or a warp collective, so a switch costs nanoseconds and every run takes the same order. What a GPU
// leaves undefined is an error here: an address outside its tensor or array, a barrier or collective that somebody does
// not reach, two threads that touch the same shared memory without a barrier between them. Shared memory holds NaN
// until it is written.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

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

// A pointer that knows its array. `Space` is told of every access: where, how many bytes, whether it is a write.
template <class T, class Space>
class Checked {
  using Value = std::remove_const_t<T>;

 public:
  // One element: reads when converted, writes when assigned to.
  class Reference {
   public:
    explicit Reference(T* at) : at_(at) {}
    Reference(const Reference&) = default;
    operator Value() const {
      Space::touch(at_, sizeof(T), false);
      return *at_;
    }
    Reference& operator=(const Value& value) {
      Space::touch(at_, sizeof(T), true);
      *at_ = value;
      return *this;
    }
    Reference& operator=(const Reference& other) { return *this = static_cast<Value>(other); }
    Reference& operator+=(const Value& value) { return *this = static_cast<Value>(*this) + value; }
    Reference& operator-=(const Value& value) { return *this = static_cast<Value>(*this) - value; }
    Reference& operator*=(const Value& value) { return *this = static_cast<Value>(*this) * value; }

   private:
    T* at_;
  };

  Checked() = default;
  Checked(T* base, int64_t size, int64_t at = 0) : base_(base), size_(size), at_(at) {}
  operator Checked<const T, Space>() const
    requires(!std::is_const_v<T>)
  {
    return {base_, size_, at_};
  }

  explicit operator bool() const { return base_ != nullptr; }
  Checked operator+(int64_t by) const { return {base_, size_, at_ + by}; }
  Checked operator-(int64_t by) const { return {base_, size_, at_ - by}; }
  Checked& operator+=(int64_t by) {
    at_ += by;
    return *this;
  }
  bool operator==(const Checked& other) const { return base_ == other.base_ && at_ == other.at_; }

  auto operator[](int64_t index) const {
    if constexpr (std::is_const_v<T>) {
      T* const at = checked(index, 1, "reads");
      Space::touch(at, sizeof(T), false);
      return Value(*at);
    } else {
      return Reference(checked(index, 1, "reads or writes"));
    }
  }
  auto operator*() const { return (*this)[0]; }

  // `count` elements from here, as bytes, from an address that their number of bytes divides.
  void read(void* to, int count) const {
    T* const at = aligned(count, "reads");
    Space::touch(at, count * sizeof(T), false);
    std::memcpy(to, at, count * sizeof(T));
  }
  void write(const void* from, int count) const {
    T* const at = aligned(count, "writes");
    Space::touch(at, count * sizeof(T), true);
    std::memcpy(at, from, count * sizeof(T));
  }

  // Where `count` elements begin that somebody reads or writes later.
  T* address(int count, const char* does) const { return aligned(count, does); }
  bool aligned_to(size_t bytes) const { return reinterpret_cast<uintptr_t>(base_ + at_) % bytes == 0; }

 private:
  T* checked(int64_t index, int64_t count, const char* does) const {
    const int64_t first = at_ + index;
    if (first < 0 || first + count > size_) fail(first, does);
    return base_ + first;
  }

  T* aligned(int count, const char* does) const {
    T* const at = checked(0, count, does);
    if (!aligned_to(count * sizeof(T))) {
      machine.fail(std::string(does) + " " + std::to_string(count) + " elements from element " + std::to_string(at_) +
                   ", whose address " + std::to_string(count * sizeof(T)) + " does not divide");
    }
    return at;
  }

  [[noreturn]] __attribute__((noinline, cold)) void fail(int64_t index, const char* does) const {
    machine.fail(std::string(does) + " element " + std::to_string(index) + " of " + std::to_string(size_) + " in " +
                 Space::kName);
  }

  T* base_ = nullptr;
  int64_t size_ = 0, at_ = 0;
};

struct GlobalSpace {
  static constexpr const char* kName = "a tensor";
  static void touch(const void*, size_t, bool) {}
};

struct SharedSpace {
  static constexpr const char* kName = "an array in shared memory";
  static void touch(const void* at, size_t bytes, bool write) { machine.touch(at, bytes, write); }
};

// Every lane gets the value of lane source(lane), or its own where that is no lane of its segment.
template <class T, class Source>
T shuffle(const char* name, unsigned mask, T value, int width, const Location& where, const Source& source) {
  struct Lane {
    T value, result;
    int from;
  } mine{value, value, 0};
  const int lane = static_cast<int>(machine.lane()), first = lane / width * width;
  const int from = source(lane);
  mine.from = from < first || from >= first + width ? lane : from;
  if (!(mask >> mine.from & 1)) machine.fail(std::string(name) + " from a lane that its mask does not name");
  machine.collective(name, mask, &mine, where, [mask](void** lanes) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      Lane& to = *static_cast<Lane*>(lanes[i]);
      to.result = static_cast<Lane*>(lanes[to.from])->value;
    }
  });
  return mine.result;
}

inline unsigned ballot(const char* name, unsigned mask, int predicate, const Location& where) {
  struct Lane {
    int predicate;
    unsigned result;
  } mine{predicate, 0};
  machine.collective(name, mask, &mine, where, [mask](void** lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) {
      if ((mask >> i & 1) && static_cast<Lane*>(lanes[i])->predicate) votes |= 1u << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) static_cast<Lane*>(lanes[i])->result = votes;
    }
  });
  return mine.result;
}

}  // namespace emulation

inline void __syncthreads(emulation::Location where = emulation::Location::current()) {
  emulation::machine.barrier("__syncthreads", 0, where);
}
inline int __syncthreads_count(int predicate, emulation::Location where = emulation::Location::current()) {
  return emulation::machine.barrier("__syncthreads_count", predicate, where);
}
inline int __syncthreads_or(int predicate, emulation::Location where = emulation::Location::current()) {
  return emulation::machine.barrier("__syncthreads_or", predicate, where) != 0;
}
inline int __syncthreads_and(int predicate, emulation::Location where = emulation::Location::current()) {
  return emulation::machine.barrier("__syncthreads_and", !predicate, where) == 0;
}
inline void __syncwarp(unsigned mask = emulation::kFullMask,
                       emulation::Location where = emulation::Location::current()) {
  emulation::machine.collective("__syncwarp", mask, nullptr, where, [=](void**) {
    if (mask == emulation::kFullMask) emulation::machine.pass_warp_barrier();
  });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              emulation::Location where = emulation::Location::current()) {
  return emulation::shuffle("__shfl_sync", mask, value, width, where,
                            [=](int lane) { return lane / width * width + from % width; });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32,
                  emulation::Location where = emulation::Location::current()) {
  return emulation::shuffle("__shfl_xor_sync", mask, value, width, where, [=](int lane) { return lane ^ with; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   emulation::Location where = emulation::Location::current()) {
  return emulation::shuffle("__shfl_down_sync", mask, value, width, where,
                            [=](int lane) { return lane + static_cast<int>(by); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 emulation::Location where = emulation::Location::current()) {
  return emulation::shuffle("__shfl_up_sync", mask, value, width, where,
                            [=](int lane) { return lane - static_cast<int>(by); });
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulation::Location where = emulation::Location::current()) {
  return emulation::ballot("__ballot_sync", mask, predicate, where);
}
inline int __any_sync(unsigned mask, int predicate, emulation::Location where = emulation::Location::current()) {
  return emulation::ballot("__any_sync", mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulation::Location where = emulation::Location::current()) {
  return emulation::ballot("__all_sync", mask, predicate, where) == mask;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

#include "emulation_types.h"
#include "emulation_mma.h"
