// What the Gram operations share: copies of maps that cannot be read 16 bytes at once, and the backward of both Gram
// matrices, a small float32 matrix times a feature map.
//
// For the latter a first kernel brings the matrix, or its sum with its transpose, into the form of an operand, so that
// the product reads it as it reads the map.
#include "grams.cuh"

namespace scsco {
namespace {

constexpr int kCopyThreads = 256;
constexpr int kCopied = 4;  // elements of a thread
constexpr int kOperandThreads = 256;
constexpr int kOperandRows = kOperandThreads / kWarp;  // of a block, one for each warp
constexpr int kOperandColumns = 4 * kWarp;             // at once
constexpr int kPadding = 8;                            // a row's columns are a multiple: 16 bytes can be read at once

template <class T>
__global__ void __launch_bounds__(kCopyThreads)
    grams_copy_kernel(Global<const T> map, int64_t stride_b, int64_t stride_j, int64_t stride_c, int64_t stride_n,
                      Global<T> out,  // (B, J, C, padded)
                      int64_t others, int64_t channels, int64_t pixels, int64_t padded, int64_t size) {
#pragma unroll
  for (int i = 0; i < kCopied; ++i) {
    const int64_t at = (int64_t(blockIdx.x) * kCopied + i) * kCopyThreads + threadIdx.x;
    if (at >= size) return;
    const int64_t n = at % padded, row = at / padded;
    const int64_t c = row % channels, j = row / channels % others, b = row / channels / others;
    out[at] = n < pixels ? T(map[b * stride_b + j * stride_j + c * stride_c + n * stride_n]) : T{};
  }
}

// Entries [m, k] of a float32 matrix at m * stride_m + k * stride_k, plus those at m * turned_m + k * turned_k. The
// first are read with neighbouring threads along k, the others along m; either may be absent.
struct SmallMatrix {
  Global<const float> along_k, along_m;
  int64_t stride_b, stride_m, stride_k, turned_m, turned_k;
  int64_t rows, columns;
};

// What warp w holds of row w: column k + kWarp * i in values[i]. All threads of the block call it.
__device__ __forceinline__ void read_row(const SmallMatrix& matrix, int64_t image, int64_t first_row, int64_t k,
                                         Shared<float> stage, float (&values)[kOperandColumns / kWarp]) {
  constexpr int kLd = kOperandColumns + 4;  // the 8 rows by 4 columns that a warp writes lie in 32 banks
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int64_t row = first_row + warp;
#pragma unroll
  for (int i = 0; i < kOperandColumns / kWarp; ++i) {
    const int64_t column = k + lane + i * kWarp;
    const bool inside = matrix.along_k && row < matrix.rows && column < matrix.columns;
    values[i] = inside
                    ? float(matrix.along_k[image * matrix.stride_b + row * matrix.stride_m + column * matrix.stride_k])
                    : 0.0f;
  }
  if (!matrix.along_m) return;
  const int64_t turned_row = first_row + thread % kOperandRows;
#pragma unroll
  for (int i = 0; i < kOperandColumns / kWarp; ++i) {
    const int column = thread / kOperandRows + i * kWarp;
    const bool inside = turned_row < matrix.rows && k + column < matrix.columns;
    const int64_t at = image * matrix.stride_b + turned_row * matrix.turned_m + (k + column) * matrix.turned_k;
    stage[thread % kOperandRows * kLd + column] = inside ? float(matrix.along_m[at]) : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOperandColumns / kWarp; ++i) values[i] += stage[warp * kLd + lane + i * kWarp];
  __syncthreads();
}

template <class Kind>
__global__ void __launch_bounds__(kOperandThreads, 2)
    gram_bwd_operand_kernel(SmallMatrix matrix,
                            Global<typename Kind::Element> out,  // (B, rows, padded columns)
                            Global<float> scales,                // (B, rows): what to multiply a row's products by
                            int64_t padded) {
  if constexpr (!available<Kind>()) return;
  constexpr int kEach = kOperandColumns / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t image = blockIdx.y, first_row = int64_t(blockIdx.x) * kOperandRows;
  const int64_t row = first_row + threadIdx.x / kWarp;
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(kOperandRows * (kOperandColumns + 4));

  float values[kEach], scale = 1;
  if constexpr (std::is_same_v<Kind, HalfProduct>) {
    // A Gram's gradient of 1e-8 is 0 in float16, so every row is brought to at most 1 before it is rounded.
    float peak = 0;
    for (int64_t k = 0; k < matrix.columns; k += kOperandColumns) {
      read_row(matrix, image, first_row, k, stage, values);
#pragma unroll
      for (int i = 0; i < kEach; ++i) peak = fmaxf(peak, fabsf(values[i]));
    }
    peak = warp_max(peak);
    if (peak > 0) scale = peak;
  }
  for (int64_t k = 0; k < padded; k += kOperandColumns) {
    read_row(matrix, image, first_row, k, stage, values);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t column = k + lane + i * kWarp;
      if (row < matrix.rows && column < padded) {
        out[(image * matrix.rows + row) * padded + column] = Kind::element(values[i] / scale);
      }
    }
  }
  if (lane == 0 && row < matrix.rows) scales[image * matrix.rows + row] = scale;
}

template <class Kind, bool CHANNELS_LAST, int TILE>
__global__ void __launch_bounds__(kGramThreads<TILE>, (kGramBlocks<Kind, TILE>))
    gram_bwd_kernel(StridedMatrix<typename Kind::Element> operands, Global<const float> scales,
                    StridedMatrix<typename Kind::Element> maps, ForegroundMask masks,
                    Global<typename Kind::Element> out,  // (B, rows, N)
                    int64_t channels, int64_t pixels, int row_tiles) {
  if constexpr (!available_in<Kind, TILE>()) return;
  constexpr int D = kStepDepth<Kind>, kThreads = kGramThreads<TILE>;
  using Element = typename Kind::Element;
  using LeftTile = OperandTile<Element, TILE, D, kThreads>;
  using RightTile = MapTile<Element, D, TILE, CHANNELS_LAST, kThreads>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(kStages * LeftTile::kElements);
  const Shared<Element> right = memory.array<Element>(kStages * RightTile::kElements);
  const Shared<uint32_t> inside = memory.array<uint32_t>(TILE / kWarp);  // a bit for every pixel
  GramProduct<Kind, TILE> sums;

  const int m = blockIdx.x % row_tiles * TILE, n = blockIdx.x / row_tiles * TILE;
  const int64_t image = blockIdx.z;
  const ForegroundMask mask = masks.of(image);
  const auto matrix = operands.of(image);
  const auto features = maps.of(image);
  const int pixel = n + static_cast<int>(threadIdx.x);
  const bool counts = threadIdx.x < TILE && pixel < pixels && (!masks.data || mask.data[pixel * mask.stride_n]);
  const uint32_t counting = __ballot_sync(kAllLanes, counts);
  if (threadIdx.x < TILE && threadIdx.x % kWarp == 0) inside[threadIdx.x / kWarp] = counting;
  const bool any = __syncthreads_or(counts);

  // Pixels outside may hold NaN, which stays in their columns.
  pipeline(
      0, any ? static_cast<int>(ceil_div(channels, int64_t(D))) : 0,
      [&](int index, int stage) {
        LeftTile::copy(left + stage * LeftTile::kElements, matrix, m, index * D);
        RightTile::copy(right + stage * RightTile::kElements, features, index * D, n);
      },
      [&](int stage) { round_tile<Kind, RightTile>(right + stage * RightTile::kElements); },
      [&](int stage) {
        sums.template add<true, CHANNELS_LAST, LeftTile::kRows, RightTile::kRows, kUnrolled<Kind, TILE>>(
            left + stage * LeftTile::kElements, right + stage * RightTile::kElements, D);
      });

  sums.each([&](int r, int c, float& value) {
    const float own = m + r < matrix.rows ? float(scales[image * matrix.rows + m + r]) : 0.0f;
    value = inside[c / kWarp] >> c % kWarp & 1 ? value * (own / static_cast<float>(pixels)) : 0.0f;
  });
  store_product(sums, out + image * matrix.rows * pixels, matrix.rows, pixels, m, n);
}

}  // namespace

