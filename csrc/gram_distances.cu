// Distances of Gram matrices that share one factor, without a Gram matrix in memory.
//
// G(f, b) - G(o, b) = G(f - o, b): one product for each pair, whose entries are added up in absolute value where they
// arise. The backward recomputes their signs, one byte each, and multiplies by them.
#include "grams.cuh"

namespace scsco {
namespace {

constexpr int kBackwardBlocks = 2;  // of a multiprocessor, at least: two tiles of sums take 64 registers a thread
constexpr int kSignPadding = 16;  // the columns of a row of signs are a multiple: 16 can be read at once

// How a sign is stored. Padding is 0.
enum Sign { kZero = 0, kPositive = 1, kNegative = 2 };

__device__ __forceinline__ byte sign_of(float value) { return value > 0 ? kPositive : value < 0 ? kNegative : kZero; }

template <class Kind, class Share>
__device__ __forceinline__ void put_signs(Shared<typename Kind::Element> tile, const Share& signs) {
  signs.put(tile, [&](int i) {
    const auto codes = signs.packed[i].values();
    Vector<typename Kind::Element, Share::kVector> values;
#pragma unroll
    for (int v = 0; v < Share::kVector; ++v) {
      values[v] = Kind::element(static_cast<float>(int(codes[v] & 1) - int(codes[v] >> 1)));
    }
    return values;
  });
}

template <class T>
struct Maps {
  Matrix<T> anchors, backgrounds, others;
  int64_t stride_j;  // of others
  int64_t channels, b_channels, pixels;
};

// The tile of (f - o) / 2, taken in float32 and rounded once. Halved, because two float16 values may differ by more
// than float16 holds.
template <class Kind, class Share>
__device__ __forceinline__ void put_half_difference(Shared<typename Kind::Element> tile, const Share& f,
                                                    const Share& o) {
  f.put(tile, [&](int i) {
    auto values = f.packed[i].values();
    const auto subtracted = o.packed[i].values();
#pragma unroll
    for (int v = 0; v < Share::kVector; ++v) {
      values[v] = Kind::element(to_float(values[v]) * 0.5f - to_float(subtracted[v]) * 0.5f);
    }
    return values;
  });
}

// Half of the tile's entries of (f - o_j) b^T: the sums of their absolute values, or their signs.
template <class Kind, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    gram_distances_products_kernel(Maps<typename Kind::Element> maps,
                                   Global<float> parts,  // (B, J, tiles); absent: the signs are wanted
                                   Global<byte> signs,   // (B, J, C, padded)
                                   int columns, int64_t padded) {
  if constexpr (!available<Kind>()) return;
  constexpr int D = kDepth<Kind>;
  using Tile = MapTile<Kind, kTile, D, CHANNELS_LAST>;
  using Element = typename Kind::Element;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(Tile::kElements), right = memory.array<Element>(Tile::kElements);
  const Shared<float> stage = memory.array<float>(kTile * kStageLd);
  Sums<Kind> sums;

  const int64_t row = int64_t(blockIdx.x / columns) * kTile, column = int64_t(blockIdx.x % columns) * kTile;
  const int64_t image = blockIdx.z, pair = image * gridDim.y + blockIdx.y;
  const auto anchor = maps.anchors.of(image), background = maps.backgrounds.of(image);
  auto other = maps.others.of(image);
  other.data += blockIdx.y * maps.stride_j;
  typename Tile::Share f, o, b;
  pipeline(
      0, ceil_div(maps.pixels, int64_t(D)),
      [&](int64_t index) {
        f.fetch(anchor, row, index * D);
        o.fetch(other, row, index * D);
        b.fetch(background, column, index * D);
      },
      [&] {
        put_half_difference<Kind>(left, f, o);
        Tile::put(right, b);
      },
      [&] { sums.template add<!CHANNELS_LAST, !CHANNELS_LAST, Tile::kRows, Tile::kRows>(left, right, D); });

  if (parts) {
    float total[1] = {0};
    sums.each([&](int, int, float& value) { total[0] += fabsf(value); });
    __syncthreads();
    block_sum<1>(total, stage);
    if (threadIdx.x == 0) parts[pair * gridDim.x + blockIdx.x] = total[0];
  } else {
    store_sums(sums, stage, signs + pair * maps.channels * padded, maps.channels, padded, row, column,
               [](int, int, float value) { return sign_of(value); });
  }
}

// With flow = sign_j b: do_j = -g_j flow, df = sum_j g_j flow.
template <class Kind, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kProductThreads, kBackwardBlocks)
    gram_distances_bwd_features_kernel(Matrix<byte> signs, Matrix<typename Kind::Element> backgrounds,
                                       Global<const float> grad,  // (B, J), divided by entries and pixels
                                       Global<typename Kind::Element> d_anchor,  // (B, C, N)
                                       Global<typename Kind::Element> d_others,  // (B, J, C, N)
                                       int64_t channels, int64_t b_channels, int64_t pixels, int others,
                                       int row_tiles) {
  if constexpr (!available<Kind>()) return;
  constexpr int D = kDepth<Kind>;
  using Element = typename Kind::Element;
  using Tile = MapTile<Kind, D, kTile, CHANNELS_LAST>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(tile_size<Element>(kTile, D));
  const Shared<Element> right = memory.array<Element>(Tile::kElements);
  const Shared<float> stage = memory.array<float>(kTile * kStageLd);
  Sums<Kind> sums;

  const int64_t image = blockIdx.z, m = blockIdx.x % row_tiles * kTile, n = int64_t(blockIdx.x / row_tiles) * kTile;
  const auto background = backgrounds.of(image);
  float total[kTile * kTile / kProductThreads] = {};
  for (int other = 0; other < others; ++other) {
    const int64_t pair = image * others + other;
    const auto sign = signs.of(pair);
    Share<byte, kTile, D> s;
    typename Tile::Share b;
    pipeline(
        0, ceil_div(b_channels, int64_t(D)),
        [&](int64_t index) {
          s.fetch(sign, m, index * D);
          b.fetch(background, index * D, n);
        },
        [&] {
          put_signs<Kind>(left, s);
          Tile::put(right, b);
        },
        [&] { sums.template add<true, CHANNELS_LAST, kTile, Tile::kRows>(left, right, D); });

    const float g = grad[pair];
    int e = 0;
    sums.each([&](int, int, float& value) { total[e++] += g * value; });
    store_sums(sums, stage, d_others + pair * channels * pixels, channels, pixels, m, n,
               [&](int, int, float value) { return from_float<Element>(-g * value); });
    sums.zero();
  }
  int e = 0;
  sums.each([&](int, int, float& value) { value = total[e++]; });
  store_sums(sums, stage, d_anchor + image * channels * pixels, channels, pixels, m, n,
             [](int, int, float value) { return from_float<Element>(value); });
}

// db = sum_j g_j sign_j^T (f - o_j).
template <class Kind, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kProductThreads, kBackwardBlocks)
    gram_distances_bwd_background_kernel(Matrix<byte> signs, Maps<typename Kind::Element> maps,
                                         Global<const float> grad,
                                         Global<typename Kind::Element> d_background,  // (B, Cb, N)
                                         int others, int row_tiles) {
  if constexpr (!available<Kind>()) return;
  constexpr int D = kDepth<Kind>;
  using Element = typename Kind::Element;
  using Tile = MapTile<Kind, D, kTile, CHANNELS_LAST>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(tile_size<Element>(D, kTile));
  const Shared<Element> right = memory.array<Element>(Tile::kElements);
  const Shared<float> stage = memory.array<float>(kTile * kStageLd);
  Sums<Kind> sums;

  const int64_t image = blockIdx.z, m = blockIdx.x % row_tiles * kTile, n = int64_t(blockIdx.x / row_tiles) * kTile;
  const auto anchor = maps.anchors.of(image);
  auto other = maps.others.of(image);
  float total[kTile * kTile / kProductThreads] = {};
  for (int j = 0; j < others; ++j) {
    const auto sign = signs.of(image * others + j);
    Share<byte, D, kTile> s;
    typename Tile::Share f, o;
    pipeline(
        0, ceil_div(maps.channels, int64_t(D)),
        [&](int64_t index) {
          s.fetch(sign, index * D, m);
          f.fetch(anchor, index * D, n);
          o.fetch(other, index * D, n);
        },
        [&] {
          put_signs<Kind>(left, s);
          put_half_difference<Kind>(right, f, o);
        },
        [&] { sums.template add<false, CHANNELS_LAST, D, Tile::kRows>(left, right, D); });

    const float g = 2.0f * grad[image * others + j];
    int e = 0;
    sums.each([&](int, int, float& value) { total[e++] += g * value; });
    sums.zero();
    other.data += maps.stride_j;
  }
  int e = 0;
  sums.each([&](int, int, float& value) { value = total[e++]; });
  store_sums(sums, stage, d_background + image * maps.b_channels * maps.pixels, maps.b_channels, maps.pixels, m, n,
             [](int, int, float value) { return from_float<Element>(value); });
}

