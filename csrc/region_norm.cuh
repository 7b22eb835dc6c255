// What both passes of region normalisation share: maps, masks, where a thread works, and how its items travel.
//
// A thread takes items of V neighbours: V pixels of one channel or, channels last, V channels of one pixel. A block's
// threads are channel groups by pixel groups.
#pragma once

#include "portable.cuh"

namespace scsco {
namespace {

constexpr int kThreadBits = 8;
constexpr int kThreads = 1 << kThreadBits;
// Of a multiprocessor, at least: left to itself ptxas spills up to 16 bytes to fit one more.
constexpr int kMinBlocks = 2;
constexpr int kItemBits = 2;
constexpr int kItems = 1 << kItemBits;   // that a thread loads before it uses them
constexpr int64_t kWantedBlocks = 1056;  // of threads: eight for each of an H100's 132 multiprocessors
constexpr int kMaxSplits = 32;           // bounds the buffers of partial sums and the work of merging them
enum Region { kForeground = 0, kBackground = 1, kExcluded = 2 };

template <class T>
struct NormMap {
  Global<const T> data;
  int64_t stride_b, stride_c, stride_n;
};

struct NormMasks {
  Global<const byte> foreground, valid;  // (B, N); valid may be absent
  int64_t stride_fb, stride_fn, stride_vb, stride_vn;
};

struct NormShape {
  int64_t channels, pixels;
  int splits;
  int64_t pixels_per_split;  // a multiple of what a block takes at once
  int pixel_bits;            // a block has 2^pixel_bits pixel groups
};

// How a thread's item lies in a map.
template <int V, bool CHANNELS_LAST>
struct NormItem {
  static constexpr int kChannels = CHANNELS_LAST ? V : 1;
  static constexpr int kPixels = CHANNELS_LAST ? 1 : V;
};

// Where a thread works. Neighbouring threads take neighbouring items.
template <int V, bool CHANNELS_LAST>
struct NormPlace : NormItem<V, CHANNELS_LAST> {
  using NormItem<V, CHANNELS_LAST>::kChannels;
  using NormItem<V, CHANNELS_LAST>::kPixels;

  int64_t image, split;
  int channel_bits, pixel_bits;  // the numbers of groups are powers of two: what is divided by them is shifted
  int channel_groups, pixel_groups, channel_group, pixel_group;
  int64_t block_channel, channel;  // the first of the block and of the item
  int64_t first, last;             // pixels of the split: [first, last)
  int tile;                        // pixels that the block takes at once

  __device__ __forceinline__ explicit NormPlace(const NormShape& shape) {
    const int thread = threadIdx.x;
    pixel_bits = shape.pixel_bits;
    channel_bits = kThreadBits - pixel_bits;
    pixel_groups = 1 << pixel_bits;
    channel_groups = 1 << channel_bits;
    channel_group = CHANNELS_LAST ? thread & (channel_groups - 1) : thread >> pixel_bits;
    pixel_group = CHANNELS_LAST ? thread >> channel_bits : thread & (pixel_groups - 1);
    image = blockIdx.z;
    split = blockIdx.x;
    block_channel = int64_t(blockIdx.y) * channel_groups * kChannels;
    channel = block_channel + channel_group * kChannels;
    first = split * shape.pixels_per_split;
    last = min(first + shape.pixels_per_split, shape.pixels);
    tile = kItems * pixel_groups * kPixels;
  }

