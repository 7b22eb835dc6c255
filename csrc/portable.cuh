// What every .cu file includes. nvcc compiles it to CUDA; with SCSCO_EMULATED a C++ compiler compiles the same source
// to a library that runs the kernels on the CPU.
#pragma once

#ifdef SCSCO_EMULATED
#include "emulation.h"
#else
#ifndef USE_CUDA
#define USE_CUDA  // declares aoti_torch_get_current_cuda_stream
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>

// Schemas and implementations of one file's operations: SCSCO_SCHEMAS(m) { m.def("name(Tensor x) -> Tensor"); } and
// SCSCO_OPERATIONS(m) { m.impl("name", TORCH_BOX(&function)); }
#define SCSCO_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(scsco_fast_cuda, m)
#ifdef SCSCO_EMULATED
#define SCSCO_OPERATIONS(m) STABLE_TORCH_LIBRARY_IMPL(scsco_fast_cuda, CPU, m)
#else
#define SCSCO_OPERATIONS(m) STABLE_TORCH_LIBRARY_IMPL(scsco_fast_cuda, CUDA, m)
#endif

// The kernel's name goes into the message of every error: LAUNCH((kernel<T, 4>), grid, block, shared, tensor, ...).
#define LAUNCH(kernel, ...) ::scsco::launch(#kernel, kernel, __VA_ARGS__)

namespace scsco {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using half = __half;
using bfloat16 = __nv_bfloat16;
using byte = unsigned char;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kUnaskedSharedBytes = 48 * 1024;  // that every device grants a block

// ---------------------------------------------------------------------------------------------------------------------
// Memory. Under CUDA all of this is plain pointers; in emulation every access is checked.

#ifdef SCSCO_EMULATED
template <class T>
using Global = emulation::Checked<T, emulation::GlobalSpace>;
template <class T>
using Shared = emulation::Checked<T, emulation::SharedSpace>;
#else
template <class T>
using Global = T* __restrict__;
template <class T>
using Shared = T*;
#endif

constexpr size_t kSharedAlignment = 128;

template <class T>
__host__ __device__ constexpr size_t shared_bytes(int64_t count) {
  return (count * sizeof(T) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

// The kernel's dynamic shared memory, cut into arrays one after another; shared_bytes<T>(count) each.
class SharedMemory {
 public:
#ifdef SCSCO_EMULATED
  template <class T>
  Shared<T> array(int64_t count) {
    unsigned char* const first = emulation::machine.shared() + used_;
    used_ += shared_bytes<T>(count);
    if (used_ > emulation::machine.shared_size()) {
      emulation::machine.fail("takes " + std::to_string(used_) + " bytes of shared memory, the launch gave " +
                              std::to_string(emulation::machine.shared_size()));
    }
    return {reinterpret_cast<T*>(first), count};
  }
#else
  template <class T>
  __device__ __forceinline__ Shared<T> array(int64_t count) {
    extern __shared__ __align__(128) unsigned char scsco_shared[];
    unsigned char* const first = scsco_shared + used_;
    used_ += shared_bytes<T>(count);
    return reinterpret_cast<T*>(first);
  }
#endif

 private:
  size_t used_ = 0;
};

// N elements that are read and written together; an address must be divisible by their number of bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T values[N];
  __host__ __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __host__ __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};


#ifdef SCSCO_EMULATED
template <int N, class T, class Space>
Vector<std::remove_const_t<T>, N> load(emulation::Checked<T, Space> from) {
  Vector<std::remove_const_t<T>, N> out;
  from.read(&out, N);
  return out;
}
template <int N, class T, class Space>
void store(emulation::Checked<T, Space> to, const Vector<T, N>& values) {
  to.write(&values, N);
}
#else
template <int N, class T>
__device__ __forceinline__ Vector<std::remove_const_t<T>, N> load(T* from) {
  return *reinterpret_cast<const Vector<std::remove_const_t<T>, N>*>(from);
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& values) {
  *reinterpret_cast<Vector<T, N>*>(to) = values;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Numbers.

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ half from_float<half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <class A, class B>
__host__ __device__ constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reductions, in an order that depends on the number of threads only.

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

__device__ __forceinline__ int thread_of_block() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

// The sum of every value over the block, for every thread; `scratch` holds N * kWarp floats and may be used again at
// once. The number of threads must be a multiple of kWarp.
template <int N>
__device__ __forceinline__ void block_sum(float (&values)[N], Shared<float> scratch) {
  const int thread = thread_of_block(), lane = thread % kWarp, warp = thread / kWarp;
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / kWarp;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = warp_sum(values[i]);
    if (lane == 0) scratch[i * kWarp + warp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = warp_sum(lane < warps ? float(scratch[i * kWarp + lane]) : 0.0f);
  __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------------
// The host.

inline std::string text_of(const char* text) { return text; }
inline std::string text_of(const std::string& text) { return text; }
template <class Number>
std::string text_of(Number number) {
  return std::to_string(number);
}

// Throws what Python sees as a RuntimeError of one line.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) throw std::runtime_error((std::string() + ... + text_of(parts)));
}

#ifndef SCSCO_EMULATED
// Throws what CUDA says. The runtime would report the same error once more, to whoever asks next: it is taken back.
template <class... Parts>
void check_cuda(cudaError_t error, const Parts&... parts) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  check(false, parts..., ": ", cudaGetErrorString(error));
}
#endif

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + ")";
}

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> wanted) {
  bool same = tensor.dim() == static_cast<int64_t>(wanted.size());
  std::string text;
  int64_t i = 0;
  for (const int64_t size : wanted) {
    same = same && tensor.size(i) == size;
    text += (i++ ? ", " : "") + std::to_string(size);
  }
  check(same, name, " must have shape (", text, "), got ", shape_text(tensor));
}

// `tensor` must be where `other` is.
inline void check_device(const char* name, const Tensor& tensor, const Tensor& other) {
  check(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), name,
        " must be on the device of the other tensors");
}

