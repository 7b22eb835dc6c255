// nvcuda::wmma: products of 16 x 16 tiles by a warp, whose 32 lanes hold the elements of a fragment between them.
//
// Which lane holds which element is unspecified on a GPU; here it is element 32 i + lane in x[i].
#pragma once

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
}  // namespace precision
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns / 32;
  using element_type = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;
  using storage_element_type = element_type;
  element_type x[num_elements];
};

// The ten bits of mantissa that tensor cores read, rounded to nearest, ties away from zero.
inline float __float_to_tf32(float value) {
  const int bits = __float_as_int(value);
  if ((bits & 0x7f800000) == 0x7f800000) return value;
  return __int_as_float((bits + 0x1000) & ~0x1fff);
}

namespace detail {

using emulation::Location;
using emulation::machine;

// An operand as the tensor cores see it.
template <class T>
float operand(float value) {
  return std::is_same_v<T, precision::tf32> ? __int_as_float(__float_as_int(value) & ~0x1fff) : value;
}
template <class T>
float operand(__half value) {
  return __half2float(value);
}
template <class T>
float operand(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <class Pointer>
void arrive(const char* name, Pointer at, unsigned stride, size_t element, const Location& where) {
  struct Lane {
    Pointer at;
    unsigned stride;
  } mine{at, stride};
  if (!at.aligned_to(32) || stride * element % 16 != 0) {
    machine.fail(std::string(name) + " from an address that 32 does not divide, or with a stride of " +
                 std::to_string(stride * element) + " bytes, which 16 does not divide");
  }
  machine.collective(name, emulation::kFullMask, &mine, where, [name](void** lanes) {
    const Lane& first = *static_cast<Lane*>(lanes[0]);
    for (int i = 1; i < 32; ++i) {
      const Lane& other = *static_cast<Lane*>(lanes[i]);
      if (!(other.at == first.at) || other.stride != first.stride) {
        machine.fail(std::string(name) + " with another address or stride than lane 0's in lane " + std::to_string(i));
      }
    }
  });
}

template <class Fragment>
int64_t offset(int i, unsigned stride, bool by_rows) {
  const int element = 32 * i + static_cast<int>(machine.lane());
  const int row = element / Fragment::columns, column = element % Fragment::columns;
  return by_rows ? int64_t(row) * stride + column : int64_t(column) * stride + row;
}

template <class Fragment, class Pointer>
void load(Fragment& to, Pointer from, unsigned stride, bool by_rows, const Location& where) {
  arrive("load_matrix_sync", from, stride, sizeof(typename Fragment::element_type), where);
  for (int i = 0; i < Fragment::num_elements; ++i) to.x[i] = from[offset<Fragment>(i, stride, by_rows)];
}

}  // namespace detail

template <class Use, int M, int N, int K, class T, class Layout, class Pointer>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& to, Pointer from, unsigned stride,
                      detail::Location where = detail::Location::current()) {
  detail::load(to, from, stride, std::is_same_v<Layout, row_major>, where);
}

template <int M, int N, int K, class Pointer>
void load_matrix_sync(fragment<accumulator, M, N, K, float>& to, Pointer from, unsigned stride, layout_t layout,
                      detail::Location where = detail::Location::current()) {
  detail::load(to, from, stride, layout == mem_row_major, where);
}

// What other lanes wrote is visible after __syncwarp only, as on a GPU.
template <int M, int N, int K, class Pointer>
void store_matrix_sync(Pointer to, const fragment<accumulator, M, N, K, float>& from, unsigned stride, layout_t layout,
                       detail::Location where = detail::Location::current()) {
  using Fragment = fragment<accumulator, M, N, K, float>;
  detail::arrive("store_matrix_sync", to, stride, sizeof(float), where);
  for (int i = 0; i < Fragment::num_elements; ++i) {
    to[detail::offset<Fragment>(i, stride, layout == mem_row_major)] = from.x[i];
  }
}

template <class Fragment, class T>
void fill_fragment(Fragment& fragment, const T& value) {
  for (auto& element : fragment.x) element = value;
}

template <int M, int N, int K, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c,
              detail::Location where = detail::Location::current()) {
  struct Lane {
    fragment<accumulator, M, N, K, float>* d;
    const fragment<matrix_a, M, N, K, T, LayoutA>* a;
    const fragment<matrix_b, M, N, K, T, LayoutB>* b;
    const fragment<accumulator, M, N, K, float>* c;
  } mine{&d, &a, &b, &c};
  emulation::machine.collective("mma_sync", emulation::kFullMask, &mine, where, [](void** lanes) {
    float left[M * K], right[K * N], sum[M * N];
    for (int lane = 0; lane < 32; ++lane) {
      const Lane& from = *static_cast<Lane*>(lanes[lane]);
      for (int i = 0; i < M * K / 32; ++i) left[32 * i + lane] = detail::operand<T>(from.a->x[i]);
      for (int i = 0; i < K * N / 32; ++i) right[32 * i + lane] = detail::operand<T>(from.b->x[i]);
      for (int i = 0; i < M * N / 32; ++i) sum[32 * i + lane] = from.c->x[i];
    }
    for (int m = 0; m < M; ++m) {
      for (int k = 0; k < K; ++k) {
        for (int n = 0; n < N; ++n) sum[m * N + n] += left[m * K + k] * right[k * N + n];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Lane*>(lanes[lane])->d;
      for (int i = 0; i < M * N / 32; ++i) to.x[i] = sum[32 * i + lane];
    }
  });
}

}  // namespace nvcuda::wmma
