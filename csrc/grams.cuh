// What the Gram operations share: products of square tiles whose operands travel from global to shared memory while
// their predecessors are multiplied.
//
// Operands travel in copies of 16 bytes that bypass the registers. What has to be done to them on the way (masking,
// rounding to TF32, subtracting) does the thread that copied them, in place, when they have arrived and before the
// others see them: one barrier a step serves all.
#pragma once

#include <cstring>

#include "products.cuh"

namespace scsco {

// Rows and columns of the product that a block computes. A wide tile reads half as much for each product, but would be
// half empty with 64 channels.
constexpr int kNarrowTile = 64, kWideTile = 128;
constexpr int kStages = 2;       // of operands in shared memory: one is multiplied, one is on its way
constexpr int kMostSplits = 32;  // of a product's depth
template <class Kind>
constexpr int kStepDepth = kRowBytes / static_cast<int>(sizeof(typename Kind::Element));  // multiplied at once

template <int TILE>
constexpr int kGramThreads = 2 * TILE;
// Of a multiprocessor, at least: 128 registers a thread; 168 for float32 products, whose fragments are larger.
template <class Kind, int TILE>
constexpr int kGramBlocks = kIsIEEE<Kind> ? 3 : TILE == kWideTile ? 2 : 4;
// Of kernels with a second tile of sums: 255 or 168 registers.
template <class Kind, int TILE>
constexpr int kTwoSumsBlocks = TILE == kWideTile ? 1 : kIsIEEE<Kind> ? 2 : 3;
// Thread blocks among which a product is split: for each of an H100's 132 multiprocessors as many as run at once.
inline int64_t wanted_blocks(int tile) { return tile == kWideTile ? 264 : 528; }

// Steps of a tensor core's depth that are unrolled: all four of a wide tile would take up to 40 registers more, and
// spill.
template <class Kind, int TILE>
constexpr int kUnrolled = TILE == kWideTile ? 1 : kStepDepth<Kind> / Kind::kDepth;

// Whether the architecture that is being compiled for runs a kernel that needs more than sm_75's 64 KB for wide tiles.
template <class Kind, int TILE>
__device__ constexpr bool available_in() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return available<Kind>() && TILE == kNarrowTile;
#else
  return available<Kind>();
#endif
}

// A warp has 32 x 32 or 32 x 64 sums.
template <class Kind, int TILE>
using GramProduct = TileProduct<Kind, TILE, TILE, TILE / 32, 2>;

// One matrix of a batch. A row's elements lie together and can be read 16 bytes at once: `columns` are a multiple.
template <class T>
struct StridedMatrix {
  Global<const T> data;
  int64_t row_stride, batch_stride;
  int rows, columns;

  __device__ __forceinline__ StridedMatrix of(int64_t image) const {
    StridedMatrix own = *this;
    own.data += image * batch_stride;
    return own;
  }
};

// 16 bytes of elements of 1, 2 or 4 bytes.
using Words = Vector<uint32_t, 4>;

template <class T>
__device__ __forceinline__ Words load_words(Shared<T> from) {
  const auto values = load<kGroup<T>>(from);
  Words words;
  std::memcpy(&words, &values, sizeof words);
  return words;
}

template <class T>
__device__ __forceinline__ void store_words(Shared<T> to, const Words& words) {
  Vector<T, kGroup<T>> values;
  std::memcpy(&values, &words, sizeof words);
  store(to, values);
}

// A thread's share of a tile of ROWS x COLUMNS of a matrix: vectors of 16 bytes, neighbouring threads along a row.
template <class T, int ROWS, int COLUMNS, int THREADS>
struct TileShare {
  static constexpr int kVector = kGroup<T>;
  static constexpr int kInRow = COLUMNS / kVector;
  static constexpr int kRowStep = THREADS / kInRow;
  static constexpr int kVectors = ROWS / kRowStep;
  static_assert(kInRow * kRowStep == THREADS && kVectors * kRowStep == ROWS, "threads hold as much each");

  __device__ __forceinline__ static int row(int i) { return static_cast<int>(threadIdx.x) / kInRow + i * kRowStep; }
  __device__ __forceinline__ static int column() { return static_cast<int>(threadIdx.x) % kInRow * kVector; }

  // Starts to copy the i-th vector of the tile at [first_row, first_column] to `to(i)`; zeros outside the matrix.
  template <class To>
  __device__ __forceinline__ static void copy(const StridedMatrix<T>& matrix, int first_row, int first_column,
                                              const To& to) {
    const int first = first_row + row(0), c = first_column + column();
    const bool in_row = c < matrix.columns;
    Global<const T> from = matrix.data + first * matrix.row_stride + c;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      copy_16_bytes(to(i), from, in_row && first + i * kRowStep < matrix.rows);
      from += kRowStep * matrix.row_stride;
    }
  }
};

// A tile of operands in shared memory.
template <class T, int ROWS, int COLUMNS, int THREADS>
struct OperandTile {
  using Element = T;
  using Share = TileShare<T, ROWS, COLUMNS, THREADS>;
  static constexpr int kRows = ROWS;
  static constexpr int64_t kElements = tile_size<T>(ROWS, COLUMNS);

