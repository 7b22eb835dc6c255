// half and bfloat16, with the names and roundings of cuda_fp16.h and cuda_bf16.h.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half value) { return c10::detail::fp16_ieee_to_fp32_value(value.bits); }
inline __half __float2half_rn(float value) { return {c10::detail::fp16_ieee_from_fp32_value(value)}; }
inline float __bfloat162float(__nv_bfloat16 value) { return c10::detail::f32_from_bits(value.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {c10::detail::round_to_nearest_even(value)}; }

inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
