// What the Gram operations share: products of 64 x 64 whose operands stand in shared memory while their successors are
// on their way from global memory in registers.
#pragma once

#include <cstring>

#include "products.cuh"

namespace scsco {

constexpr int kTile = 64;             // rows and columns of the product that a block computes
constexpr int kProductThreads = 128;  // 2 x 2 warps
constexpr int kProductBlocks = 3;     // of a multiprocessor, at least: 168 registers a thread
template <class Kind>
constexpr int kDepth = 128 / static_cast<int>(sizeof(typename Kind::Element));  // summed at once
constexpr int kStageLd = kTile + 4;

template <class Kind>
using Sums = TileProduct<Kind, kTile, kTile, 2, 2>;

// One matrix of a batch. A row's elements lie together and can be read 16 bytes at once: `columns` are a multiple.
template <class T>
struct Matrix {
  Global<const T> data;
  int64_t row_stride, batch_stride;
  int64_t rows, columns;

  __device__ __forceinline__ Matrix of(int64_t image) const {
    Matrix own = *this;
    own.data += image * batch_stride;
    return own;
  }
};

// 16 bytes of elements of 1, 2 or 4 bytes, held as words: element by element each would take a register of its own.
template <class T>
class Packed {
 public:
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));

  Packed() = default;
  __device__ __forceinline__ explicit Packed(const Vector<T, kElements>& values) {
    std::memcpy(&words_, &values, sizeof words_);
  }
  __device__ __forceinline__ Vector<T, kElements> values() const {
    Vector<T, kElements> values;
    std::memcpy(&values, &words_, sizeof values);
    return values;
  }

 private:
  Vector<uint32_t, 4> words_{};
};

// A thread's share of a tile of ROWS x COLUMNS of a matrix: vectors of 16 bytes, neighbouring threads along a row.
template <class T, int ROWS, int COLUMNS>
struct Share {
  static constexpr int kVector = Packed<T>::kElements;
  static constexpr int kInRow = COLUMNS / kVector;
  static constexpr int kRowStep = kProductThreads / kInRow;
  static constexpr int kVectors = ROWS / kRowStep;
  static_assert(kInRow * kRowStep == kProductThreads && kVectors * kRowStep == ROWS, "threads hold as much each");
  using Values = Vector<T, kVector>;

  Packed<T> packed[kVectors];

  __device__ __forceinline__ static int row(int i) { return static_cast<int>(threadIdx.x) / kInRow + i * kRowStep; }
  __device__ __forceinline__ static int column() { return static_cast<int>(threadIdx.x) % kInRow * kVector; }

  // Reads the tile at [first_row, first_column]; 0 outside the matrix.
  __device__ __forceinline__ void fetch(const Matrix<T>& matrix, int64_t first_row, int64_t first_column) {
    const int64_t r = first_row + row(0), c = first_column + column();
    Global<const T> at = matrix.data + (r * matrix.row_stride + c);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      packed[i] = Packed<T>();
      if (r + i * kRowStep < matrix.rows && c < matrix.columns) packed[i] = Packed<T>(load<kVector>(at));
      at += kRowStep * matrix.row_stride;
    }
  }

  // Writes elements(i), kVector operands that stand for packed[i], to the tile in shared memory.
  template <class Element, class Elements>
  __device__ __forceinline__ void put(Shared<Element> tile, const Elements& elements) const {
    constexpr int kWritten = kGroup<Element>;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const Vector<Element, kVector> all = elements(i);
#pragma unroll
      for (int first = 0; first < kVector; first += kWritten) {
        Vector<Element, kWritten> out;
#pragma unroll
        for (int v = 0; v < kWritten; ++v) out[v] = all[first + v];
        store(tile + place_in_tile<Element, ROWS>(row(i), column() + first), out);
      }
    }
  }
};

// A number of a map as an operand.
template <class Kind, class T>
__device__ __forceinline__ typename Kind::Element operand(T value) {
  if constexpr (std::is_same_v<T, typename Kind::Element> && !std::is_same_v<Kind, TF32Product>) {
    return value;
  } else {
    return Kind::element(to_float(value));
  }
}

// A tile of a map in shared memory: CHANNELS x PIXELS, or its transpose where the map's channels lie together.
template <class Kind, int CHANNELS, int PIXELS, bool CHANNELS_LAST>
struct MapTile {
  using Element = typename Kind::Element;
  static constexpr int kRows = CHANNELS_LAST ? PIXELS : CHANNELS, kColumns = CHANNELS_LAST ? CHANNELS : PIXELS;
  static constexpr int64_t kElements = tile_size<Element>(kRows, kColumns);

  struct Share : scsco::Share<Element, kRows, kColumns> {
    __device__ __forceinline__ void fetch(const Matrix<Element>& map, int64_t channel, int64_t pixel) {
      scsco::Share<Element, kRows, kColumns>::fetch(map, CHANNELS_LAST ? pixel : channel,
                                                    CHANNELS_LAST ? channel : pixel);
    }
  };

