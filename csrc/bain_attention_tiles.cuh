// What the attention kernels share: how a block cuts queries and keys, rows on their way to shared memory, and the
// products in which values are squared.
#pragma once

#include "bain_attention_packing.cuh"

namespace scsco {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kOwned = 64;    // queries or keys that belong to a block
constexpr int kColumns = 64;  // of the accumulators, so channels of a block

// A block owns 64 queries and walks the keys, or the other way round. float32 takes half as many at a time, so that
// everything fits into the 64 KiB that the oldest architecture has.
template <class Kind, bool OWNS_QUERIES>
struct Cut {
  using Element = typename Kind::Element;
  static constexpr int kOther = sizeof(Element) == 2 ? 64 : 32;
  static constexpr int kQueries = OWNS_QUERIES ? kOwned : kOther;
  static constexpr int kKeys = OWNS_QUERIES ? kOther : kOwned;
  static constexpr int kWarpsM = kQueries / 16, kWarpsN = kWarps / kWarpsM;
  static constexpr int kLogitsLd = leading<Element>(kKeys);
};

__device__ __forceinline__ float squared(float x) { return x * x; }
#ifdef SCSCO_EMULATED
inline half squared(half x) { return from_float<half>(to_float(x) * to_float(x)); }
inline bfloat16 squared(bfloat16 x) { return from_float<bfloat16>(to_float(x) * to_float(x)); }
#else
__device__ __forceinline__ half squared(half x) { return __hmul(x, x); }
__device__ __forceinline__ bfloat16 squared(bfloat16 x) { return __hmul(x, x); }
#endif

// 2^x as the hardware computes it, to 2 roundings; below 2^-126 it is 0, which in no dtype is a weight.
__device__ __forceinline__ float exp2_of(float x) {
#ifdef SCSCO_EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Products with values and with their squares, which are formed where the values stand: in the registers of a fragment.
template <class Kind, int M, int N, int WARPS_M, int WARPS_N>
class MomentProduct : public TileProduct<Kind, M, N, WARPS_M, WARPS_N> {
  using Base = TileProduct<Kind, M, N, WARPS_M, WARPS_N>;
  using Element = typename Kind::Element;

 public:
  using Base::Base;

  // This += weights v and second += weights v^2, of weights [M, depth] and v [depth, N], both by rows.
  __device__ __forceinline__ void add_moments(MomentProduct& second, Shared<const Element> weights, int ldw,
                                              Shared<const Element> v, int ldv, int depth) {
    if constexpr (!available<Kind>()) {
      return;
    } else if constexpr (std::is_same_v<Kind, IEEEProduct>) {
#pragma unroll 4
      for (int k = 0; k < depth; ++k) {
        float left[Base::kRows];
#pragma unroll
        for (int i = 0; i < Base::kRows; ++i) left[i] = weights[(this->row_ + 4 * i) * ldw + k];
#pragma unroll
        for (int j = 0; j < Base::kColumns; ++j) {
          const float right = v[k * ldv + this->column_ + 8 * j], square = right * right;
#pragma unroll
          for (int i = 0; i < Base::kRows; ++i) {
            this->sums_[i][j] += left[i] * right;
            second.sums_[i][j] += left[i] * square;
          }
        }
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < depth; k += Kind::kDepth) {
        Left<wmma::row_major> left[Base::kRows];
#pragma unroll
        for (int i = 0; i < Base::kRows; ++i) {
          wmma::load_matrix_sync(left[i], weights + ((this->row_ + 16 * i) * ldw + k), ldw);
        }
#pragma unroll
        for (int j = 0; j < Base::kColumns; ++j) {
          Right<wmma::row_major> right;
          wmma::load_matrix_sync(right, v + (k * ldv + this->column_ + 16 * j), ldv);
          multiply(this->sums_, left, right, j);
          square(right);
          multiply(second.sums_, left, right, j);
        }
      }
    }
  }

  // This += a v^T + b (v^2)^T, of a and b [M, depth] and v [N, depth], all by rows.
  __device__ __forceinline__ void add_gradients(Shared<const Element> a, Shared<const Element> b, int ld,
                                                Shared<const Element> v, int ldv, int depth) {
    if constexpr (!available<Kind>()) {
      return;
    } else if constexpr (std::is_same_v<Kind, IEEEProduct>) {
#pragma unroll 4
      for (int k = 0; k < depth; ++k) {
        float first[Base::kRows], second[Base::kRows];
#pragma unroll
        for (int i = 0; i < Base::kRows; ++i) {
          first[i] = a[(this->row_ + 4 * i) * ld + k];
          second[i] = b[(this->row_ + 4 * i) * ld + k];
        }
#pragma unroll
        for (int j = 0; j < Base::kColumns; ++j) {
          const float right = v[(this->column_ + 8 * j) * ldv + k], square = right * right;
#pragma unroll
          for (int i = 0; i < Base::kRows; ++i) this->sums_[i][j] += first[i] * right + second[i] * square;
        }
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < depth; k += Kind::kDepth) {
        Left<wmma::row_major> first[Base::kRows], second[Base::kRows];
#pragma unroll
        for (int i = 0; i < Base::kRows; ++i) {
          wmma::load_matrix_sync(first[i], a + ((this->row_ + 16 * i) * ld + k), ld);
          wmma::load_matrix_sync(second[i], b + ((this->row_ + 16 * i) * ld + k), ld);
        }
#pragma unroll
        for (int j = 0; j < Base::kColumns; ++j) {
          Right<wmma::col_major> right;
          wmma::load_matrix_sync(right, v + ((this->column_ + 16 * j) * ldv + k), ldv);
          multiply(this->sums_, first, right, j);
          square(right);
          multiply(this->sums_, second, right, j);
        }
      }
    }
  }

  // This += weights^T a and second += weights^T b, of weights [depth, M], a and b [depth, N], all by rows.
  __device__ __forceinline__ void add_pair(MomentProduct& second, Shared<const Element> weights, int ldw,
                                           Shared<const Element> a, Shared<const Element> b, int ld, int depth) {
    if constexpr (!available<Kind>()) {
      return;
    } else if constexpr (std::is_same_v<Kind, IEEEProduct>) {
      this->template add<false, true>(weights, ldw, a, ld, depth);
      second.template add<false, true>(weights, ldw, b, ld, depth);
    } else {
#pragma unroll 1
      for (int k = 0; k < depth; k += Kind::kDepth) {
        Left<wmma::col_major> left[Base::kRows];
#pragma unroll
        for (int i = 0; i < Base::kRows; ++i) {
          wmma::load_matrix_sync(left[i], weights + (k * ldw + this->row_ + 16 * i), ldw);
        }
#pragma unroll
        for (int j = 0; j < Base::kColumns; ++j) {
          const int at = k * ld + this->column_ + 16 * j;
          Right<wmma::row_major> right;
          wmma::load_matrix_sync(right, a + at, ld);
          multiply(this->sums_, left, right, j);
          wmma::load_matrix_sync(right, b + at, ld);
          multiply(second.sums_, left, right, j);
        }
      }
    }
  }

 private:
  template <class Layout, class K = Kind>
  using Left = wmma::fragment<wmma::matrix_a, 16, 16, K::kDepth, typename K::Operand, Layout>;
  template <class Layout, class K = Kind>
  using Right = wmma::fragment<wmma::matrix_b, 16, 16, K::kDepth, typename K::Operand, Layout>;

  template <class Fragment>
  __device__ __forceinline__ static void square(Fragment& fragment) {
#pragma unroll
    for (int e = 0; e < Fragment::num_elements; ++e) {
      if constexpr (std::is_same_v<Element, float>) {
        fragment.x[e] = Kind::element(squared(fragment.x[e]));
      } else {
        fragment.x[e] = squared(fragment.x[e]);
      }
    }
  }

  template <class Accumulators, class LeftFragments, class RightFragment>
  __device__ __forceinline__ static void multiply(Accumulators& sums, const LeftFragments& left,
                                                  const RightFragment& right, int j) {
#pragma unroll
    for (int i = 0; i < Base::kRows; ++i) wmma::mma_sync(sums[i][j], left[i], right, sums[i][j]);
  }
};

// Queries by keys.
template <class Kind, bool OWNS_QUERIES, class C = Cut<Kind, OWNS_QUERIES>>
using Logits = MomentProduct<Kind, C::kQueries, C::kKeys, C::kWarpsM, C::kWarpsN>;

// 64 queries or keys by 64 columns: a warp owns 16 whole rows.
template <class Kind>
using Sums = MomentProduct<Kind, kOwned, kColumns, kWarps, 1>;

// ---------------------------------------------------------------------------------------------------------------------
// Rows on their way to shared memory: on sm_80 and later they arrive while the block computes.

// 16 bytes, or zeros where not `inside`.
template <class Element>
__device__ __forceinline__ void copy_16_bytes(Shared<Element> to, Global<const Element> from, bool inside) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(inside ? 16 : 0)
      : "memory");
#else
  constexpr int V = 16 / sizeof(Element);
  Vector<Element, V> values{};
  if (inside) values = load<V>(from);
  store(to, values);
#endif
}