  // The first pixel of an item, counted from the tile's.
  __device__ __forceinline__ int pixel(int item) const { return (item * pixel_groups + pixel_group) * kPixels; }
};

// The regions of P neighbouring pixels.
template <int P>
__device__ __forceinline__ void load_regions(const NormMasks& masks, int64_t image, int64_t n, bool inside,
                                             int (&regions)[P]) {
#pragma unroll
  for (int p = 0; p < P; ++p) regions[p] = kExcluded;
  if (!inside) return;
  const int64_t step_f = P > 1 ? 1 : masks.stride_fn, step_v = P > 1 ? 1 : masks.stride_vn;
  const auto fg = load<P>(masks.foreground + (image * masks.stride_fb + n * step_f));
#pragma unroll
  for (int p = 0; p < P; ++p) regions[p] = fg[p] ? kForeground : kBackground;
  if (!masks.valid) return;
  const auto valid = load<P>(masks.valid + (image * masks.stride_vb + n * step_v));
#pragma unroll
  for (int p = 0; p < P; ++p) regions[p] = fg[p] ? kForeground : valid[p] ? kBackground : kExcluded;
}

// Items of several elements are read only where these lie one after the other.
template <class T, int V, bool CHANNELS_LAST>
__device__ __forceinline__ void load_item(const NormMap<T>& map, const NormPlace<V, CHANNELS_LAST>& here, int64_t n,
                                          bool inside, float (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = 0;
  if (!inside) return;
  const int64_t step_c = here.kChannels > 1 ? 1 : map.stride_c, step_n = here.kPixels > 1 ? 1 : map.stride_n;
  const auto item = load<V>(map.data + (here.image * map.stride_b + here.channel * step_c + n * step_n));
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = to_float(item[v]);
}

// A thread's items of a tile, and their regions.
template <class T, int V, bool CHANNELS_LAST, int P>
__device__ __forceinline__ void load_tile(const NormMap<T>& map, const NormMasks& masks,
                                          const NormPlace<V, CHANNELS_LAST>& here, int64_t start,
                                          const NormShape& shape, int (&regions)[kItems][P],
                                          float (&values)[kItems][V]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t n = start + here.pixel(i);
    load_regions(masks, here.image, n, n < here.last, regions[i]);
    load_item(map, here, n, n < here.last && here.channel < shape.channels, values[i]);
  }
}

// Writes a tile's items to a contiguous map (B, C, N). Channels last they are turned through `stage`, which holds
// stage_size(...) floats, so that neighbouring threads write neighbouring pixels. All threads of a block call it.
template <class T, int V, bool CHANNELS_LAST>
__device__ __forceinline__ void store_items(Global<T> map, const NormPlace<V, CHANNELS_LAST>& here, int64_t start,
                                            const NormShape& shape, const float (&values)[kItems][V],
                                            Shared<float> stage) {
  const int64_t origin = here.image * shape.channels * shape.pixels + start;
  if constexpr (CHANNELS_LAST) {
    const int width = here.tile + 1;  // odd: 32 channels of a pixel lie in 32 banks
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        stage[(v * here.channel_groups + here.channel_group) * width + here.pixel(i)] = values[i][v];
      }
    }
    __syncthreads();
    const Global<T> block_map = map + (origin + here.block_channel * shape.pixels);
    const int groups = static_cast<int>(min((shape.channels - here.block_channel) / V, int64_t(here.channel_groups)));
    const int pixels = static_cast<int>(min(here.last - start, int64_t(here.tile)));
#pragma unroll 1  // four elements are under way at a time; two steps at once take 12 registers more
    for (int place = threadIdx.x; place < kItems * kThreads; place += kThreads) {
      const int group = place >> (here.pixel_bits + kItemBits), pixel = place & (here.tile - 1);
      if (group >= groups || pixel >= pixels) continue;
      const Shared<float> from = stage + (group * width + pixel);
      const Global<T> to = block_map + (group * V * shape.pixels + pixel);
#pragma unroll
      for (int v = 0; v < V; ++v) to[v * shape.pixels] = from_float<T>(from[v * here.channel_groups * width]);
    }
    __syncthreads();
  } else {
    if (here.channel >= shape.channels) return;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (start + here.pixel(i) >= here.last) continue;
      Vector<T, V> item;
#pragma unroll
      for (int v = 0; v < V; ++v) item[v] = from_float<T>(values[i][v]);
      store(map + (origin + here.channel * shape.pixels + here.pixel(i)), item);
    }
  }
}

template <int V, bool CHANNELS_LAST>
__host__ __device__ int stage_size(int pixel_bits) {
  return CHANNELS_LAST ? (V << (kThreadBits - pixel_bits)) * ((kItems << pixel_bits) + 1) : 0;
}

// Mean and deviation of a channel in both regions; 0 and 1 where a region has no pixels.
struct NormStatistics {
  float centre[2] = {0, 0}, deviation[2] = {1, 1};
};

}  // namespace
}  // namespace scsco
