// Distances of Gram matrices that share one factor, without a Gram matrix in memory.
//
// G(f, b) - G(o, b) = G(f - o, b): one product for each pair, whose entries are added up in absolute value where they
// arise, or, where too few blocks would run, after parts of the pixels were added in a fixed order. The backward
// recomputes the signs of (o - f) b^T, one byte each, and multiplies by them.
#include "grams.cuh"

namespace scsco {
namespace {

constexpr int kMergeThreads = 256;
constexpr int kMergedRows = kMergeThreads / kWarp;  // of a block, one for each warp
constexpr int kSignPadding = 16;  // the columns of a row of signs are a multiple: 16 can be read at once

// How a sign is stored: its lowest bit says that it is not 0, its highest that it is negative. Padding is 0.
constexpr uint32_t kPositive = 0x01, kNegative = 0x81;

__device__ __forceinline__ uint32_t sign_of(float value) { return value > 0 ? kPositive : value < 0 ? kNegative : 0; }

// The operands -1, 0 and 1 of as many signs as 16 bytes hold operands. `signs` holds them from its lowest byte on.
template <class Kind>
__device__ __forceinline__ Words sign_operands(const uint32_t* signs) {
  Words words;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (kIsHalf<Kind>) {
      constexpr uint32_t kOne = std::is_same_v<Kind, HalfProduct> ? 0x3c00 : 0x3f80;
      const uint32_t two = signs[w / 2] >> (w % 2 * 16), apart = (two & 0xff) | (two & 0xff00) << 8;
      words[w] = (apart & 0x00010001) * kOne | (apart & 0x00800080) << 8;
    } else {
      const uint32_t sign = signs[0] >> (8 * w);
      words[w] = (sign & 1) * 0x3f800000 | (sign & 0x80) << 24;
    }
  }
  return words;
}

// A tile of signs: copied as bytes, changed to operands.
template <class Kind, int ROWS, int COLUMNS, int THREADS>
struct SignTile {
  using Element = typename Kind::Element;
  using Raw = RawTile<byte, ROWS, COLUMNS, THREADS>;
  static constexpr int kRows = ROWS;
  static constexpr int64_t kElements = tile_size<Element>(ROWS, COLUMNS);