Tensor in_vectors(const Tensor& map) {
  if (holds_vectors(map, false)) return map;
  const bool many = map.dim() == 4;
  const int64_t batch = map.size(0), others = many ? map.size(1) : 1;
  const int64_t channels = map.size(map.dim() - 2), pixels = map.size(map.dim() - 1);
  const int64_t padded = ceil_div(pixels, int64_t(kPadding)) * kPadding, size = batch * others * channels * padded;
  const Tensor out = many ? allocate({batch, others, channels, padded}, map, map.scalar_type())
                          : allocate({batch, channels, padded}, map, map.scalar_type());
  dispatch(map.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    LAUNCH((grams_copy_kernel<T>), ceil_div(size, int64_t(kCopied * kCopyThreads)), kCopyThreads, 0, map,
           global<const T>(map), map.stride(0), many ? map.stride(1) : 0, map.stride(map.dim() - 2),
           map.stride(map.dim() - 1), global<T>(out), others, channels, pixels, padded, size);
  });
  return out;
}

Tensor times_features(const Tensor& grad, const Tensor& features, const std::optional<Tensor>& mask, bool symmetric,
                      bool tf32) {
  check(features.dim() == 3, "features must have shape (B, C, N), got ", shape_text(features));
  check_pixels(features.size(2));
  check(grad.dim() == 3, "grad must have shape (B, rows, C), got ", shape_text(grad));
  const int64_t batch = features.size(0), channels = features.size(1), pixels = features.size(2), rows = grad.size(1);
  check_shape("grad", grad, {batch, rows, channels});
  check_device("grad", grad, features);
  const Tensor out = allocate({batch, rows, pixels}, features, features.scalar_type());
  if (batch == 0) return out;
  const bool last = holds_vectors(features, true), turned = grad.stride(1) == 1 && grad.stride(2) != 1;
  const Tensor maps = last ? features : in_vectors(features);
  const auto data = global<const float>(grad);
  const Global<const float> none{};
  const SmallMatrix matrix{turned && !symmetric ? none : data,
                           turned || symmetric ? data : none,
                           grad.stride(0),
                           grad.stride(1),
                           grad.stride(2),
                           grad.stride(symmetric ? 2 : 1),
                           grad.stride(symmetric ? 1 : 2),
                           rows,
                           channels};
  const int64_t padded = ceil_div(channels, int64_t(kPadding)) * kPadding;
  const size_t shared_of_wide = operand_bytes(kWideTile, 2 * kStages) + shared_bytes<uint32_t>(kWideTile / kWarp);
  const bool wide = is_wide(rows, pixels) && shared_of_wide <= shared_limit(features);
  dispatch_gram(features.scalar_type(), tf32, last, wide, [&](auto kind, auto layout, auto tile) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    constexpr int TILE = decltype(tile)::value;
    using Element = typename Kind::Element;
    Workspace space;
    const auto operands = space.add<Element>(batch * rows * padded);
    const auto scales = space.add<float>(batch * rows);
    space.allocate(features);
    const StridedMatrix<Element> operand{space[operands], padded, rows * padded, static_cast<int>(rows),
                                         static_cast<int>(padded)};
    LAUNCH((gram_bwd_operand_kernel<Kind>), dim3(ceil_div(rows, int64_t(kOperandRows)), batch), kOperandThreads,
           shared_bytes<float>(kOperandRows * (kOperandColumns + 4)), features, matrix, space[operands], space[scales],
           padded);
    const int64_t row_tiles = ceil_div(rows, int64_t(TILE)), tiles = row_tiles * ceil_div(pixels, int64_t(TILE));
    LAUNCH((gram_bwd_kernel<Kind, kLast, TILE>), dim3(tiles, 1, batch), kGramThreads<TILE>,
           operand_bytes(TILE, 2 * kStages) + shared_bytes<uint32_t>(TILE / kWarp), features, operand, space[scales],
           matrix_of<Element>(maps, last), mask_of(mask), global<Element>(out), channels, pixels,
           static_cast<int>(row_tiles));
  });
  return out;
}

}  // namespace scsco
