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

#include "emulation_machine.h"
#include "emulation_memory.h"

namespace emulation {

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