// Everything that this thread asked for has arrived; others see it after __syncthreads.
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Fills a tile of `rows` x `columns`, a multiple of 16 columns, from packed rows of `width`. Rows from `left` on, which
// may hold anything, are not read and become 0.
template <class Element>
__device__ __forceinline__ void copy_rows(Shared<Element> tile, int ld, int rows, int columns,
                                          Global<const Element> from, int width, int left) {
  constexpr int V = 16 / sizeof(Element);
  const int groups = columns / V, thread = threadIdx.x;
  const int row_step = kThreads / groups, group_step = kThreads % groups;
  int row = thread / groups, group = thread % groups;
  while (row < rows) {
    const bool inside = row < left;
    copy_16_bytes<Element>(tile + (row * ld + group * V), from + (inside ? int64_t(row) * width + group * V : 0),
                           inside);
    row += row_step;
    group += group_step;
    if (group >= groups) {
      group -= groups;
      ++row;
    }
  }
}

__host__ __device__ constexpr int round_up(int value, int to) { return (value + to - 1) / to * to; }

// The part of `rows` rows that a product has to sum over: those past `left` are 0.
__device__ __forceinline__ int depth_of(int rows, int left) { return left < rows ? round_up(left, 16) : rows; }

// Packed rows from some row and column on, of which `left` may be read.
template <class Element>
struct Rows {
  Global<const Element> data;
  int left, width;

