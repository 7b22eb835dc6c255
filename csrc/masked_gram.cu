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
constexpr int kSplits = 32;     // at most

__global__ void __launch_bounds__(kListThreads)
    masked_gram_fwd_list_kernel(Mask masks,
                                Global<int32_t> list,    // (B, blocks): those with foreground, in raster order
                                Global<int32_t> counts,  // (B): how many
                                int64_t pixels, int64_t blocks, int depth) {
  constexpr int kWarps = kListThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, lanes = depth / kExamined;
  const int64_t image = blockIdx.x;
  const Mask mask = masks.of(image);
  SharedMemory memory;
  const Shared<int32_t> found = memory.array<int32_t>(kWarps);

  int64_t count = 0;
  for (int64_t first = 0; first < pixels; first += kListThreads * kExamined) {
    const int64_t n = first + threadIdx.x * kExamined;
    bool hit = false;
    if (mask.vectors) {
      Vector<byte, kExamined> fg{};
      if (n < pixels) fg = load<kExamined>(mask.data + n);
#pragma unroll
      for (int i = 0; i < kExamined; ++i) hit = hit || fg[i];
    } else {
      for (int i = 0; i < kExamined; ++i) hit = hit || (n + i < pixels && mask.data[(n + i) * mask.stride_n]);
    }
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    const bool lists = lane % lanes == 0 && (hits >> lane & ((1u << lanes) - 1));  // the first lane of every block
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
    if (lists) list[image * blocks + count + before] = static_cast<int32_t>(n / depth);
    count += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[image] = static_cast<int32_t>(count);
}

// Which pixels of a thread's share of a map's tile count.
template <class Share, bool CHANNELS_LAST>
struct Inside {
  static constexpr int kBytes = CHANNELS_LAST ? Share::kVectors : Share::kVector;
  Vector<byte, kBytes> foreground;

  __device__ __forceinline__ void fetch(const Mask& mask, int64_t first, int64_t pixels) {
    const int64_t n = first + (CHANNELS_LAST ? Share::row(0) : Share::column());
    if (!CHANNELS_LAST && mask.vectors) {
      foreground = {};
      if (n < pixels) foreground = load<kBytes>(mask.data + n);
      return;
    }
    constexpr int kStep = CHANNELS_LAST ? Share::kRowStep : 1;
#pragma unroll
    for (int i = 0; i < kBytes; ++i) {
      const bool exists = n + i * kStep < pixels;
      foreground[i] = exists ? byte(mask.data[(n + i * kStep) * mask.stride_n]) : byte(0);
    }
  }

  __device__ __forceinline__ bool operator()(int i, int v) const { return foreground[CHANNELS_LAST ? i : v] != 0; }
};

struct TileAt {
  int row, column;
};

// The tile-th tile on or above the diagonal of `tiles` x `tiles`.
__device__ __forceinline__ TileAt upper_tile(int tile, int tiles) {
  int row = 0;
  for (; tile >= tiles - row; ++row) tile -= tiles - row;
  return {row, row + tile};
}

template <class Kind, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    masked_gram_fwd_kernel(Matrix<typename Kind::Element> maps, Mask masks, Global<const int32_t> list,
                           Global<const int32_t> counts,
                           Global<float> parts,  // (splits, B, upper tiles, kTile, kTile)
                           int64_t pixels, int64_t blocks, int tiles) {
  if constexpr (!available<Kind>()) return;
  constexpr int D = kDepth<Kind>;
  using Tile = MapTile<Kind, kTile, D, CHANNELS_LAST>;
  using Element = typename Kind::Element;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(Tile::kElements), right = memory.array<Element>(Tile::kElements);
  Sums<Kind> sums;

  const int64_t part = blockIdx.y, image = blockIdx.z;
  const TileAt tile = upper_tile(blockIdx.x, tiles);
  const bool diagonal = tile.row == tile.column;
  const int64_t row = int64_t(tile.row) * kTile, column = int64_t(tile.column) * kTile;
  const auto features = maps.of(image);
  const Mask mask = masks.of(image);
  const int64_t used = masks.data ? int64_t(counts[image]) : blocks;
  const int64_t share = ceil_div(used, int64_t(gridDim.y));

  typename Tile::Share a, b;
  Inside<typename Tile::Share, CHANNELS_LAST> inside;
  // A pixel outside is 0 in both operands: it may hold NaN, and 0 * NaN is NaN.
  const auto put = [&](Shared<Element> to, const typename Tile::Share& share) {
    share.put(to, [&](int i) {
      auto values = share.packed[i].values();
#pragma unroll
      for (int v = 0; v < Tile::Share::kVector; ++v) {
        values[v] = !masks.data || inside(i, v) ? operand<Kind>(values[v]) : Element{};
      }
      return values;
    });
  };
  pipeline(
      min(part * share, used), min((part + 1) * share, used),
      [&](int64_t index) {
        const int64_t n = (masks.data ? int64_t(list[image * blocks + index]) : index) * D;
        a.fetch(features, row, n);
        if (!diagonal) b.fetch(features, column, n);
        if (masks.data) inside.fetch(mask, n, pixels);
      },
      [&] {
        put(left, a);
        if (!diagonal) put(right, b);
      },
      [&] {
        sums.template add<!CHANNELS_LAST, !CHANNELS_LAST, Tile::kRows, Tile::kRows>(left, diagonal ? left : right, D);
      });

  const int64_t at = ((part * gridDim.z + image) * gridDim.x + blockIdx.x) * kTile * kTile;
  sums.each([&](int m, int n, float& value) { parts[at + m * kTile + n] = value; });
}

// Below the diagonal every entry is its mirror image, inside the diagonal's tiles too: symmetric to the bit.
__global__ void __launch_bounds__(kSumThreads)
    masked_gram_fwd_sum_kernel(Global<const float> parts,
                               Global<float> gram,  // (B, C, C)
                               int64_t channels, float pixels, int tiles, int splits) {
  constexpr int kLd = kTile + 1;
  const int64_t image = blockIdx.z;
  const TileAt tile = upper_tile(blockIdx.x, tiles);
  const int first = blockIdx.y * kSummedRows;
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(kSummedRows * kLd);
  gram += image * channels * channels;

  for (int e = threadIdx.x; e < kSummedRows * kTile; e += kSumThreads) {
    const int r = e / kTile, c = e % kTile;
    float sum = 0;
#pragma unroll 8
    for (int part = 0; part < splits; ++part) {
      sum += parts[((part * gridDim.z + image) * gridDim.x + blockIdx.x) * kTile * kTile + first * kTile + e];
    }
    sum /= pixels;
    stage[r * kLd + c] = sum;
    const int64_t i = int64_t(tile.row) * kTile + first + r, j = int64_t(tile.column) * kTile + c;
    if (i <= j && j < channels) gram[i * channels + j] = sum;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < kSummedRows * kTile; e += kSumThreads) {
    const int r = e % kSummedRows, c = e / kSummedRows;
    const int64_t i = int64_t(tile.row) * kTile + first + r, j = int64_t(tile.column) * kTile + c;
    if (i < j && j < channels) gram[j * channels + i] = stage[r * kLd + c];
  }
}

// ---------------------------------------------------------------------------------------------------------------------

void check_mask(const Tensor& features, const std::optional<Tensor>& foreground) {
  check(features.dim() == 3, "features must have shape (B, C, N), got ", shape_text(features));
  if (!foreground) return;
  check_shape("foreground", *foreground, {features.size(0), features.size(2)});
  check_device("foreground", *foreground, features);
}

// features (B, C, N), foreground (B, N) bytes -> (B, C, C) float32.
Tensor masked_gram_forward(const Tensor& features, const std::optional<Tensor>& foreground, bool tf32,
                           int64_t programs) {
  check_mask(features, foreground);
  const int64_t batch = features.size(0), channels = features.size(1), pixels = features.size(2);
  const Tensor gram = allocate({batch, channels, channels}, features);
  if (batch == 0) return gram;
  const bool last = holds_vectors(features, true);
  const Tensor maps = last ? features : in_vectors(features);
  dispatch_gram(features.scalar_type(), tf32, last, [&](auto kind, auto layout) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    using Element = typename Kind::Element;
    const int64_t blocks = ceil_div(pixels, int64_t(kDepth<Kind>)), tiles = tiles_of(channels);
    const int64_t upper = tiles * (tiles + 1) / 2;
    const int64_t splits = split(upper * batch, blocks / 4, programs, kSplits);
    const Tensor parts = allocate({splits, batch, upper, kTile, kTile}, features);
    const Tensor list = allocate({batch, foreground ? blocks : 0}, features, ScalarType::Int);
    const Tensor counts = allocate({batch}, features, ScalarType::Int);
    if (foreground) {
      LAUNCH((masked_gram_fwd_list_kernel), batch, kListThreads, shared_bytes<int32_t>(kListThreads / kWarp), features,
             mask_of(foreground), global<int32_t>(list), global<int32_t>(counts), pixels, blocks, kDepth<Kind>);
    }
    LAUNCH((masked_gram_fwd_kernel<Kind, kLast>), dim3(upper, splits, batch), kProductThreads,
           2 * shared_bytes<Element>(MapTile<Kind, kTile, kDepth<Kind>, kLast>::kElements),
           features, matrix_of<Element>(maps, last), mask_of(foreground), global<const int32_t>(list),
           global<const int32_t>(counts), global<float>(parts), pixels, blocks, static_cast<int>(tiles));
    LAUNCH((masked_gram_fwd_sum_kernel), dim3(upper, kTile / kSummedRows, batch), kSumThreads,
           shared_bytes<float>(kSummedRows * (kTile + 1)), features, global<const float>(parts), global<float>(gram),
           channels, static_cast<float>(pixels), static_cast<int>(tiles), static_cast<int>(splits));
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

SCSCO_OPERATIONS(m) {
  m.impl("masked_gram_forward", TORCH_BOX(&masked_gram_forward));
  m.impl("masked_gram_backward", TORCH_BOX(&masked_gram_backward));
}

}  // namespace scsco