  // Of the share's i-th vector: whole rows of the exchange's period after the first, a constant.
  __device__ __forceinline__ static int place(int i) {
    static_assert(Share::kRowStep % 8 == 0, "a thread's rows have their groups exchanged alike");
    return place_in_tile<T, ROWS>(Share::row(0), Share::column()) + i * Share::kRowStep * kPanel<T>;
  }

  __device__ __forceinline__ static void copy(Shared<T> tile, const StridedMatrix<T>& matrix, int first_row,
                                              int first_column) {
    Share::copy(matrix, first_row, first_column, [&](int i) { return tile + place(i); });
  }

  // Replaces the thread's share by function(i, words).
  template <class Function>
  __device__ __forceinline__ static void change(Shared<T> tile, const Function& function) {
#pragma unroll
    for (int i = 0; i < Share::kVectors; ++i) {
      const Shared<T> at = tile + place(i);
      store_words<T>(at, function(i, load_words<T>(at)));
    }
  }
};

// What a thread copies for itself, to make operands of it.
template <class T, int ROWS, int COLUMNS, int THREADS>
struct RawTile {
  using Share = TileShare<T, ROWS, COLUMNS, THREADS>;
  static constexpr int64_t kElements = int64_t(ROWS) * COLUMNS;

  __device__ __forceinline__ static int place(int i) {
    return (i * THREADS + static_cast<int>(threadIdx.x)) * Share::kVector;
  }
  __device__ __forceinline__ static void copy(Shared<T> raw, const StridedMatrix<T>& matrix, int first_row,
                                              int first_column) {
    Share::copy(matrix, first_row, first_column, [&](int i) { return raw + place(i); });
  }
};

// A tile of a map: CHANNELS x PIXELS, or its transpose where the map's channels lie together.
template <class T, int CHANNELS, int PIXELS, bool CHANNELS_LAST, int THREADS,
          template <class, int, int, int> class Tile = OperandTile>
struct MapTile : Tile<T, CHANNELS_LAST ? PIXELS : CHANNELS, CHANNELS_LAST ? CHANNELS : PIXELS, THREADS> {
  using Base = Tile<T, CHANNELS_LAST ? PIXELS : CHANNELS, CHANNELS_LAST ? CHANNELS : PIXELS, THREADS>;

  __device__ __forceinline__ static void copy(Shared<T> tile, const StridedMatrix<T>& map, int channel, int pixel) {
    Base::copy(tile, map, CHANNELS_LAST ? pixel : channel, CHANNELS_LAST ? channel : pixel);
  }
};

template <class Kind>
constexpr bool kRounds = std::is_same_v<Kind, TF32Product>;

// Float32 numbers as operands of `Kind`.
template <class Kind>
__device__ __forceinline__ Words round_words(Words words) {
  if constexpr (kRounds<Kind>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = bits_of(Kind::element(__int_as_float(static_cast<int>(words[i]))));
  }
  return words;
}

// Rounds what a thread copied of a tile.
template <class Kind, class Tile>
__device__ __forceinline__ void round_tile(Shared<typename Kind::Element> tile) {
  if constexpr (kRounds<Kind>) Tile::change(tile, [](int, const Words& words) { return round_words<Kind>(words); });
}

// For index in [first, last): copy(index, stage), change(stage), multiply(stage), where a copy travels while its
// predecessor is multiplied. change() sees what its thread copied, multiply() what all threads have changed. All
// threads of the block call it, with the same indices, and have passed a barrier since they used the memory otherwise.
template <class Copy, class Change, class Multiply>
__device__ __forceinline__ void pipeline(int first, int last, const Copy& copy, const Change& change,
                                         const Multiply& multiply) {
  int stage = 0;
  if (first < last) copy(first, stage);
  for (int index = first; index < last; ++index) {
    wait_for_copies();
    change(stage);
    __syncthreads();
    if (index + 1 < last) copy(index + 1, stage ^ 1);
    multiply(stage);
    stage ^= 1;
  }
}

// What this lane and the one `lanes` away hold of two fragments: all of the first for the lower lane, of the second for
// the upper.
template <int BITS>
__device__ __forceinline__ uint64_t exchange(uint32_t first, uint32_t second, int lanes) {
  const bool upper = threadIdx.x & lanes;
  const uint32_t other = __shfl_xor_sync(kAllLanes, upper ? first : second, lanes);
  return upper ? other | uint64_t(second) << BITS : first | uint64_t(other) << BITS;
}