  __device__ __forceinline__ static void expand(Shared<Element> tile, Shared<byte> raw) {
    constexpr int V = kGroup<Element>;
#pragma unroll
    for (int i = 0; i < Raw::Share::kVectors; ++i) {
      const Words signs = load_words<byte>(raw + Raw::place(i));
#pragma unroll
      for (int first = 0; first < kGroup<byte>; first += V) {
        const int place = place_in_tile<Element, ROWS>(Raw::Share::row(i), Raw::Share::column() + first);
        store_words<Element>(tile + place, sign_operands<Kind>(&signs.values[first / 4]));
      }
    }
  }
};

template <class T>
struct GramMaps {
  StridedMatrix<T> anchors, backgrounds, others;
  int64_t stride_j;  // of others
  int64_t channels, b_channels, pixels;
};

// 16 bytes of (f - o) / 2, taken in float32 and rounded once. Halved, because two float16 values may differ by more
// than float16 holds.
template <class Kind>
__device__ __forceinline__ Words half_difference(const Words& f, const Words& o) {
  using Element = typename Kind::Element;
  constexpr int V = kGroup<Element>;
  Vector<Element, V> from, subtracted;
  std::memcpy(&from, &f, sizeof f);
  std::memcpy(&subtracted, &o, sizeof o);
  float values[V];
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = to_float(from[v]) * 0.5f - to_float(subtracted[v]) * 0.5f;
  const auto halves = rounded<Kind>(values);
  Words words;
  std::memcpy(&words, &halves, sizeof words);
  return words;
}

// Makes the thread's share of a tile of f, whose o stands in `raw`, one of (f - o) / 2.
template <class Kind, class Tile, class Raw>
__device__ __forceinline__ void subtract(Shared<typename Kind::Element> tile, Shared<typename Kind::Element> raw) {
  using Element = typename Kind::Element;
  Tile::change(
      tile, [&](int i, const Words& f) { return half_difference<Kind>(f, load_words<Element>(raw + Raw::place(i))); });
}

// Half of the tile's entries of (f - o_j) b^T: the sums of their absolute values, the signs of their opposites, or, of
// a part of the pixels, themselves.
template <class Kind, bool CHANNELS_LAST, int TILE>
__global__ void __launch_bounds__(kGramThreads<TILE>, (kGramBlocks<Kind, TILE>))
    gram_distances_products_kernel(GramMaps<typename Kind::Element> maps,
                                   Global<float> halves,  // (splits, B, J, C, Cb); absent: there is one split
                                   Global<float> parts,   // (B, J, tiles); absent: the signs are wanted
                                   Global<byte> signs,    // (B, J, C, padded)
                                   int columns, int splits, int each, int64_t padded) {
  if constexpr (!available_in<Kind, TILE>()) return;
  constexpr int D = kStepDepth<Kind>, kThreads = kGramThreads<TILE>;
  using Element = typename Kind::Element;
  using Tile = MapTile<Element, TILE, D, CHANNELS_LAST, kThreads>;
  using Raw = MapTile<Element, TILE, D, CHANNELS_LAST, kThreads, RawTile>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(kStages * Tile::kElements);
  const Shared<Element> right = memory.array<Element>(kStages * Tile::kElements);
  const Shared<Element> raw = memory.array<Element>(Raw::kElements);
  GramProduct<Kind, TILE> sums;

  const int tile = blockIdx.x / splits, part = blockIdx.x % splits;
  const int row = tile / columns * TILE, column = tile % columns * TILE;
  const int64_t image = blockIdx.z, pair = image * gridDim.y + blockIdx.y;
  const auto anchor = maps.anchors.of(image), background = maps.backgrounds.of(image);
  auto other = maps.others.of(image);
  other.data += blockIdx.y * maps.stride_j;
  pipeline(
      part * each, min((part + 1) * each, static_cast<int>(ceil_div(maps.pixels, int64_t(D)))),
      [&](int index, int stage) {
        const int pixel = index * D;
        Tile::copy(left + stage * Tile::kElements, anchor, row, pixel);
        Raw::copy(raw, other, row, pixel);
        Tile::copy(right + stage * Tile::kElements, background, column, pixel);
      },
      [&](int stage) {
        subtract<Kind, Tile, Raw>(left + stage * Tile::kElements, raw);
        round_tile<Kind, Tile>(right + stage * Tile::kElements);
      },
      [&](int stage) {
        sums.template add<!CHANNELS_LAST, !CHANNELS_LAST, Tile::kRows, Tile::kRows, kUnrolled<Kind, TILE>>(
            left + stage * Tile::kElements, right + stage * Tile::kElements, D);
      });

  if (halves) {
    const int64_t pairs = int64_t(gridDim.y) * gridDim.z, entries = maps.channels * maps.b_channels;
    store_product(sums, halves + (part * pairs + pair) * entries, maps.channels, maps.b_channels, row, column);
  } else if (parts) {
    float total[1] = {0};
    sums.each([&](int, int, float& value) { total[0] += fabsf(value); });
    __syncthreads();
    block_sum<1>(total, memory.array<float>(kWarp));
    if (threadIdx.x == 0) parts[pair * (gridDim.x / splits) + tile] = total[0];
  } else {
    store_product(sums, signs + pair * maps.channels * padded, maps.channels, padded, row, column,
                  [](float a, float b) { return sign_of(-a) | sign_of(-b) << 8; });
  }
}

// Adds the splits of every entry: the sums of their absolute values, or the signs of their opposites.
__global__ void __launch_bounds__(kMergeThreads)
    gram_distances_merge_kernel(Global<const float> halves,  // (splits, B, J, C, Cb)
                                Global<float> parts,         // (B, J, blocks); absent: the signs are wanted
                                Global<byte> signs,          // (B, J, C, padded)
                                int64_t channels, int64_t b_channels, int64_t padded, int splits) {
  SharedMemory memory;
  const Shared<float> scratch = memory.array<float>(kWarp);
  const int64_t row = int64_t(blockIdx.x) * kMergedRows + threadIdx.x / kWarp;
  const int64_t pair = blockIdx.z * gridDim.y + blockIdx.y, pairs = int64_t(gridDim.y) * gridDim.z;
  float total[1] = {0};
  for (int64_t column = threadIdx.x % kWarp; row < channels && column < (parts ? b_channels : padded);
       column += kWarp) {
    float sum = 0;
    if (column < b_channels) {
#pragma unroll 4
      for (int part = 0; part < splits; ++part) {
        sum += halves[((part * pairs + pair) * channels + row) * b_channels + column];
      }
    }
    total[0] += fabsf(sum);
    if (!parts) signs[(pair * channels + row) * padded + column] = static_cast<byte>(sign_of(-sum));
  }
  if (!parts) return;
  block_sum<1>(total, scratch);
  if (threadIdx.x == 0) parts[pair * gridDim.x + blockIdx.x] = total[0];
}

template <class Product>
__device__ __forceinline__ void add_scaled(Product& to, const Product& from, float factor) {
#pragma unroll
  for (int i = 0; i < Product::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Product::kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) to.sums[i][j][e] += factor * from.sums[i][j][e];
    }
  }
}