// ---------------------------------------------------------------------------------------------------------------------

void check_maps(const Tensor& anchor, const Tensor& background, const Tensor& others) {
  check(anchor.dim() == 3 && background.dim() == 3 && others.dim() == 4,
        "anchor and background must have shape (B, C, N), others (B, J, C, N), got ", shape_text(anchor), ", ",
        shape_text(background), " and ", shape_text(others));
  check_shape("background", background, {anchor.size(0), background.size(1), anchor.size(2)});
  check_shape("others", others, {anchor.size(0), others.size(1), anchor.size(1), anchor.size(2)});
  check_device("background", background, anchor);
  check_device("others", others, anchor);
}

// The maps as they are read: as they are, if all hold vectors along their channels, else along their pixels.
struct Inputs {
  Tensor anchor, background, others;
  bool channels_last;

  Inputs(const Tensor& anchor, const Tensor& background, const Tensor& others)
      : anchor(anchor),
        background(background),
        others(others),
        channels_last(holds_vectors(anchor, true) && holds_vectors(background, true) && holds_vectors(others, true)) {
    if (channels_last) return;
    for (Tensor* map : {&this->anchor, &this->background, &this->others}) *map = in_vectors(*map);
  }

  template <class T>
  Maps<T> maps(int64_t pixels) const {
    return {matrix_of<T>(anchor, channels_last),
            matrix_of<T>(background, channels_last),
            matrix_of<T>(others, channels_last),
            others.stride(1),
            anchor.size(1),
            background.size(1),
            pixels};
  }
};