// Writes the sums to a contiguous matrix rows x columns, of which the product's first is [first_row, first_column].
// pack(a, b) makes two neighbours' word of them. Four lanes have eight neighbours of a row; they exchange words until
// each writes 8 bytes and all four 32, a whole sector of memory.
template <class T, class Product, class Pack>
__device__ __forceinline__ void store_product(const Product& product, Global<T> out, int64_t rows, int64_t columns,
                                              int first_row, int first_column, const Pack& pack) {
  constexpr int V = 8 / static_cast<int>(sizeof(T)), kJoined = V / 2;  // fragments side by side
  static_assert(Product::kColumns % kJoined == 0, "fragments are joined in equal numbers");
  const int lane = threadIdx.x % 4;
  const int own = kJoined == 1 ? 2 * lane : kJoined == 2 ? lane % 2 * 8 + lane / 2 * 4 : lane * 8;
#pragma unroll
  for (int i = 0; i < Product::kRows; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + Product::warp_row() + Product::lane_row() + 16 * i + 8 * r;
#pragma unroll
      for (int j = 0; j < Product::kColumns; j += kJoined) {
        decltype(pack(0, 0)) words[kJoined];
#pragma unroll
        for (int k = 0; k < kJoined; ++k) {
          const float(&sums)[4] = product.sums[i][j + k];
          words[k] = pack(sums[2 * r], sums[2 * r + 1]);
        }
        Vector<T, V> values;
        if constexpr (kJoined == 1) {
          values = words[0];
        } else {
          uint64_t all;
          if constexpr (kJoined == 2) {
            all = exchange<32>(words[0], words[1], 1);
          } else {
            all = exchange<32>(static_cast<uint32_t>(exchange<16>(words[0], words[1], 1)),
                               static_cast<uint32_t>(exchange<16>(words[2], words[3], 1)), 2);
          }
          std::memcpy(&values, &all, sizeof values);
        }
        const int column = first_column + Product::warp_column() + 8 * j + own;
        if (row >= rows || column >= columns) continue;
        if (columns % V == 0) {
          store(out + (row * columns + column), values);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (column + v < columns) out[row * columns + column + v] = values[v];
          }
        }
      }
    }
  }
}

// Two numbers of a result side by side, rounded.
template <class T>
__device__ __forceinline__ auto pair_of(float a, float b) {
  if constexpr (std::is_same_v<T, float>) {
    return Vector<float, 2>{{a, b}};
  } else {
    return round_pair<T>(a, b);
  }
}

template <class T, class Product>
__device__ __forceinline__ void store_product(const Product& product, Global<T> out, int64_t rows, int64_t columns,
                                              int first_row, int first_column) {
  store_product(product, out, rows, columns, first_row, first_column,
                [](float a, float b) { return pair_of<T>(a, b); });
}

// ---------------------------------------------------------------------------------------------------------------------

// The foreground of an image, one byte a pixel; absent: every pixel.
struct ForegroundMask {
  Global<const byte> data;
  int64_t stride_b, stride_n;
  bool vectors;  // 16 bytes can be read at once

  __device__ __forceinline__ ForegroundMask of(int64_t image) const {
    ForegroundMask own = *this;
    if (data) own.data += image * stride_b;
    return own;
  }
};

// Pixels are counted in 32 bits.
inline void check_pixels(int64_t pixels) {
  check(pixels < (int64_t(1) << 31) - kWideTile, "at most 2^31 - ", kWideTile, " pixels are served, got ", pixels);
}

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

inline ForegroundMask mask_of(const std::optional<Tensor>& mask) {
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
StridedMatrix<T> matrix_of(const Tensor& map, bool channels_last) {
  const int64_t slow = map.dim() - (channels_last ? 1 : 2), fast = map.dim() - (channels_last ? 2 : 1);
  return {global<const T>(map), map.stride(slow), map.stride(0), static_cast<int>(map.size(slow)),
          static_cast<int>(map.size(fast))};
}

// Shared memory for so many tiles of operands: TILE times the depth of a step, which is 128 bytes of every kind.
constexpr size_t operand_bytes(int tile, int tiles) { return size_t(tile) * kRowBytes * tiles; }

// Calls function(Type<Kind>(), std::bool_constant<CHANNELS_LAST>(), std::integral_constant<int, TILE>()). Float32
// products take narrow tiles: their multiply-adds outnumber the loads four to one in these.
template <class Function>
void dispatch_gram(ScalarType dtype, bool tf32, bool channels_last, bool wide, const Function& function) {
  dispatch_product(dtype, tf32, [&](auto kind) {
    const auto with = [&](auto tile) {
      if (channels_last) return function(kind, std::true_type(), tile);
      function(kind, std::false_type(), tile);
    };
    if constexpr (!kIsIEEE<typename decltype(kind)::type>) {
      if (wide) return with(std::integral_constant<int, kWideTile>());
    }
    with(std::integral_constant<int, kNarrowTile>());
  });
}

inline bool is_wide(int64_t rows, int64_t columns) { return rows >= kWideTile && columns >= kWideTile; }

// grad F / (H W) for every image, or (grad + grad^T) F / (H W), and 0 outside the mask: (B, rows, N) contiguous in the
// dtype of the features (B, C, N); grad (B, rows, C) float32.
Tensor times_features(const Tensor& grad, const Tensor& features, const std::optional<Tensor>& mask, bool symmetric,
                      bool tf32);

}  // namespace scsco
