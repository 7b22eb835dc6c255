// Products of tiles in shared memory by a whole block, with sums in registers.
//
//   TileProduct<Kind, M, N, WARPS_M, WARPS_N> c;  // M x N, float32, zero
//   c.template add<A_BY_ROWS, B_BY_ROWS, ROWS_A, ROWS_B>(a, b, depth);
//   c.each([&](int m, int n, float& value) { ... });  // every element once, each by the thread that holds it
//   c.store(out, ldc);
//
// Sums are float32 in an order that depends on the shapes only.
#pragma once

#include "fragments.cuh"

namespace scsco {

// Calls step(first, k) for every step of a depth that is not 0, with `first` a multiple of a panel's columns and k a
// constant where a panel is whole: addresses are then constants too.
template <int PANEL, int STEP, int UNROLLED = PANEL / STEP, class Step>
__device__ __forceinline__ void each_step(int depth, const Step& step) {
  if constexpr (UNROLLED == 1) {
#pragma unroll 1
    for (int k = 0; k < depth; k += STEP) step(k / PANEL * PANEL, k % PANEL);
  } else {
    int first = 0;
    do {  // at least once: sums that are 0 need not be kept beside those that are added to
      if (depth - first >= PANEL) {
#pragma unroll UNROLLED
        for (int k = 0; k < PANEL; k += STEP) step(first, k);
      } else {
#pragma unroll 1
        for (int k = 0; k < depth - first; k += STEP) step(first, k);
      }
      first += PANEL;
    } while (first < depth);
  }
}

// The tile is cut among WARPS_M x WARPS_N warps, a warp's share into fragments.
template <class Kind, int M, int N, int WARPS_M, int WARPS_N>
class TileProduct {
 public:
  using Element = typename Kind::Element;
  static constexpr int kThreads = kWarp * WARPS_M * WARPS_N;
  static constexpr int kRows = M / WARPS_M / 16, kColumns = N / WARPS_N / 8;  // fragments of a warp
  static_assert(kRows * 16 * WARPS_M == M && kColumns * 8 * WARPS_N == N && kColumns % 2 == 0, "fragments are whole");

  float sums[kRows][kColumns][4];

  __device__ __forceinline__ TileProduct() { zero(); }

  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
      }
    }
  }

  // The first row and column of the warp's share.
  __device__ __forceinline__ static int warp_row() { return warp() / WARPS_N * (M / WARPS_M); }
  __device__ __forceinline__ static int warp_column() { return warp() % WARPS_N * (N / WARPS_N); }
  // The first row and column that the thread holds, without those of its warp.
  __device__ __forceinline__ static int lane_row() { return static_cast<int>(threadIdx.x) % kWarp / 4; }
  __device__ __forceinline__ static int lane_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

  // Adds the product of a [M, depth] and b [depth, N], tiles of ROWS_A and ROWS_B rows. By rows, a tile's rows are
  // those of a (columns of b) and its columns the depth; by columns the other way round. `depth` is a multiple of 16.
  // Fewer UNROLLED steps than a panel has take fewer registers, up to 40.
  template <bool A_BY_ROWS, bool B_BY_ROWS, int ROWS_A, int ROWS_B, int UNROLLED = kPanel<Element> / Kind::kDepth>
  __device__ __forceinline__ void add(Shared<const Element> a, Shared<const Element> b, int depth) {
    constexpr int kInPanel = kPanel<Element>, kStep = Kind::kDepth;
    const auto left = [&] {
      if constexpr (A_BY_ROWS) {
        return LeftRows<Kind, ROWS_A>(a, warp_row());
      } else {
        return LeftColumns<Kind, ROWS_A>(a, warp_row());
      }
    }();
    const auto right = [&] {
      if constexpr (B_BY_ROWS) {
        return RightRows<Kind, ROWS_B>(b, warp_column());
      } else {
        return RightColumns<Kind, ROWS_B, false>(b, warp_column());
      }
    }();
    const auto step = [&](int first, int k) {
      Left<Kind> own[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if constexpr (A_BY_ROWS) {
          own[i] = left.load(first / kInPanel, k / kStep, i);
        } else {
          own[i] = left.load(first + k, i);
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) {
        Right<Kind> other[2];
        if constexpr (B_BY_ROWS) {
          right.load(other, first / kInPanel, k / kStep, j);
        } else {
          right.load(other, first + k, j);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) multiply(sums[i][2 * j + n], own[i], other[n]);
        }
      }
    };
    each_step<kInPanel, kStep, UNROLLED>(depth, step);
  }

  // Calls function(m, n, value) for the thread's elements; it may change them.
  template <class Function>
  __device__ __forceinline__ void each(const Function& function) {
    const int row = warp_row() + lane_row(), column = warp_column() + lane_column();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) function(row + 16 * i + e / 2 * 8, column + 8 * j + e % 2, sums[i][j][e]);
      }
    }
  }

  // To shared memory, element [m, n] at m * ld + n; `ld` is even. Others see it after __syncthreads.
  __device__ __forceinline__ void store(Shared<float> out, int ld) const {
    const Shared<float> own = out + ((warp_row() + lane_row()) * ld + warp_column() + lane_column());
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          scsco::store(own + ((16 * i + 8 * r) * ld + 8 * j),
                       Vector<float, 2>{{sums[i][j][2 * r], sums[i][j][2 * r + 1]}});
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
};

// Calls function(Type<Kind>()) with the way in which operands of `dtype` are multiplied; `tf32` decides for float32.
template <class Function>
void dispatch_product(ScalarType dtype, bool tf32, const Function& function) {
  switch (dtype) {
    case ScalarType::Half:
      return function(Type<HalfProduct>());
    case ScalarType::BFloat16:
      return function(Type<BFloat16Product>());
    case ScalarType::Float:
      return tf32 ? function(Type<TF32Product>()) : function(Type<IEEEProduct>());
    default:
      check(false, "float32, float16 or bfloat16 is wanted, got ", torch::headeronly::toString(dtype));
  }
}

}  // namespace scsco