template <class T>
constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
inline constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kScalarType<half> = ScalarType::Half;
template <>
inline constexpr ScalarType kScalarType<bfloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType kScalarType<int64_t> = ScalarType::Long;
template <>
inline constexpr ScalarType kScalarType<int32_t> = ScalarType::Int;
template <>
inline constexpr ScalarType kScalarType<byte> = ScalarType::Byte;

// A tensor's memory, from its first element to its last, as a kernel takes it: Global<const float> or Global<float>.
template <class T>
Global<T> global(const Tensor& tensor) {
  using Value = std::remove_const_t<T>;
  check(tensor.scalar_type() == kScalarType<Value>, "a kernel got a tensor of ",
        torch::headeronly::toString(tensor.scalar_type()), " where it takes ",
        torch::headeronly::toString(kScalarType<Value>));
  T* data;
  if constexpr (std::is_const_v<T>) {
    data = static_cast<T*>(tensor.const_data_ptr());  // what is only read keeps its copy-on-write storage
  } else {
    data = static_cast<T*>(tensor.mutable_data_ptr());
  }
#ifdef SCSCO_EMULATED
  int64_t span = tensor.numel() > 0;
  for (int64_t i = 0; span > 0 && i < tensor.dim(); ++i) span += (tensor.size(i) - 1) * tensor.stride(i);
  return {data, span};
#else
  return data;
#endif
}

// An absent tensor is an empty Global, which is false.
template <class T>
Global<T> global(const std::optional<Tensor>& tensor) {
  return tensor ? global<T>(*tensor) : Global<T>();
}

template <class T>
struct Type {
  using type = T;
};

// Calls function(Type<T>()) with the C++ type of a floating dtype.
template <class Function>
void dispatch(ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(Type<float>());
    case ScalarType::Half:
      return function(Type<half>());
    case ScalarType::BFloat16:
      return function(Type<bfloat16>());
    default:
      check(false, "float32, float16 or bfloat16 is wanted, got ", torch::headeronly::toString(dtype));
  }
}

