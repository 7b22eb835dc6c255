// Products of tiles in shared memory by a whole block, with accumulators in registers.
//
//   TileProduct<Kind, M, N, WARPS_M, WARPS_N> c(scratch);  // M x N, float32, zero
//   c.template add<A_BY_ROWS, B_BY_ROWS>(a, lda, b, ldb, depth);
//   c.each([&](int m, int n, float& value) { ... });  // every element once, each by the thread that holds it
//   c.store(out, ldc);
//
// `Kind` says how numbers are multiplied: HalfProduct, BFloat16Product and TF32Product on tensor cores,
// IEEEProduct in float32 by fused multiply-adds. Sums are float32 in an order that depends on the shapes only.
#pragma once

#include "portable.cuh"

namespace scsco {

namespace wmma = nvcuda::wmma;

struct HalfProduct {
  using Element = half;    // in shared memory
  using Operand = half;    // of a fragment
  static constexpr int kDepth = 16;
  static constexpr int kCapability = 75;
  __device__ __forceinline__ static Element element(float value) { return from_float<half>(value); }
};

struct BFloat16Product {
  using Element = bfloat16;
  using Operand = bfloat16;
  static constexpr int kDepth = 16;
  static constexpr int kCapability = 80;
  __device__ __forceinline__ static Element element(float value) { return from_float<bfloat16>(value); }
};

struct TF32Product {
  using Element = float;
  static constexpr int kDepth = 8;
  static constexpr int kCapability = 80;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __device__ __forceinline__ static Element element(float value) { return value; }
#else
  using Operand = wmma::precision::tf32;
  // Rounded once here, not at every load of a fragment: tensor cores would cut the low bits off.
  __device__ __forceinline__ static Element element(float value) { return wmma::__float_to_tf32(value); }
#endif
};

struct IEEEProduct {
  using Element = float;
  static constexpr int kDepth = 1;
  static constexpr int kCapability = 75;
  __device__ __forceinline__ static Element element(float value) { return value; }
};

// Whether the architecture that is being compiled for has a kind of product. Kernels for another kind are compiled to
// nothing and are refused before they are launched.
template <class Kind>
__device__ constexpr bool available() {
#if defined(__CUDA_ARCH__)
  return __CUDA_ARCH__ >= Kind::kCapability * 10;
#else
  return true;
#endif
}

// The leading dimension of a tile of `columns` elements: 16 bytes more, so that a column's elements lie in several
// banks and every fragment's address is divisible by 32 bytes. `columns` elements must be a multiple of 32 bytes.
template <class Element>
__host__ __device__ constexpr int leading(int columns) {
  return columns + 16 / static_cast<int>(sizeof(Element));
}

// Floats of scratch that a TileProduct's constructor needs; they are free again after the next __syncthreads.
template <class Kind>
constexpr int kProductScratch = 256;
template <>
inline constexpr int kProductScratch<IEEEProduct> = 0;

template <class Kind, int M, int N, int WARPS_M, int WARPS_N, bool AVAILABLE = available<Kind>()>
class TileProduct;

// On tensor cores. The tile is cut among WARPS_M x WARPS_N warps, a warp's share into fragments of 16 x 16.
template <class Kind, int M, int N, int WARPS_M, int WARPS_N>
class TileProduct<Kind, M, N, WARPS_M, WARPS_N, true> {
 public:
  using Element = typename Kind::Element;
  static constexpr int kThreads = kWarp * WARPS_M * WARPS_N;
  static constexpr int kRows = M / WARPS_M / 16, kColumns = N / WARPS_N / 16;  // fragments of a warp
  static_assert(kRows * 16 * WARPS_M == M && kColumns * 16 * WARPS_N == N, "warps hold whole fragments");