// With flow = sign_j b: do_j = g_j flow, df = -sum_j g_j flow.
template <class Kind, bool CHANNELS_LAST, int TILE>
__global__ void __launch_bounds__(kGramThreads<TILE>, (kTwoSumsBlocks<Kind, TILE>))
    gram_distances_bwd_features_kernel(StridedMatrix<byte> signs, StridedMatrix<typename Kind::Element> backgrounds,
                                       Global<const float> grad,  // (B, J), divided by entries and pixels
                                       Global<typename Kind::Element> d_anchor,  // (B, C, N)
                                       Global<typename Kind::Element> d_others,  // (B, J, C, N)
                                       int64_t channels, int64_t b_channels, int64_t pixels, int others,
                                       int row_tiles) {
  if constexpr (!available_in<Kind, TILE>()) return;
  constexpr int D = kStepDepth<Kind>, kThreads = kGramThreads<TILE>;
  using Element = typename Kind::Element;
  using LeftTile = SignTile<Kind, TILE, D, kThreads>;
  using RightTile = MapTile<Element, D, TILE, CHANNELS_LAST, kThreads>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(kStages * LeftTile::kElements);
  const Shared<Element> right = memory.array<Element>(kStages * RightTile::kElements);
  const Shared<byte> raw = memory.array<byte>(LeftTile::Raw::kElements);
  GramProduct<Kind, TILE> sums, total;

  const int m = blockIdx.x % row_tiles * TILE, n = blockIdx.x / row_tiles * TILE;
  const int64_t image = blockIdx.z;
  const auto background = backgrounds.of(image);
  const int steps = static_cast<int>(ceil_div(b_channels, int64_t(D)));  // of every other map
  int64_t copied = image * others, multiplied = copied;                  // pairs
  int copied_step = 0, step = 0;
  pipeline(
      0, others * steps,
      [&](int, int stage) {
        LeftTile::Raw::copy(raw, signs.of(copied), m, copied_step * D);
        RightTile::copy(right + stage * RightTile::kElements, background, copied_step * D, n);
        if (++copied_step == steps) copied_step = 0, ++copied;
      },
      [&](int stage) {
        LeftTile::expand(left + stage * LeftTile::kElements, raw);
        round_tile<Kind, RightTile>(right + stage * RightTile::kElements);
      },
      [&](int stage) {
        sums.template add<true, CHANNELS_LAST, LeftTile::kRows, RightTile::kRows>(
            left + stage * LeftTile::kElements, right + stage * RightTile::kElements, D);
        if (++step < steps) return;
        const float g = grad[multiplied];
        add_scaled(total, sums, -g);
        sums.each([&](int, int, float& value) { value *= g; });
        store_product(sums, d_others + multiplied * channels * pixels, channels, pixels, m, n);
        sums.zero();
        step = 0, ++multiplied;
      });
  store_product(total, d_anchor + image * channels * pixels, channels, pixels, m, n);
}