  __device__ __forceinline__ Rows from(int row) const { return {data + int64_t(row) * width, left - row, width}; }
  __device__ __forceinline__ void copy(Shared<Element> tile, int ld, int rows, int column, int columns) const {
    copy_rows<Element>(tile, ld, rows, columns, data + column, width, left);
  }
};

// logits += q k^T. Where the tiles hold all columns they must have arrived; else they are filled here, chunk by chunk,
// and nobody may still read them.
template <class Kind, bool OWNS_QUERIES>
__device__ __forceinline__ void add_logits(Logits<Kind, OWNS_QUERIES>& logits, Shared<typename Kind::Element> q_tile,
                                           Shared<typename Kind::Element> k_tile, int ld,
                                           const Rows<typename Kind::Element>& q, const Rows<typename Kind::Element>& k,
                                           bool whole, int chunk) {
  using C = Cut<Kind, OWNS_QUERIES>;
  for (int column = 0; column < q.width; column += chunk) {
    const int columns = min(chunk, q.width - column);
    if (!whole) {
      if (column > 0) __syncthreads();
      q.copy(q_tile, ld, C::kQueries, column, columns);
      k.copy(k_tile, ld, C::kKeys, column, columns);
      wait_for_copies();
      __syncthreads();
    }
    logits.template add<true, false>(q_tile, ld, k_tile, ld, columns);
  }
}

// The most columns of `width`, all or a multiple of `step`, with which bytes(columns) stays within `shared`.
template <class Bytes>
int fit(int width, int step, int64_t shared, const Bytes& bytes) {
  int columns = width;
  while (columns > step && static_cast<int64_t>(bytes(columns)) > shared) columns = round_up(columns, step) - step;
  return columns;
}

}  // namespace
}  // namespace scsco