// Every product of one dtype: the parts of the distances, or, where `parts` is absent, the signs.
void launch_products(const Inputs& inputs, int64_t pixels, bool tf32, const std::optional<Tensor>& parts,
                     const std::optional<Tensor>& signs) {
  const Tensor& anchor = inputs.anchor;
  const int64_t columns = tiles_of(inputs.background.size(1)), tiles = tiles_of(anchor.size(1)) * columns;
  const dim3 grid(tiles, inputs.others.size(1), inputs.others.size(0));
  dispatch_gram(anchor.scalar_type(), tf32, inputs.channels_last, [&](auto kind, auto layout) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    using Element = typename Kind::Element;
    LAUNCH((gram_distances_products_kernel<Kind, kLast>), grid, kProductThreads,
           2 * shared_bytes<Element>(MapTile<Kind, kTile, kDepth<Kind>, kLast>::kElements) +
               shared_bytes<float>(kTile * kStageLd),
           anchor, inputs.maps<Element>(pixels), global<float>(parts), global<byte>(signs), static_cast<int>(columns),
           signs ? signs->size(3) : 0);
  });
}

// anchor (B, C, N), background (B, Cb, N), others (B, J, C, N) of one dtype -> (B, J, tiles) float32, which add up to
// half of the sums of |(f - o_j) b^T|.
Tensor gram_distances_forward(const Tensor& anchor, const Tensor& background, const Tensor& others, bool tf32) {
  check_maps(anchor, background, others);
  const int64_t tiles = tiles_of(anchor.size(1)) * tiles_of(background.size(1));
  const Tensor parts = allocate({others.size(0), others.size(1), tiles}, anchor);
  if (parts.numel() > 0) launch_products(Inputs(anchor, background, others), anchor.size(2), tf32, parts, {});
  return parts;
}

