// How a warp multiplies: tiles in shared memory, fragments of them in registers, one instruction for two fragments.
//
// `Kind` says how numbers are multiplied: HalfProduct, BFloat16Product and TF32Product by mma.sync on tensor cores,
// IEEEProduct in float32 by fused multiply-adds of the same fragments. A product of fragments is 16 x 8 sums, of which
// a lane holds [g, 2t], [g, 2t + 1], [g + 8, 2t] and [g + 8, 2t + 1] with g = lane / 4 and t = lane % 4. Because that
// is known, sums become the left operand of the next product where they are, in registers.
#pragma once

#include "tiles.cuh"

namespace scsco {

struct HalfProduct {
  using Element = half;  // in shared memory
  static constexpr int kDepth = 16;
  static constexpr int kCapability = 75;
  __device__ __forceinline__ static Element element(float value) { return from_float<half>(value); }
};

struct BFloat16Product {
  using Element = bfloat16;
  static constexpr int kDepth = 16;
  static constexpr int kCapability = 80;
  __device__ __forceinline__ static Element element(float value) { return from_float<bfloat16>(value); }
};

struct TF32Product {
  using Element = float;
  static constexpr int kDepth = 8;
  static constexpr int kCapability = 80;
  // Rounded here, for tensor cores cut the low bits off.
  __device__ __forceinline__ static Element element(float value) {
#ifdef SCSCO_EMULATED
    return emulation::round_to_tf32(value);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return value;
#else
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return __uint_as_float(rounded);
#endif
  }
};

struct IEEEProduct {
  using Element = float;
  static constexpr int kDepth = 8;
  static constexpr int kCapability = 75;
  __device__ __forceinline__ static Element element(float value) { return value; }
};

template <class Kind>
constexpr bool kIsHalf = sizeof(typename Kind::Element) == 2;
template <class Kind>
constexpr bool kIsIEEE = std::is_same_v<Kind, IEEEProduct>;

// Whether the architecture that is being compiled for has a kind of product. Kernels for another kind are compiled to
// nothing; Python refuses what would launch them (`serves` in build.py, `_unfit` in __init__.py).
template <class Kind>
__device__ constexpr bool available() {
#if defined(__CUDA_ARCH__)
  return __CUDA_ARCH__ >= Kind::kCapability * 10;
#else
  return true;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Fragments. Their depth is Kind::kDepth.

// 16 rows of a left operand. IEEE: every lane has all of rows g and g + 8.
template <class Kind>
struct Left {
  uint32_t words[4];
};
template <>
struct Left<IEEEProduct> {
  float values[2][8];
};

// 8 columns of a right operand. IEEE: every lane has all of columns 2t and 2t + 1.
template <class Kind>
struct Right {
  uint32_t words[2];
};
template <>
struct Right<IEEEProduct> {
  float values[2][8];
};

// sums += left right.
template <class Kind>
__device__ __forceinline__ void multiply(float (&sums)[4], const Left<Kind>& left, const Right<Kind>& right
#ifdef SCSCO_EMULATED
                                         ,
                                         emulation::Location where = emulation::Location::current()
#endif
) {
  if constexpr (!available<Kind>()) {
    return;
  } else if constexpr (kIsIEEE<Kind>) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += left.values[i / 2][k] * right.values[i % 2][k];
    }
  } else {
#ifdef SCSCO_EMULATED
    emulation::multiply_fragments<typename Kind::Element>(sums, left.words, right.words, where);
#else
    const uint32_t (&a)[4] = left.words, (&b)[2] = right.words;
    if constexpr (std::is_same_v<Kind, BFloat16Product>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else if constexpr (std::is_same_v<Kind, TF32Product>) {
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // half the depth at a time
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
      }
#else
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
#endif
  }
}

__device__ __forceinline__ uint32_t bits_of(float value) { return static_cast<uint32_t>(__float_as_int(value)); }

// Two numbers of 16 bits in a word, the first below. Rounded in one instruction; one at a time would take four, of
// which two wait for the unit that exp2 needs.
#ifdef SCSCO_EMULATED
template <class Element>
uint32_t round_pair(float low, float high) {
  return from_float<Element>(low).bits | uint32_t(from_float<Element>(high).bits) << 16;
}
template <class Element>
uint32_t square_pair(uint32_t word) {
  float x[2];
  emulation::unpack<Element>(word, x);
  return round_pair<Element>(x[0] * x[0], x[1] * x[1]);
}
#else
template <class Element>
using Pair = std::conditional_t<std::is_same_v<Element, half>, __half2, __nv_bfloat162>;
template <class Element>
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  Pair<Element> pair;
  if constexpr (std::is_same_v<Element, half>) {
    pair = __floats2half2_rn(low, high);
  } else {
    pair = __floats2bfloat162_rn(low, high);
  }
  return reinterpret_cast<const uint32_t&>(pair);
}
template <class Element>
__device__ __forceinline__ uint32_t square_pair(uint32_t word) {
  const auto pair = reinterpret_cast<const Pair<Element>&>(word);
  const Pair<Element> square = __hmul2(pair, pair);
  return reinterpret_cast<const uint32_t&>(square);
}
#endif