// Contiguous, uninitialised, on the device of `like`.
inline Tensor allocate(std::initializer_list<int64_t> shape, const Tensor& like, ScalarType dtype = ScalarType::Float) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline Tensor allocate_like(const Tensor& like) {
  return torch::stable::new_empty(like, like.sizes(), like.scalar_type());
}

// The intermediate results of one call, in one allocation: a call of torch's allocator takes about a microsecond on the
// host, and small maps are over in ten.
//
//   Workspace space;
//   const auto sums = space.add<float>(count);
//   space.allocate(like);  // on the device of `like`
//   ... space[sums] ...    // Global<float>
//
// It must live until the kernels are launched; after that the memory is handed out again in the stream's order.
class Workspace {
 public:
  template <class T>
  struct Array {
    int64_t first, count;  // in bytes, in elements
  };

  template <class T>
  Array<T> add(int64_t count) {
    const Array<T> array{bytes_, count};
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return array;
  }

  void allocate(const Tensor& like) { memory_ = scsco::allocate({bytes_}, like, ScalarType::Byte); }

  template <class T>
  Global<T> operator[](const Array<T>& array) const {
    T* const data = reinterpret_cast<T*>(static_cast<byte*>(memory_->mutable_data_ptr()) + array.first);
#ifdef SCSCO_EMULATED
    return {data, array.count};
#else
    return data;
#endif
  }

 private:
  static constexpr int64_t kAlignment = 256;

  int64_t bytes_ = 0;
  std::optional<Tensor> memory_;
};

// Into how many parts a sum over `blocks` blocks is cut so that about `wanted` thread blocks run. It depends on shapes
// only: the order of every sum, and so every bit, is the same on every device.
inline int64_t split(int64_t thread_blocks, int64_t blocks, int64_t wanted, int64_t most) {
  const int64_t parts = ceil_div(wanted, thread_blocks < 1 ? 1 : thread_blocks);
  const int64_t limit = blocks < most ? blocks : most;
  return parts < 1 || limit < 1 ? 1 : (parts < limit ? parts : limit);
}

// A kernel's name without the parentheses and template arguments that LAUNCH was given.
inline std::string bare_name(const char* kernel) {
  const std::string name = kernel[0] == '(' ? std::string(kernel + 1, std::strlen(kernel) - 2) : kernel;
  return name.substr(0, name.find('<'));
}

// Shared memory that a block may have on the device of `on`, if it asks for it: 64 KiB on sm_75, 227 KiB on sm_90.
inline size_t shared_limit(const Tensor& on) {
#ifdef SCSCO_EMULATED
  (void)on;
  const char* const limit = std::getenv("SCSCO_EMULATED_SHARED_BYTES");
  return limit ? std::strtoull(limit, nullptr, 10) : emulation::kMaxShared;
#else
  int bytes = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, on.get_device_index());
  check_cuda(error, "the device's shared memory cannot be read");
  return bytes;
#endif
}

// Runs a kernel on the current stream of the device of `on`.
template <class... Parameters, class... Arguments>
void launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            const Tensor& on, const Arguments&... arguments) {
  const std::string name = bare_name(kernel_name);
  if (shared > kUnaskedSharedBytes) {
    const size_t limit = shared_limit(on);
    check(shared <= limit, "kernel ", name, " wants ", shared, " bytes of shared memory, the device grants ", limit);
  }
#ifdef SCSCO_EMULATED
  emulation::machine.run(name.c_str(), grid, block, shared, [&] { kernel(arguments...); });
#else
  const int32_t device = on.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  cudaError_t error = cudaSuccess;
  if (shared > kUnaskedSharedBytes) {  // it holds for the current device only, so it is asked for at every launch
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  }
  if (error == cudaSuccess) {
    kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
    error = cudaGetLastError();
  }
  check_cuda(error, "kernel ", name, " cannot be launched");
#endif
}

}  // namespace scsco