  __device__ __forceinline__ static void put(Shared<Element> tile, const Share& share) {
    share.put(tile, [&](int i) {
      auto values = share.packed[i].values();
#pragma unroll
      for (int v = 0; v < Share::kVector; ++v) values[v] = operand<Kind>(values[v]);
      return values;
    });
  }
};

// For index in [first, last): fetch(index), put(), multiply(), where a fetch travels while its predecessor is
// multiplied. All threads of the block call it, with the same indices; put() and multiply() share memory.
template <class Fetch, class Put, class Multiply>
__device__ __forceinline__ void pipeline(int64_t first, int64_t last, const Fetch& fetch, const Put& put,
                                         const Multiply& multiply) {
  if (first < last) fetch(first);
  for (int64_t index = first; index < last; ++index) {
    __syncthreads();
    put();
    __syncthreads();
    if (index + 1 < last) fetch(index + 1);
    multiply();
  }
}

// Writes value(m, n, sum) for every sum to a contiguous matrix rows x columns, of which the product's first is
// [first_row, first_column]. `stage` holds kTile * kStageLd floats: neighbouring threads write neighbouring columns.
template <class T, class Product, class Value>
__device__ __forceinline__ void store_sums(const Product& sums, Shared<float> stage, Global<T> out, int64_t rows,
                                           int64_t columns, int64_t first_row, int64_t first_column,
                                           const Value& value) {
  constexpr int V = 16 / static_cast<int>(sizeof(T));
  sums.store(stage, kStageLd);
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile / V; i += kProductThreads) {
    const int m = i / (kTile / V), n = i % (kTile / V) * V;
    const int64_t row = first_row + m, column = first_column + n;
    if (row >= rows || column >= columns) continue;
    Vector<T, V> values;
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = value(m, n + v, float(stage[m * kStageLd + n + v]));
    if (columns % V == 0) {
      store(out + (row * columns + column), values);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (column + v < columns) out[row * columns + column + v] = values[v];
      }
    }
  }
  __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------------

// The foreground of an image, one byte a pixel; absent: every pixel.
struct Mask {
  Global<const byte> data;
  int64_t stride_b, stride_n;
  bool vectors;  // 16 bytes can be read at once

  __device__ __forceinline__ Mask of(int64_t image) const {
    Mask own = *this;
    if (data) own.data += image * stride_b;
    return own;
  }
};

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

inline Mask mask_of(const std::optional<Tensor>& mask) {
  if (!mask) return {{}, 0, 0, false};
  const bool vectors = mask->stride(1) == 1 && mask->size(1) % 16 == 0 &&
                       (mask->size(0) == 1 || mask->stride(0) % 16 == 0) && is_aligned(*mask);
  return {global<const byte>(mask), mask->stride(0), mask->stride(1), vectors};
}

// Whether a map (B, ..., C, N) can be read 16 bytes at once along its pixels, or along its channels.
inline bool holds_vectors(const Tensor& map, bool channels_last) {
  const int64_t fast = map.dim() - (channels_last ? 2 : 1);
  const int64_t vector = map.scalar_type() == ScalarType::Float ? 4 : 8;
  bool holds = map.stride(fast) == 1 && map.size(fast) % vector == 0 && is_aligned(map);
  for (int64_t i = 0; i < map.dim(); ++i) {
    holds = holds && (i == fast || map.size(i) == 1 || map.stride(i) % vector == 0);
  }
  return holds;
}

// A map that can be read 16 bytes at once along its pixels: itself, or a copy whose rows end with zeros.
Tensor in_vectors(const Tensor& map);

// The matrix channels x pixels of a map that holds vectors, or its transpose.
template <class T>
Matrix<T> matrix_of(const Tensor& map, bool channels_last) {
  const int64_t slow = map.dim() - (channels_last ? 1 : 2), fast = map.dim() - (channels_last ? 2 : 1);
  return {global<const T>(map), map.stride(slow), map.stride(0), map.size(slow), map.size(fast)};
}

// Calls function(Type<Kind>(), std::bool_constant<CHANNELS_LAST>()).
template <class Function>
void dispatch_gram(ScalarType dtype, bool tf32, bool channels_last, const Function& function) {
  dispatch_product(dtype, tf32, [&](auto kind) {
    if (channels_last) return function(kind, std::true_type());
    function(kind, std::false_type());
  });
}

inline int64_t tiles_of(int64_t size) { return ceil_div(size, int64_t(kTile)); }

// grad F / (H W) for every image, or (grad + grad^T) F / (H W), and 0 outside the mask: (B, rows, N) contiguous in the
// dtype of the features (B, C, N); grad (B, rows, C) float32.
Tensor times_features(const Tensor& grad, const Tensor& features, const std::optional<Tensor>& mask, bool symmetric,
                      bool tf32);

}  // namespace scsco