// Neighbouring numbers, rounded.
template <class Kind, int N>
__device__ __forceinline__ Vector<typename Kind::Element, N> rounded(const float (&values)[N]) {
  using Element = typename Kind::Element;
  Vector<Element, N> out;
  if constexpr (kIsHalf<Kind>) {
    uint32_t words[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) words[i] = round_pair<Element>(values[2 * i], values[2 * i + 1]);
    std::memcpy(&out, words, sizeof out);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = Kind::element(values[i]);
  }
  return out;
}

// Every number squared and rounded.
template <class Kind, template <class> class Fragment>
__device__ __forceinline__ Fragment<Kind> squared(const Fragment<Kind>& from) {
  Fragment<Kind> to;
  if constexpr (kIsIEEE<Kind>) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < 8; ++k) to.values[i][k] = from.values[i][k] * from.values[i][k];
    }
  } else {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(from.words) / 4); ++i) {
      if constexpr (kIsHalf<Kind>) {
        to.words[i] = square_pair<typename Kind::Element>(from.words[i]);
      } else {
        const float x = __int_as_float(static_cast<int>(from.words[i]));
        to.words[i] = bits_of(Kind::element(x * x));
      }
    }
  }
  return to;
}

// Adds the sums of rows g and g + 8 to totals[0] and totals[2], of numbers as they are rounded: a product with ones,
// which costs one instruction where adding them up would cost twelve.
template <class Kind>
__device__ __forceinline__ void add_row_sums(float (&totals)[4], const Left<Kind>& left) {
  if constexpr (kIsIEEE<Kind>) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float four[4];  // in pairs: one after the other, hundreds of numbers would lose two bits
#pragma unroll
      for (int k = 0; k < 4; ++k) four[k] = left.values[r][k] + left.values[r][k + 4];
      totals[2 * r] += (four[0] + four[2]) + (four[1] + four[3]);
    }
  } else {
    uint32_t one;
    if constexpr (kIsHalf<Kind>) {
      one = round_pair<typename Kind::Element>(1, 1);
    } else {
      one = bits_of(1);
    }
    multiply(totals, left, Right<Kind>{{one, one}});
  }
}

// Columns of sums as the left operand of the next product, rounded. A lane of a float32 fragment wants columns t and
// t + 4 and has 2t and 2t + 1: the columns are taken in that order, and so must be the rows of the right operand
// (RightColumns with PAIRED).
template <class Kind, int N>
__device__ __forceinline__ Left<Kind> left_of(const float (&sums)[N][4], int step) {
  Left<Kind> left;
  static_assert(!kIsIEEE<Kind>, "a lane has not all columns of its rows");
  if constexpr (kIsHalf<Kind>) {
    using Element = typename Kind::Element;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&own)[4] = sums[2 * step + i / 2];
      left.words[i] = round_pair<Element>(own[i % 2 * 2], own[i % 2 * 2 + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) left.words[i] = bits_of(Kind::element(sums[step][i % 2 * 2 + i / 2]));
  }
  return left;
}

