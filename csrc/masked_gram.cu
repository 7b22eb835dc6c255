// The Gram matrix of a feature map's foreground, split over the pixel blocks that hold any of it.
//
// A first kernel lists each image's blocks with foreground, so that the splits of the product share out the blocks that
// count and never load the others. Only the tiles on and above the diagonal are computed; the kernel that adds the
// splits mirrors them.
#include "grams.cuh"

namespace scsco {
namespace {

constexpr int kListThreads = 512;
constexpr int kExamined = 16;  // pixels that a thread of the listing examines at once
constexpr int kSumThreads = 256;
constexpr int kSummedRows = 8;  // rows of a tile that one block adds up: 8 floats of the mirror image are 32 bytes

// A block of pixels with foreground. Bit i of `foreground` is its i-th pixel, so that the product does not read masks.
struct alignas(16) PixelBlock {
  int32_t index;
  uint32_t unused;
  uint64_t foreground;
};

__global__ void __launch_bounds__(kListThreads)
    masked_gram_fwd_list_kernel(ForegroundMask masks,
                                Global<PixelBlock> list,  // (B, blocks): those with foreground, in raster order
                                Global<int32_t> counts,   // (B): how many
                                int64_t pixels, int64_t blocks, int depth) {
  constexpr int kWarps = kListThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, lanes = depth / kExamined;
  const int64_t image = blockIdx.x;
  const ForegroundMask mask = masks.of(image);
  SharedMemory memory;
  const Shared<int32_t> found = memory.array<int32_t>(kWarps);

  int64_t count = 0;
  for (int64_t first = 0; first < pixels; first += kListThreads * kExamined) {
    const int64_t n = first + threadIdx.x * kExamined;
    uint64_t foreground = 0;
    if (mask.vectors) {
      Vector<byte, kExamined> fg{};
      if (n < pixels) fg = load<kExamined>(mask.data + n);
#pragma unroll
      for (int i = 0; i < kExamined; ++i) foreground |= uint64_t(fg[i] != 0) << i;
    } else {
      for (int i = 0; i < kExamined; ++i) {
        if (n + i < pixels && mask.data[(n + i) * mask.stride_n]) foreground |= uint64_t(1) << i;
      }
    }
    for (int i = 1; i < lanes; i *= 2) foreground |= __shfl_down_sync(kAllLanes, foreground, i) << (i * kExamined);
    const bool lists = lane % lanes == 0 && foreground;  // the first lane of every block
    const unsigned listing = __ballot_sync(kAllLanes, lists);
    if (lane == 0) found[warp] = __popc(listing);
    __syncthreads();
    int before = __popc(listing & ((1u << lane) - 1)), all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int more = found[w];
      before += w < warp ? more : 0;
      all += more;
    }
    if (lists) list[image * blocks + count + before] = {static_cast<int32_t>(n / depth), 0, foreground};
    count += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[image] = static_cast<int32_t>(count);
}

// Rounds what a thread copied of a map's tile, and puts 0 where a pixel is outside: it may hold NaN, and 0 * NaN is
// NaN.
template <class Kind, class Tile, bool CHANNELS_LAST>
__device__ __forceinline__ void mask_tile(Shared<typename Kind::Element> tile, uint64_t foreground) {
  using Share = typename Tile::Share;
  constexpr int kInWord = Share::kVector / 4;
  Tile::change(tile, [&](int i, Words words) {
    const auto own = static_cast<uint32_t>(foreground >> (CHANNELS_LAST ? Share::row(i) : Share::column()));
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t kept = 0;
#pragma unroll
      for (int v = 0; v < kInWord; ++v) {
        const uint32_t bits = 0xffffffffu >> (32 - 32 / kInWord) << (v * 32 / kInWord);
        kept |= own >> (CHANNELS_LAST ? 0 : w * kInWord + v) & 1 ? bits : 0;
      }
      words[w] &= kept;
    }
    return round_words<Kind>(words);
  });
}

struct TileAt {
  int row, column;
};

// The tile-th tile on or above the diagonal of `tiles` x `tiles`.
__device__ __forceinline__ TileAt upper_tile(int tile, int tiles) {
  int row = 0;
  for (; tile >= tiles - row; ++row) tile -= tiles - row;
  return {row, row + tile};
}

template <class Kind, bool CHANNELS_LAST, int TILE>
__global__ void __launch_bounds__(kGramThreads<TILE>, (kGramBlocks<Kind, TILE>))
    masked_gram_fwd_kernel(StridedMatrix<typename Kind::Element> maps,
                           Global<const PixelBlock> list,  // absent: every block, of which every pixel counts
                           Global<const int32_t> counts,
                           Global<float> parts,  // (splits, B, upper tiles, TILE, TILE)
                           int blocks, int tiles) {
  if constexpr (!available<Kind>()) return;
  constexpr int D = kStepDepth<Kind>;
  using Element = typename Kind::Element;
  using Tile = MapTile<Element, TILE, D, CHANNELS_LAST, kGramThreads<TILE>>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(kStages * Tile::kElements);
  const Shared<Element> right = memory.array<Element>(kStages * Tile::kElements);
  GramProduct<Kind, TILE> sums;

  const int part = blockIdx.y;
  const int64_t image = blockIdx.z;
  const TileAt tile = upper_tile(blockIdx.x, tiles);
  const bool diagonal = tile.row == tile.column;
  const int row = tile.row * TILE, column = tile.column * TILE;
  const auto features = maps.of(image);
  const int used = list ? int(counts[image]) : blocks, share = ceil_div(used, static_cast<int>(gridDim.y));
  const int first = min(part * share, used), last = min(first + share, used);

  constexpr uint64_t kEveryPixel = ~uint64_t(0) >> (64 - D);
  const auto block_at = [&](int index) {
    if (index >= last || !list) return PixelBlock{index, 0, kEveryPixel};
    return PixelBlock(list[image * blocks + index]);
  };
  PixelBlock next = block_at(first);
  uint64_t foreground = 0;  // of the block that was copied last
  pipeline(
      first, last,
      [&](int index, int stage) {
        const int n = next.index * D;
        Tile::copy(left + stage * Tile::kElements, features, row, n);
        if (!diagonal) Tile::copy(right + stage * Tile::kElements, features, column, n);
        foreground = next.foreground;
        next = block_at(index + 1);
      },
      [&](int stage) {
        if (!kRounds<Kind> && foreground == kEveryPixel) return;
        mask_tile<Kind, Tile, CHANNELS_LAST>(left + stage * Tile::kElements, foreground);
        if (!diagonal) mask_tile<Kind, Tile, CHANNELS_LAST>(right + stage * Tile::kElements, foreground);
      },
      [&](int stage) {
        sums.template add<!CHANNELS_LAST, !CHANNELS_LAST, Tile::kRows, Tile::kRows, kUnrolled<Kind, TILE>>(
            left + stage * Tile::kElements, (diagonal ? left : right) + stage * Tile::kElements, D);
      });

  const int64_t at = ((int64_t(part) * gridDim.z + image) * gridDim.x + blockIdx.x) * TILE * TILE;
  store_product(sums, parts + at, TILE, TILE, 0, 0);
}

// Below the diagonal every entry is its mirror image, inside the diagonal's tiles too: symmetric to the bit.
template <int TILE>
__global__ void __launch_bounds__(kSumThreads)
    masked_gram_fwd_sum_kernel(Global<const float> parts,
                               Global<float> gram,  // (B, C, C)
                               int64_t channels, float pixels, int tiles, int splits) {
  constexpr int kLd = TILE + 1;
  const int64_t image = blockIdx.z;
  const TileAt tile = upper_tile(blockIdx.x, tiles);
  const int first = blockIdx.y * kSummedRows;
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(kSummedRows * kLd);
  gram += image * channels * channels;

  for (int e = threadIdx.x; e < kSummedRows * TILE; e += kSumThreads) {
    const int r = e / TILE, c = e % TILE;
    float sum = 0;
#pragma unroll 8
    for (int part = 0; part < splits; ++part) {
      sum += parts[((part * gridDim.z + image) * gridDim.x + blockIdx.x) * TILE * TILE + first * TILE + e];
    }
    sum /= pixels;
    stage[r * kLd + c] = sum;
    const int64_t i = int64_t(tile.row) * TILE + first + r, j = int64_t(tile.column) * TILE + c;
    if (i <= j && j < channels) gram[i * channels + j] = sum;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < kSummedRows * TILE; e += kSumThreads) {
    const int r = e % kSummedRows, c = e / kSummedRows;
    const int64_t i = int64_t(tile.row) * TILE + first + r, j = int64_t(tile.column) * TILE + c;
    if (i < j && j < channels) gram[j * channels + i] = stage[r * kLd + c];
  }
}

// ---------------------------------------------------------------------------------------------------------------------

void check_mask(const Tensor& features, const std::optional<Tensor>& foreground) {
  check(features.dim() == 3, "features must have shape (B, C, N), got ", shape_text(features));
  check_pixels(features.size(2));
  if (!foreground) return;
  check_shape("foreground", *foreground, {features.size(0), features.size(2)});
  check_device("foreground", *foreground, features);
}

// features (B, C, N), foreground (B, N) bytes -> (B, C, C) float32.
Tensor masked_gram_forward(const Tensor& features, const std::optional<Tensor>& foreground, bool tf32) {
  check_mask(features, foreground);
  const int64_t batch = features.size(0), channels = features.size(1), pixels = features.size(2);
  const Tensor gram = allocate({batch, channels, channels}, features);
  if (batch == 0) return gram;
  const bool last = holds_vectors(features, true);
  const Tensor maps = last ? features : in_vectors(features);
  const bool wide = is_wide(channels, channels);
  dispatch_gram(features.scalar_type(), tf32, last, wide, [&](auto kind, auto layout, auto tile) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    constexpr int TILE = decltype(tile)::value;
    using Element = typename Kind::Element;
    const int64_t blocks = ceil_div(pixels, int64_t(kStepDepth<Kind>)), tiles = ceil_div(channels, int64_t(TILE));
    const int64_t upper = tiles * (tiles + 1) / 2;
    const int64_t splits = split(upper * batch, blocks / 4, wanted_blocks(TILE), kMostSplits);
    Workspace space;
    const auto parts = space.add<float>(splits * batch * upper * TILE * TILE);
    const auto list = space.add<PixelBlock>(foreground ? batch * blocks : 0);
    const auto counts = space.add<int32_t>(batch);
    space.allocate(features);
    if (foreground) {
      LAUNCH((masked_gram_fwd_list_kernel), batch, kListThreads, shared_bytes<int32_t>(kListThreads / kWarp), features,
             mask_of(foreground), space[list], space[counts], pixels, blocks, kStepDepth<Kind>);
    }
    LAUNCH((masked_gram_fwd_kernel<Kind, kLast, TILE>), dim3(upper, splits, batch), kGramThreads<TILE>,
           operand_bytes(TILE, 2 * kStages), features, matrix_of<Element>(maps, last),
           foreground ? space[list] : Global<PixelBlock>(), space[counts], space[parts], static_cast<int>(blocks),
           static_cast<int>(tiles));
    LAUNCH((masked_gram_fwd_sum_kernel<TILE>), dim3(upper, TILE / kSummedRows, batch), kSumThreads,
           shared_bytes<float>(kSummedRows * (TILE + 1)), features, space[parts], global<float>(gram), channels,
           static_cast<float>(pixels), static_cast<int>(tiles), static_cast<int>(splits));
  });
  return gram;
}

// grad (B, C, C) float32 of any strides -> the gradient (B, C, N) of the features.
Tensor masked_gram_backward(const Tensor& grad, const Tensor& features, const std::optional<Tensor>& foreground,
                            bool tf32) {
  check_mask(features, foreground);
  check_shape("grad", grad, {features.size(0), features.size(1), features.size(1)});
  return times_features(grad, features, foreground, true, tf32);
}

}  // namespace

SCSCO_SCHEMAS(m) {
  m.def("masked_gram_forward(Tensor features, Tensor? foreground, bool tf32) -> Tensor");
  m.def("masked_gram_backward(Tensor grad, Tensor features, Tensor? foreground, bool tf32) -> Tensor");
}

SCSCO_OPERATIONS(m) {
  m.impl("masked_gram_forward", TORCH_BOX(&masked_gram_forward));
  m.impl("masked_gram_backward", TORCH_BOX(&masked_gram_backward));
}

}  // namespace scsco