// db = -sum_j g_j sign_j^T (f - o_j).
template <class Kind, bool CHANNELS_LAST, int TILE>
__global__ void __launch_bounds__(kGramThreads<TILE>, (kTwoSumsBlocks<Kind, TILE>))
    gram_distances_bwd_background_kernel(StridedMatrix<byte> signs, GramMaps<typename Kind::Element> maps,
                                         Global<const float> grad,
                                         Global<typename Kind::Element> d_background,  // (B, Cb, N)
                                         int others, int row_tiles) {
  if constexpr (!available_in<Kind, TILE>()) return;
  constexpr int D = kStepDepth<Kind>, kThreads = kGramThreads<TILE>;
  using Element = typename Kind::Element;
  using LeftTile = SignTile<Kind, D, TILE, kThreads>;
  using RightTile = MapTile<Element, D, TILE, CHANNELS_LAST, kThreads>;
  using Raw = MapTile<Element, D, TILE, CHANNELS_LAST, kThreads, RawTile>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(kStages * LeftTile::kElements);
  const Shared<Element> right = memory.array<Element>(kStages * RightTile::kElements);
  const Shared<Element> raw = memory.array<Element>(Raw::kElements);
  const Shared<byte> raw_signs = memory.array<byte>(LeftTile::Raw::kElements);
  GramProduct<Kind, TILE> sums, total;

  const int m = blockIdx.x % row_tiles * TILE, n = blockIdx.x / row_tiles * TILE;
  const int64_t image = blockIdx.z;
  const auto anchor = maps.anchors.of(image);
  auto other = maps.others.of(image);
  const int steps = static_cast<int>(ceil_div(maps.channels, int64_t(D)));  // of every other map
  int64_t copied = image * others, multiplied = copied;                     // pairs
  int copied_step = 0, step = 0;
  pipeline(
      0, others * steps,
      [&](int, int stage) {
        const int channel = copied_step * D;
        LeftTile::Raw::copy(raw_signs, signs.of(copied), channel, m);
        RightTile::copy(right + stage * RightTile::kElements, anchor, channel, n);
        Raw::copy(raw, other, channel, n);
        if (++copied_step == steps) copied_step = 0, ++copied, other.data += maps.stride_j;
      },
      [&](int stage) {
        LeftTile::expand(left + stage * LeftTile::kElements, raw_signs);
        subtract<Kind, RightTile, Raw>(right + stage * RightTile::kElements, raw);
      },
      [&](int stage) {
        sums.template add<false, CHANNELS_LAST, LeftTile::kRows, RightTile::kRows>(
            left + stage * LeftTile::kElements, right + stage * RightTile::kElements, D);
        if (++step < steps) return;
        add_scaled(total, sums, -2.0f * grad[multiplied]);
        sums.zero();
        step = 0, ++multiplied;
      });
  store_product(total, d_background + image * maps.b_channels * maps.pixels, maps.b_channels, maps.pixels, m, n);
}

// ---------------------------------------------------------------------------------------------------------------------

void check_maps(const Tensor& anchor, const Tensor& background, const Tensor& others) {
  check(anchor.dim() == 3 && background.dim() == 3 && others.dim() == 4,
        "anchor and background must have shape (B, C, N), others (B, J, C, N), got ", shape_text(anchor), ", ",
        shape_text(background), " and ", shape_text(others));
  check_shape("background", background, {anchor.size(0), background.size(1), anchor.size(2)});
  check_pixels(anchor.size(2));
  check_shape("others", others, {anchor.size(0), others.size(1), anchor.size(1), anchor.size(2)});
  check_device("background", background, anchor);
  check_device("others", others, anchor);
}

// The maps as they are read: as they are, if all hold vectors along their channels, else along their pixels.
struct GramInputs {
  Tensor anchor, background, others;
  bool channels_last;