// ---------------------------------------------------------------------------------------------------------------------
// Fragments of tiles. A matrix lies by rows if the elements that are multiplied with each other, its depth, lie side by
// side: [m, k] of a left operand, [n, k] of a right one; by columns otherwise. `panel` counts panels of ROWS rows.

// Left operands by rows: 16 rows of the tile from `row` on.
template <class Kind, int ROWS>
class LeftRows {
  using Element = typename Kind::Element;

 public:
  __device__ __forceinline__ LeftRows(Shared<const Element> tile, int row)
      : lane_(tile, row + own_row(), own_column()) {}

  // Of rows 16 i and on, in the step-th 32 bytes of a panel.
  __device__ __forceinline__ Left<Kind> load(int panel, int step, int i = 0) const {
    const int ahead = (panel * ROWS + 16 * i) * kPanel<Element>, flip = step * Kind::kDepth;
    Left<Kind> left;
    if constexpr (kIsIEEE<Kind>) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const auto four = scsco::load<4>(lane_.at(flip ^ v % 2 * 4, ahead + v / 2 * 8 * kPanel<Element>));
#pragma unroll
        for (int k = 0; k < 4; ++k) left.values[v / 2][v % 2 * 4 + k] = four[k];
      }
    } else {
      load_matrices<false>(left.words, lane_, flip, ahead);
    }
    return left;
  }

 private:
  __device__ __forceinline__ static int own_row() {
    const int lane = threadIdx.x % kWarp;
    return kIsIEEE<Kind> ? lane / 4 : lane % 16;
  }
  __device__ __forceinline__ static int own_column() {
    return kIsIEEE<Kind> ? 0 : static_cast<int>(threadIdx.x) % kWarp / 16 * kGroup<Element>;
  }

  LanePlace<Element> lane_;
};

// Right operands by rows: the product's columns are the tile's rows from `row` on.
template <class Kind, int ROWS>
class RightRows {
  using Element = typename Kind::Element;

 public:
  __device__ __forceinline__ RightRows(Shared<const Element> tile, int row = 0)
      : first_(tile, row + own_row(), own_column()), second_(tile, row + own_row() + 1, own_column()) {}

  // Columns 16 j and on of the product, 8 in each fragment.
  __device__ __forceinline__ void load(Right<Kind> (&right)[2], int panel, int step, int j) const {
    const int ahead = (panel * ROWS + 16 * j) * kPanel<Element>, flip = step * Kind::kDepth;
    if constexpr (kIsIEEE<Kind>) {
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        const LanePlace<Element>& lane = v % 2 ? second_ : first_;
        const auto four = scsco::load<4>(lane.at(flip ^ v / 2 % 2 * 4, ahead + v / 4 * 8 * kPanel<Element>));
#pragma unroll
        for (int k = 0; k < 4; ++k) right[v / 4].values[v % 2][v / 2 % 2 * 4 + k] = four[k];
      }
    } else {
      uint32_t words[4];
      load_matrices<false>(words, first_, flip, ahead);
#pragma unroll
      for (int i = 0; i < 4; ++i) right[i / 2].words[i % 2] = words[i];
    }
  }

 private:
  __device__ __forceinline__ static int own_row() {
    const int lane = threadIdx.x % kWarp;
    return kIsIEEE<Kind> ? lane % 4 * 2 : lane % 8 + lane / 16 * 8;
  }
  __device__ __forceinline__ static int own_column() {
    return kIsIEEE<Kind> ? 0 : static_cast<int>(threadIdx.x) % kWarp / 8 % 2 * kGroup<Element>;
  }

  LanePlace<Element> first_, second_;  // the second of IEEE only
};

// Right operands by columns: the product's columns are the tile's columns from `column` on, as many as divide `column`.
// PAIRED: the left operand comes from `left_of`.
template <class Kind, int ROWS, bool PAIRED>
class RightColumns {
  using Element = typename Kind::Element;

