// The smallest library on the stable ABI: enough for the tests of the build, which need not compile the real kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>

#ifndef SCSCO_EMULATED
#include <cuda_runtime.h>

__global__ void double_kernel(const float* x, float* y, int64_t n) {
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}
#endif

torch::stable::Tensor double_values(const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::Float, "double: x must be float32");
  torch::stable::Tensor y = torch::stable::empty_like(x);
  const float* from = reinterpret_cast<const float*>(x.data_ptr());
  float* to = reinterpret_cast<float*>(y.data_ptr());
#ifdef SCSCO_EMULATED
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = 2 * from[i];
#else
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  double_kernel<<<(x.numel() + 255) / 256, 256, 0, static_cast<cudaStream_t>(stream)>>>(from, to, x.numel());
  STD_TORCH_CHECK(cudaGetLastError() == cudaSuccess, "double_kernel was not launched");
#endif
  return y;
}

STABLE_TORCH_LIBRARY(scsco_fast_tiny, m) { m.def("double(Tensor x) -> Tensor"); }

#ifdef SCSCO_EMULATED
STABLE_TORCH_LIBRARY_IMPL(scsco_fast_tiny, CPU, m) { m.impl("double", TORCH_BOX(&double_values)); }
#else
STABLE_TORCH_LIBRARY_IMPL(scsco_fast_tiny, CUDA, m) { m.impl("double", TORCH_BOX(&double_values)); }
#endif