  GramInputs(const Tensor& anchor, const Tensor& background, const Tensor& others)
      : anchor(anchor),
        background(background),
        others(others),
        channels_last(holds_vectors(anchor, true) && holds_vectors(background, true) && holds_vectors(others, true)) {
    if (channels_last) return;
    for (Tensor* map : {&this->anchor, &this->background, &this->others}) *map = in_vectors(*map);
  }

  template <class T>
  GramMaps<T> maps(int64_t pixels) const {
    return {matrix_of<T>(anchor, channels_last),
            matrix_of<T>(background, channels_last),
            matrix_of<T>(others, channels_last),
            others.stride(1),
            anchor.size(1),
            background.size(1),
            pixels};
  }

  // Calls function as dispatch_gram does. Wide tiles need 88 KB of shared memory, more than sm_75 has.
  template <class Function>
  void dispatch(bool tf32, const Function& function) const {
    const size_t shared_of_wide = operand_bytes(kWideTile, 2 * kStages + 1) + kWideTile * kRowBytes / 2;
    const bool wide = is_wide(anchor.size(1), background.size(1)) && shared_of_wide <= shared_limit(anchor);
    dispatch_gram(anchor.scalar_type(), tf32, channels_last, wide, function);
  }
};

// How the products of all pairs are shared out.
struct GramPlan {
  int64_t pairs, entries, columns, tiles;
  int64_t each, splits;  // blocks of pixels

  GramPlan(const GramInputs& inputs, int64_t pixels, int depth, int tile)
      : pairs(inputs.others.size(0) * inputs.others.size(1)),
        entries(inputs.anchor.size(1) * inputs.background.size(1)),
        columns(ceil_div(inputs.background.size(1), int64_t(tile))),
        tiles(ceil_div(inputs.anchor.size(1), int64_t(tile)) * columns) {
    const int64_t blocks = ceil_div(pixels, int64_t(depth));
    each = ceil_div(blocks, split(tiles * pairs, blocks / 4, wanted_blocks(tile), kMostSplits));
    splits = ceil_div(blocks, each);
  }

  int64_t halves() const { return splits > 1 ? splits * pairs * entries : 0; }
};

// Every product of one dtype: the parts of the distances, or, where `parts` is absent, the signs.
template <class Kind, bool CHANNELS_LAST, int TILE>
void launch_products(const GramInputs& inputs, const GramPlan& plan, int64_t pixels, Global<float> halves,
                     Global<float> parts, Global<byte> signs, int64_t padded) {
  using Element = typename Kind::Element;
  const int64_t batch = inputs.others.size(0), count = inputs.others.size(1), channels = inputs.anchor.size(1);
  LAUNCH((gram_distances_products_kernel<Kind, CHANNELS_LAST, TILE>), dim3(plan.tiles * plan.splits, count, batch),
         kGramThreads<TILE>, operand_bytes(TILE, 2 * kStages + 1) + shared_bytes<float>(kWarp), inputs.anchor,
         inputs.maps<Element>(pixels), halves, parts, signs, static_cast<int>(plan.columns),
         static_cast<int>(plan.splits), static_cast<int>(plan.each), padded);
  if (!halves) return;
  LAUNCH((gram_distances_merge_kernel), dim3(ceil_div(channels, int64_t(kMergedRows)), count, batch), kMergeThreads,
         shared_bytes<float>(kWarp), inputs.anchor, halves, parts, signs, channels, inputs.background.size(1), padded,
         static_cast<int>(plan.splits));
}