 public:
  __device__ __forceinline__ explicit RightColumns(Shared<const Element> tile, int column = 0)
      : first_(panel_of<ROWS, Element>(tile, column), own_row(0), column % kPanel<Element> + own_column()),
        second_(panel_of<ROWS, Element>(tile, column), own_row(1), column % kPanel<Element> + own_column()) {}

  // The tile's rows from `row`, a multiple of the depth, on; columns 16 j and on.
  __device__ __forceinline__ void load(Right<Kind> (&right)[2], int row, int j) const {
    constexpr int kInPanel = kPanel<Element> / 16;
    const int ahead = (j / kInPanel * ROWS + row) * kPanel<Element>, flip = j % kInPanel * 16;
    if constexpr (kIsIEEE<Kind>) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const auto two = scsco::load<2>(first_.at((flip + 8 * n) ^ k * 4, ahead + k * kPanel<Element>));
          right[n].values[0][k] = two[0];
          right[n].values[1][k] = two[1];
        }
      }
    } else if constexpr (kIsHalf<Kind>) {
      uint32_t words[4];
      load_matrices<true>(words, first_, flip, ahead);
#pragma unroll
      for (int i = 0; i < 4; ++i) right[i / 2].words[i % 2] = words[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const LanePlace<Element>& lane = i % 2 ? second_ : first_;
        right[i / 2].words[i % 2] = bits_of(*lane.at(flip + i / 2 * 8, ahead));
      }
    }
  }

 private:
  __device__ __forceinline__ static int own_row(int word) {
    const int lane = threadIdx.x % kWarp;
    if (kIsIEEE<Kind>) return 0;
    if (kIsHalf<Kind>) return lane % 16;
    return PAIRED ? lane % 4 * 2 + word : lane % 4 + 4 * word;
  }
  __device__ __forceinline__ static int own_column() {
    const int lane = threadIdx.x % kWarp;
    return kIsIEEE<Kind> ? lane % 4 * 2 : kIsHalf<Kind> ? lane / 16 * 8 : lane / 4;
  }

  LanePlace<Element> first_, second_;  // the second of TF32 only
};

// Left operands by columns: the product's rows are the tile's columns from `column` on, as many as divide `column`.
template <class Kind, int ROWS>
class LeftColumns {
  using Element = typename Kind::Element;

 public:
  __device__ __forceinline__ explicit LeftColumns(Shared<const Element> tile, int column = 0)
      : first_(panel_of<ROWS, Element>(tile, column), own_row(0), column % kPanel<Element> + own_column()),
        second_(panel_of<ROWS, Element>(tile, column), own_row(1), column % kPanel<Element> + own_column()) {}

  // The tile's rows from `row`, a multiple of the depth, on; rows 16 i and on of the product.
  __device__ __forceinline__ Left<Kind> load(int row, int i) const {
    constexpr int kInPanel = kPanel<Element> / 16;
    const int ahead = (i / kInPanel * ROWS + row) * kPanel<Element>, flip = i % kInPanel * 16;
    Left<Kind> left;
    if constexpr (kIsIEEE<Kind>) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          left.values[r][k] = *first_.at((flip + 8 * r) ^ k * 4, ahead + k * kPanel<Element>);
        }
      }
    } else if constexpr (kIsHalf<Kind>) {
      load_matrices<true>(left.words, first_, flip, ahead);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        left.words[v] = bits_of(*(v / 2 ? second_ : first_).at(flip + v % 2 * 8, ahead));
      }
    }
    return left;
  }

 private:
  __device__ __forceinline__ static int own_row(int word) {
    const int lane = threadIdx.x % kWarp;
    if (kIsIEEE<Kind>) return 0;
    return kIsHalf<Kind> ? lane % 8 + lane / 16 * 8 : lane % 4 + 4 * word;
  }
  __device__ __forceinline__ static int own_column() {
    const int lane = threadIdx.x % kWarp;
    return kIsHalf<Kind> ? lane / 8 % 2 * 8 : lane / 4;
  }

  LanePlace<Element> first_, second_;  // the second of TF32 only
};

}  // namespace scsco