// grad (B, J) float32 contiguous, of every sum -> gradients of anchor, background and others, contiguous.
std::tuple<Tensor, Tensor, Tensor> gram_distances_backward(const Tensor& grad, const Tensor& anchor,
                                                           const Tensor& background, const Tensor& others,
                                                           bool tf32) {
  check_maps(anchor, background, others);
  const int64_t batch = others.size(0), count = others.size(1), channels = anchor.size(1);
  const int64_t b_channels = background.size(1), pixels = anchor.size(2);
  check(batch > 0 && count > 0, "others must hold a map, got ", shape_text(others));
  check_shape("grad", grad, {batch, count});
  check_device("grad", grad, anchor);
  check(grad.is_contiguous(), "grad must be contiguous");
  const Tensor d_anchor = allocate_like(anchor), d_background = allocate_like(background);
  const Tensor d_others = allocate_like(others);
  const int64_t padded = ceil_div(b_channels, int64_t(kSignPadding)) * kSignPadding;
  const Tensor signs = allocate({batch, count, channels, padded}, anchor, ScalarType::Byte);
  const Inputs inputs(anchor, background, others);
  launch_products(inputs, pixels, tf32, {}, signs);

  // A pair's signs as one matrix of a batch.
  Matrix<byte> sign = matrix_of<byte>(signs, false);
  sign.batch_stride = channels * padded;
  const auto grid = [&](int64_t rows) { return dim3(tiles_of(rows) * tiles_of(pixels), 1, batch); };
  dispatch_gram(anchor.scalar_type(), tf32, inputs.channels_last, [&](auto kind, auto layout) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    using Element = typename Kind::Element;
    constexpr int D = kDepth<Kind>;
    const size_t shared = shared_bytes<Element>(MapTile<Kind, D, kTile, kLast>::kElements) +
                          shared_bytes<float>(kTile * kStageLd);
    LAUNCH((gram_distances_bwd_features_kernel<Kind, kLast>), grid(channels), kProductThreads,
           shared + shared_bytes<Element>(tile_size<Element>(kTile, D)), anchor, sign,
           matrix_of<Element>(inputs.background, kLast), global<const float>(grad), global<Element>(d_anchor),
           global<Element>(d_others), channels, b_channels, pixels, static_cast<int>(count),
           static_cast<int>(tiles_of(channels)));
    LAUNCH((gram_distances_bwd_background_kernel<Kind, kLast>), grid(b_channels), kProductThreads,
           shared + shared_bytes<Element>(tile_size<Element>(D, kTile)), anchor, sign, inputs.maps<Element>(pixels),
           global<const float>(grad), global<Element>(d_background), static_cast<int>(count),
           static_cast<int>(tiles_of(b_channels)));
  });
  return {d_anchor, d_background, d_others};
}

}  // namespace

SCSCO_OPERATIONS(m) {
  m.impl("gram_distances_forward", TORCH_BOX(&gram_distances_forward));
  m.impl("gram_distances_backward", TORCH_BOX(&gram_distances_backward));
}

}  // namespace scsco