// anchor (B, C, N), background (B, Cb, N), others (B, J, C, N) of one dtype -> (B, J, parts) float32, which add up to
// half of the sums of |(f - o_j) b^T|.
Tensor gram_distances_forward(const Tensor& anchor, const Tensor& background, const Tensor& others, bool tf32) {
  check_maps(anchor, background, others);
  const int64_t batch = others.size(0), count = others.size(1), pixels = anchor.size(2);
  if (batch == 0 || count == 0) return allocate({batch, count, 0}, anchor);
  const GramInputs inputs(anchor, background, others);
  std::optional<Tensor> parts;
  inputs.dispatch(tf32, [&](auto kind, auto layout, auto tile) {
    using Kind = typename decltype(kind)::type;
    constexpr int TILE = decltype(tile)::value;
    const GramPlan plan(inputs, pixels, kStepDepth<Kind>, TILE);
    Workspace space;
    const auto halves = space.add<float>(plan.halves());
    if (plan.splits > 1) space.allocate(anchor);
    parts =
        allocate({batch, count, plan.splits > 1 ? ceil_div(anchor.size(1), int64_t(kMergedRows)) : plan.tiles}, anchor);
    launch_products<Kind, decltype(layout)::value, TILE>(inputs, plan, pixels,
                                                         plan.splits > 1 ? space[halves] : Global<float>(),
                                                         global<float>(parts), Global<byte>(), 0);
  });
  return *parts;
}

// grad (B, J) float32 contiguous, of every sum -> gradients of anchor, background and others, contiguous.
std::tuple<Tensor, Tensor, Tensor> gram_distances_backward(const Tensor& grad, const Tensor& anchor,
                                                           const Tensor& background, const Tensor& others, bool tf32) {
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
  const GramInputs inputs(anchor, background, others);
  inputs.dispatch(tf32, [&](auto kind, auto layout, auto tile) {
    using Kind = typename decltype(kind)::type;
    using Element = typename Kind::Element;
    constexpr bool kLast = decltype(layout)::value;
    constexpr int TILE = decltype(tile)::value;
    const GramPlan plan(inputs, pixels, kStepDepth<Kind>, TILE);
    Workspace space;
    const auto signs = space.add<byte>(plan.pairs * channels * padded);
    const auto halves = space.add<float>(plan.halves());
    space.allocate(anchor);
    launch_products<Kind, kLast, TILE>(inputs, plan, pixels, plan.splits > 1 ? space[halves] : Global<float>(),
                                       Global<float>(), space[signs], padded);

    // A pair's signs as one matrix of a batch.
    const StridedMatrix<byte> sign{space[signs], padded, channels * padded, static_cast<int>(channels),
                                   static_cast<int>(padded)};
    const auto row_tiles = [&](int64_t rows) { return static_cast<int>(ceil_div(rows, int64_t(TILE))); };
    const auto grid = [&](int64_t rows) { return dim3(row_tiles(rows) * ceil_div(pixels, int64_t(TILE)), 1, batch); };
    const size_t raw_signs = shared_bytes<byte>(TILE * kStepDepth<Kind>);
    LAUNCH((gram_distances_bwd_features_kernel<Kind, kLast, TILE>), grid(channels), kGramThreads<TILE>,
           operand_bytes(TILE, 2 * kStages) + raw_signs, anchor, sign, matrix_of<Element>(inputs.background, kLast),
           global<const float>(grad), global<Element>(d_anchor), global<Element>(d_others), channels, b_channels,
           pixels, static_cast<int>(count), row_tiles(channels));
    LAUNCH((gram_distances_bwd_background_kernel<Kind, kLast, TILE>), grid(b_channels), kGramThreads<TILE>,
           operand_bytes(TILE, 2 * kStages + 1) + raw_signs, anchor, sign, inputs.maps<Element>(pixels),
           global<const float>(grad), global<Element>(d_background), static_cast<int>(count), row_tiles(b_channels));
  });
  return {d_anchor, d_background, d_others};
}

}  // namespace

SCSCO_SCHEMAS(m) {
  m.def("gram_distances_forward(Tensor anchor, Tensor background, Tensor others, bool tf32) -> Tensor");
  m.def(
      "gram_distances_backward(Tensor grad, Tensor anchor, Tensor background, Tensor others, bool tf32) "
      "-> (Tensor, Tensor, Tensor)");
}

SCSCO_OPERATIONS(m) {
  m.impl("gram_distances_forward", TORCH_BOX(&gram_distances_forward));
  m.impl("gram_distances_backward", TORCH_BOX(&gram_distances_backward));
}

}  // namespace scsco