  // Every thread of the block calls it. Which lane holds which element of a fragment is unspecified, so a fragment is
  // loaded whose elements say where they lie; `scratch` holds kProductScratch<Kind> floats.
  __device__ __forceinline__ explicit TileProduct(Shared<float> scratch) {
    const int thread = thread_of_block();
    for (int i = thread; i < 256; i += kThreads) scratch[i] = static_cast<float>(i);
    __syncthreads();
    Fragment where;
    wmma::load_matrix_sync(where, Shared<const float>(scratch), 16, wmma::mem_row_major);
    static_assert(Fragment::num_elements == 8, "eight places of eight bits are packed into one number");
#pragma unroll
    for (int i = 0; i < 8; ++i) places_ |= static_cast<unsigned long long>(where.x[i]) << (8 * i);
    row_ = thread / kWarp / WARPS_N * kRows * 16;
    column_ = thread / kWarp % WARPS_N * kColumns * 16;
    zero();
    __syncthreads();
  }

  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) wmma::fill_fragment(sums_[i][j], 0.0f);
    }
  }

  // Adds the product of a [M, depth] and b [depth, N]. Element [m, k] of a lies at m * lda + k if A_BY_ROWS, else at
  // k * lda + m; [k, n] of b at k * ldb + n if B_BY_ROWS, else at n * ldb + k. `depth` is a multiple of Kind::kDepth.
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  __device__ __forceinline__ void add(Shared<const Element> a, int lda, Shared<const Element> b, int ldb, int depth) {
    using LayoutA = std::conditional_t<A_BY_ROWS, wmma::row_major, wmma::col_major>;
    using LayoutB = std::conditional_t<B_BY_ROWS, wmma::row_major, wmma::col_major>;
    using Operand = typename Kind::Operand;
    for (int k = 0; k < depth; k += Kind::kDepth) {
      wmma::fragment<wmma::matrix_a, 16, 16, Kind::kDepth, Operand, LayoutA> left[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int m = row_ + 16 * i;
        wmma::load_matrix_sync(left[i], a + (A_BY_ROWS ? m * lda + k : k * lda + m), lda);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int n = column_ + 16 * j;
        wmma::fragment<wmma::matrix_b, 16, 16, Kind::kDepth, Operand, LayoutB> right;
        wmma::load_matrix_sync(right, b + (B_BY_ROWS ? k * ldb + n : n * ldb + k), ldb);
#pragma unroll
        for (int i = 0; i < kRows; ++i) wmma::mma_sync(sums_[i][j], left[i], right, sums_[i][j]);
      }
    }
  }

  // Calls function(m, n, value) for the thread's elements; it may change them.
  template <class Function>
  __device__ __forceinline__ void each(const Function& function) {
    unsigned long long places = places_;
#ifndef SCSCO_EMULATED
    // Hides from the compiler that they are the same every time. Else it decodes them before the loop around this call
    // and keeps what it got, 40 registers in the attention's backward.
    asm volatile("" : "+l"(places));
#endif
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int place = static_cast<int>(places >> (8 * e) & 255);
          function(row_ + 16 * i + place / 16, column_ + 16 * j + place % 16, sums_[i][j].x[e]);
        }
      }
    }
  }

  // To shared memory, element [m, n] at m * ld + n; `ld` is a multiple of 4. Others see it after __syncthreads.
  __device__ __forceinline__ void store(Shared<float> out, int ld) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        wmma::store_matrix_sync(out + ((row_ + 16 * i) * ld + column_ + 16 * j), sums_[i][j], ld,
                                wmma::mem_row_major);
      }
    }
  }

 protected:
  using Fragment = wmma::fragment<wmma::accumulator, 16, 16, Kind::kDepth, float>;

  Fragment sums_[kRows][kColumns];
  unsigned long long places_ = 0;
  int row_, column_;
};

// In float32. A warp's lanes are 4 rows by 8 columns, each with every 4th row and every 8th column of the warp's tile.
template <int M, int N, int WARPS_M, int WARPS_N>
class TileProduct<IEEEProduct, M, N, WARPS_M, WARPS_N, true> {
 public:
  using Element = float;
  static constexpr int kThreads = kWarp * WARPS_M * WARPS_N;
  static constexpr int kRows = M / WARPS_M / 4, kColumns = N / WARPS_N / 8;  // elements of a lane
  static_assert(kRows * 4 * WARPS_M == M && kColumns * 8 * WARPS_N == N, "lanes hold as many elements each");

  __device__ __forceinline__ explicit TileProduct(Shared<float>) {
    const int thread = thread_of_block(), warp = thread / kWarp, lane = thread % kWarp;
    row_ = warp / WARPS_N * kRows * 4 + lane / 8;
    column_ = warp % WARPS_N * kColumns * 8 + lane % 8;
    zero();
  }

  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums_[i][j] = 0.0f;
    }
  }

  template <bool A_BY_ROWS, bool B_BY_ROWS>
  __device__ __forceinline__ void add(Shared<const float> a, int lda, Shared<const float> b, int ldb, int depth) {
#pragma unroll 4
    for (int k = 0; k < depth; ++k) {
      float left[kRows], right[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = a[A_BY_ROWS ? (row_ + 4 * i) * lda + k : k * lda + row_ + 4 * i];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        right[j] = b[B_BY_ROWS ? k * ldb + column_ + 8 * j : (column_ + 8 * j) * ldb + k];
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums_[i][j] += left[i] * right[j];
      }
    }
  }

  template <class Function>
  __device__ __forceinline__ void each(const Function& function) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) function(row_ + 4 * i, column_ + 8 * j, sums_[i][j]);
    }
  }

  __device__ __forceinline__ void store(Shared<float> out, int ld) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) out[(row_ + 4 * i) * ld + column_ + 8 * j] = sums_[i][j];
    }
  }

 protected:
  float sums_[kRows][kColumns];
  int row_, column_;
};

// For an architecture without this kind.
template <class Kind, int M, int N, int WARPS_M, int WARPS_N>
class TileProduct<Kind, M, N, WARPS_M, WARPS_N, false> {
 public:
  using Element = typename Kind::Element;
  static constexpr int kThreads = kWarp * WARPS_M * WARPS_N;
  __device__ explicit TileProduct(Shared<float>) {}
  __device__ void zero() {}
  template <bool A_BY_ROWS, bool B_BY_ROWS>
  __device__ void add(Shared<const Element>, int, Shared<const Element>, int, int) {}
  template <class Function>
  __device__ void each(const Function&) {}
  __device__ void store(Shared<float>, int) const {}
};

// Fills a tile of `rows` x `columns` elements, [r, c] at r * ld + c, with value(r, c) as float; neighbouring threads
// take neighbouring columns.
template <class Kind, class Value>
__device__ __forceinline__ void fill_tile(Shared<typename Kind::Element> tile, int ld, int rows, int columns,
                                          const Value& value) {
  const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  for (int i = thread_of_block(); i < rows * columns; i += threads) {
    const int r = i / columns, c = i % columns;
    tile[r * ld + c] = Kind::element(value(r, c));
  }
}

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
