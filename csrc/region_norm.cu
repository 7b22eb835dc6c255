// Region normalisation: one read gives both regions' moments, one read and write apply them; likewise backward.
//
// A thread takes items of V neighbours: V pixels of one channel or, channels last, V channels of one pixel. A block's
// threads are channel groups by pixel groups. Images are cut into splits of pixels so that small batches fill the
// device; each split's partial sums go to a small float32 buffer, and whoever needs them merges the splits in the same
// order.
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

// Mean and sum of squared deviations of `more` further numbers join those of `count`, by Chan's update: no difference
// of large numbers is taken.
__device__ __forceinline__ void merge_moments(float count, float& mean, float& m2, float more, float more_mean,
                                              float more_m2) {
  const float share = more / fmaxf(count + more, 1.0f);
  const float step = more_mean - mean;
  mean += step * share;
  m2 += more_m2 + step * step * (count * share);
}

// Moments of both regions that a thread or a split holds for S channels.
template <int S>
struct NormMoments {
  float count[2] = {0, 0}, mean[2][S] = {}, m2[2][S] = {};
  static constexpr int kFloats = 2 + 4 * S;

  __device__ __forceinline__ void put(Shared<float> to) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      to[r * kThreads] = count[r];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        to[(2 + r * S + s) * kThreads] = mean[r][s];
        to[(2 + (2 + r) * S + s) * kThreads] = m2[r][s];
      }
    }
  }

  __device__ __forceinline__ void merge(Shared<float> from) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float more = from[r * kThreads];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        merge_moments(count[r], mean[r][s], m2[r][s], more, from[(2 + r * S + s) * kThreads],
                      from[(2 + (2 + r) * S + s) * kThreads]);
      }
      count[r] += more;
    }
  }
};

template <class T, int V, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    region_norm_fwd_moments_kernel(NormMap<T> x, NormMasks masks,
                                   Global<float> counts,   // (B, splits, 2)
                                   Global<float> moments,  // (B, splits, 4, C): both means, both sums of squares
                                   NormShape shape) {
  const NormPlace<V, CHANNELS_LAST> here(shape);
  constexpr int S = here.kChannels, P = here.kPixels;
  SharedMemory memory;
  const Shared<float> scratch = memory.array<float>(NormMoments<S>::kFloats * kThreads);

  NormMoments<S> own;
  for (int64_t start = here.first; start < here.last; start += here.tile) {
    float values[kItems][V];
    int regions[kItems][P];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t n = start + here.pixel(i);
      load_regions(masks, here.image, n, n < here.last, regions[i]);
      load_item(x, here, n, n < here.last && here.channel < shape.channels, values[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float more = 0;
#pragma unroll
      for (int i = 0; i < kItems * P; ++i) more += regions[i / P][i % P] == r ? 1.0f : 0.0f;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        float sum = 0, squares = 0;
#pragma unroll
        for (int i = 0; i < kItems * P; ++i) sum += regions[i / P][i % P] == r ? values[i / P][s + i % P] : 0.0f;
        const float mean = sum / fmaxf(more, 1.0f);  // a reciprocal for all channels loses digits under a large mean
#pragma unroll
        for (int i = 0; i < kItems * P; ++i) {
          const float centred = regions[i / P][i % P] == r ? values[i / P][s + i % P] - mean : 0.0f;
          squares += centred * centred;
        }
        merge_moments(own.count[r], own.mean[r][s], own.m2[r][s], more, mean, squares);
      }
      own.count[r] += more;
    }
  }

  const Shared<float> mine = scratch + (here.pixel_group * here.channel_groups + here.channel_group);
  own.put(mine);
  __syncthreads();
  for (int groups = here.pixel_groups / 2; groups > 0; groups /= 2) {
    if (here.pixel_group < groups) {
      own.merge(mine + groups * here.channel_groups);
      own.put(mine);
    }
    __syncthreads();
  }

  if (here.pixel_group != 0) return;
  const int64_t part = here.image * shape.splits + here.split;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (here.channel == 0) counts[part * 2 + r] = own.count[r];
    if (here.channel >= shape.channels) continue;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int64_t at = part * 4 * shape.channels + here.channel + s;
      moments[at + r * shape.channels] = own.mean[r][s];
      moments[at + (2 + r) * shape.channels] = own.m2[r][s];
    }
  }
}

struct NormParameters {
  Global<const float> fg_weight, fg_bias, bg_weight, bg_bias;  // (C)
};

template <class T, int V, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    region_norm_fwd_apply_kernel(NormMap<T> x, NormMasks masks, Global<const float> counts, Global<const float> moments,
                                 NormParameters parameters,
                                 Global<T> y,               // (B, C, N)
                                 Global<float> mean,        // (B, C, 2)
                                 Global<float> deviations,  // (B, C, 2)
                                 NormShape shape, float eps, bool adapt) {
  const NormPlace<V, CHANNELS_LAST> here(shape);
  constexpr int S = here.kChannels, P = here.kPixels;
  const int channels = here.channel_groups * S;  // of this block
  SharedMemory memory;
  const Shared<float> factors = memory.array<float>(6 * channels);  // mean, gain and bias of both regions
  const Shared<float> stage = memory.array<float>(stage_size<V, CHANNELS_LAST>(here.pixel_bits));

  for (int i = threadIdx.x; i < channels; i += kThreads) {
    const int64_t c = int64_t(blockIdx.y) * channels + i;
    const bool inside = c < shape.channels;
    float centre[2] = {0, 0}, deviation[2] = {1, 1};
#pragma unroll
    for (int r = 0; inside && r < 2; ++r) {
      float count = 0, m2 = 0;
#pragma unroll 4
      for (int s = 0; s < shape.splits; ++s) {
        const int64_t part = here.image * shape.splits + s, at = part * 4 * shape.channels + c;
        const float more = counts[part * 2 + r];
        merge_moments(count, centre[r], m2, more, moments[at + r * shape.channels],
                      moments[at + (2 + r) * shape.channels]);
        count += more;
      }
      if (count > 0) deviation[r] = sqrtf(m2 / count + eps);
      if (here.split == 0) {
        mean[(here.image * shape.channels + c) * 2 + r] = centre[r];
        deviations[(here.image * shape.channels + c) * 2 + r] = deviation[r];
      }
    }
    const float weight = inside ? parameters.fg_weight[c] : 0.0f, bias = inside ? parameters.fg_bias[c] : 0.0f;
    factors[i] = centre[0];
    factors[channels + i] = centre[1];
    factors[2 * channels + i] = (adapt ? weight * deviation[1] : weight) / deviation[0];
    factors[3 * channels + i] = inside ? parameters.bg_weight[c] / deviation[1] : 0.0f;
    factors[4 * channels + i] = adapt ? weight * centre[1] + bias : bias;
    factors[5 * channels + i] = inside ? parameters.bg_bias[c] : 0.0f;
  }
  __syncthreads();

  float centre[2][S], gain[2][S], bias[2][S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Shared<float> own = factors + (r * channels + here.channel_group * S + s);
      centre[r][s] = own[0];
      gain[r][s] = own[2 * channels];
      bias[r][s] = own[4 * channels];
    }
  }
  for (int64_t start = here.first; start < here.last; start += here.tile) {
    float values[kItems][V];
    int regions[kItems][P];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t n = start + here.pixel(i);
      load_regions(masks, here.image, n, n < here.last, regions[i]);
      load_item(x, here, n, n < here.last && here.channel < shape.channels, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int s = CHANNELS_LAST ? v : 0, region = regions[i][CHANNELS_LAST ? 0 : v];
        const bool fg = region == kForeground;
        // Centred first: x and its mean may be large and near each other.
        const float centred = values[i][v] - (fg ? centre[0][s] : centre[1][s]);
        const float out = centred * (fg ? gain[0][s] : gain[1][s]) + (fg ? bias[0][s] : bias[1][s]);
        values[i][v] = region == kExcluded ? 0.0f : out;
      }
    }
    store_items(y, here, start, shape, values, stage);
  }
}

template <class T, int V, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    region_norm_bwd_sums_kernel(NormMap<T> grad, NormMap<T> x, NormMasks masks, Global<const float> mean,
                                Global<const float> deviations,
                                Global<float> counts,  // (B, splits, 2)
                                Global<float> sums,    // (B, splits, 4, C): of dy in both regions, of dy xh likewise
                                NormShape shape) {
  const NormPlace<V, CHANNELS_LAST> here(shape);
  constexpr int S = here.kChannels, P = here.kPixels, N = 2 + 4 * S;
  SharedMemory memory;
  const Shared<float> scratch = memory.array<float>(N * kThreads);

  float centre[2][S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = (here.image * shape.channels + here.channel + s) * 2 + r;
      centre[r][s] = here.channel < shape.channels ? float(mean[at]) : 0.0f;
    }
  }
  float own[N] = {};  // two counts, sums of dy in both regions, sums of dy (x - mean) in both regions
  for (int64_t start = here.first; start < here.last; start += here.tile) {
    float dy[kItems][V], values[kItems][V];
    int regions[kItems][P];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t n = start + here.pixel(i);
      const bool inside = n < here.last && here.channel < shape.channels;
      load_regions(masks, here.image, n, n < here.last, regions[i]);
      load_item(grad, here, n, inside, dy[i]);
      load_item(x, here, n, inside, values[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kItems * P; ++i) own[r] += regions[i / P][i % P] == r ? 1.0f : 0.0f;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int s = CHANNELS_LAST ? v : 0;
          const bool used = regions[i][CHANNELS_LAST ? 0 : v] == r;
          own[2 + r * S + s] += used ? dy[i][v] : 0.0f;
          own[2 + (2 + r) * S + s] += used ? dy[i][v] * (values[i][v] - centre[r][s]) : 0.0f;
        }
      }
    }
  }

  const Shared<float> mine = scratch + (here.pixel_group * here.channel_groups + here.channel_group);
#pragma unroll
  for (int i = 0; i < N; ++i) mine[i * kThreads] = own[i];
  __syncthreads();
  for (int groups = here.pixel_groups / 2; groups > 0; groups /= 2) {
    if (here.pixel_group < groups) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        own[i] += mine[i * kThreads + groups * here.channel_groups];
        mine[i * kThreads] = own[i];
      }
    }
    __syncthreads();
  }

  if (here.pixel_group != 0) return;
  const int64_t part = here.image * shape.splits + here.split;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (here.channel == 0) counts[part * 2 + r] = own[r];
    if (here.channel >= shape.channels) continue;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int64_t at = part * 4 * shape.channels + here.channel + s;
      sums[at + r * shape.channels] = own[2 + r * S + s];
      sums[at + (2 + r) * shape.channels] =
          own[2 + (2 + r) * S + s] / deviations[(here.image * shape.channels + here.channel + s) * 2 + r];
    }
  }
}

constexpr int kBackwardFactors = 12;

template <class T, int V, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    region_norm_bwd_dx_kernel(NormMap<T> grad, NormMap<T> x, NormMasks masks, Global<const float> mean,
                              Global<const float> deviations, Global<const float> counts, Global<const float> sums,
                              NormParameters weights,
                              Global<T> dx,              // (B, C, N)
                              Global<float> parameters,  // (B, 4, C): this image's gradients of the parameters
                              NormShape shape, bool adapt) {
  const NormPlace<V, CHANNELS_LAST> here(shape);
  constexpr int S = here.kChannels, P = here.kPixels;
  const int channels = here.channel_groups * S;  // of this block
  SharedMemory memory;
  const Shared<float> factors = memory.array<float>(kBackwardFactors * channels);
  const Shared<float> stage = memory.array<float>(stage_size<V, CHANNELS_LAST>(here.pixel_bits));

  for (int i = threadIdx.x; i < channels; i += kThreads) {
    const int64_t c = int64_t(blockIdx.y) * channels + i;
    const bool inside = c < shape.channels;
    float size[2] = {0, 0}, sum[4] = {0, 0, 0, 0};
#pragma unroll 4
    for (int s = 0; s < (inside ? shape.splits : 0); ++s) {
      const int64_t part = here.image * shape.splits + s;
#pragma unroll
      for (int r = 0; r < 2; ++r) size[r] += counts[part * 2 + r];
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] += sums[(part * 4 + k) * shape.channels + c];
    }
    // Without a foreground nothing passes between the regions, not even 0 * NaN.
    const bool has_foreground = size[0] > 0;
    float centre[2] = {0, 0}, deviation[2] = {1, 1};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      size[r] = fmaxf(size[r], 1.0f);
      if (inside) centre[r] = mean[(here.image * shape.channels + c) * 2 + r];
      if (inside) deviation[r] = deviations[(here.image * shape.channels + c) * 2 + r];
    }
    const float fg_weight = inside ? weights.fg_weight[c] : 0.0f, bg_weight = inside ? weights.bg_weight[c] : 0.0f;
    if (inside && here.split == 0) {
      const int64_t at = here.image * 4 * shape.channels + c;
      const float d_fg_weight = adapt ? deviation[1] * sum[2] + centre[1] * sum[0] : sum[2];
      parameters[at] = has_foreground ? d_fg_weight : 0.0f;
      parameters[at + shape.channels] = sum[0];
      parameters[at + 2 * shape.channels] = sum[3];
      parameters[at + 3 * shape.channels] = sum[1];
    }
    const float slope[2] = {(adapt ? fg_weight * deviation[1] : fg_weight) / deviation[0], bg_weight / deviation[1]};
    const float share = fg_weight / size[1];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[r * channels + i] = centre[r];
      factors[(2 + r) * channels + i] = 1.0f / deviation[r];
      factors[(4 + r) * channels + i] = sum[r] / size[r];
      factors[(6 + r) * channels + i] = sum[2 + r] / size[r];
      factors[(8 + r) * channels + i] = slope[r];
      // What reaches the background's moments through the foreground.
      factors[(10 + r) * channels + i] = adapt && has_foreground ? share * sum[2 * r] : 0.0f;
    }
  }
  __syncthreads();

  float factor[kBackwardFactors][S];
#pragma unroll
  for (int k = 0; k < kBackwardFactors; ++k) {
#pragma unroll
    for (int s = 0; s < S; ++s) factor[k][s] = factors[k * channels + here.channel_group * S + s];
  }
  for (int64_t start = here.first; start < here.last; start += here.tile) {
    float dy[kItems][V], values[kItems][V];
    int regions[kItems][P];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t n = start + here.pixel(i);
      const bool inside = n < here.last && here.channel < shape.channels;
      load_regions(masks, here.image, n, n < here.last, regions[i]);
      load_item(grad, here, n, inside, dy[i]);
      load_item(x, here, n, inside, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int s = CHANNELS_LAST ? v : 0, region = regions[i][CHANNELS_LAST ? 0 : v];
        const bool fg = region == kForeground;
        const float xh = (values[i][v] - (fg ? factor[0][s] : factor[1][s])) * (fg ? factor[2][s] : factor[3][s]);
        // Subtracted before the slope is applied: a region of one pixel then gives 0, not 316 times a rounding error.
        float out = dy[i][v] - (fg ? factor[4][s] : factor[5][s]) - (fg ? factor[6][s] : factor[7][s]) * xh;
        out *= fg ? factor[8][s] : factor[9][s];
        out += fg ? 0.0f : factor[10][s] + factor[11][s] * xh;
        dy[i][v] = region == kExcluded ? 0.0f : out;
      }
    }
    store_items(dx, here, start, shape, dy, stage);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

// The strides of a map (B, C, N) let V elements be read at once.
bool holds_vectors(const Tensor& map, int v, bool channels_last) {
  const int fast = channels_last ? 1 : 2, slow = channels_last ? 2 : 1;
  const auto address = reinterpret_cast<uintptr_t>(map.const_data_ptr());
  const size_t element = map.scalar_type() == ScalarType::Float ? 4 : 2;
  return map.size(fast) % v == 0 && map.stride(fast) == 1 && map.stride(slow) % v == 0 && map.stride(0) % v == 0 &&
         address % (v * element) == 0;
}

bool holds_mask_vectors(const Tensor& mask, int v) {
  return mask.stride(1) == 1 && mask.stride(0) % v == 0 && reinterpret_cast<uintptr_t>(mask.const_data_ptr()) % v == 0;
}

// Calls function(NormItem<V, CHANNELS_LAST>()) with the widest items that the maps and masks allow.
template <class Function>
void dispatch_item(std::initializer_list<Tensor> maps, std::initializer_list<Tensor> masks, const Function& function) {
  constexpr int V = 4;
  bool planes = true, channels_last = true;
  for (const Tensor& map : maps) {
    planes = planes && holds_vectors(map, V, false);
    channels_last = channels_last && holds_vectors(map, V, true);
  }
  for (const Tensor& mask : masks) planes = planes && holds_mask_vectors(mask, V);
  if (planes) return function(NormItem<V, false>());
  if (channels_last) return function(NormItem<V, true>());
  function(NormItem<1, false>());
}

struct NormPlan {
  NormShape shape;
  dim3 grid;
  int channels;  // of a block
};

template <class Item>
NormPlan plan_of(const Tensor& x) {
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2);
  const int64_t channel_items = ceil_div(channels, Item::kChannels);
  int pixel_bits = kThreadBits;
  if (Item::kPixels > 1 || Item::kChannels == 1) {  // a block takes few channels, unless there are few pixels
    while (1 << pixel_bits > kWarp && pixels <= kItems * Item::kPixels << (pixel_bits - 1)) --pixel_bits;
  } else {  // a block takes as many channels as a warp has lanes
    while (1 << pixel_bits > kThreads / kWarp && kThreads >> pixel_bits < channel_items) --pixel_bits;
  }
  const int64_t channel_groups = kThreads >> pixel_bits, tile = int64_t(kItems) * Item::kPixels << pixel_bits;
  const int64_t columns = ceil_div(channel_items, channel_groups), tiles = ceil_div(pixels, tile);
  const int64_t each = ceil_div(tiles, split(batch * columns, tiles, kWantedBlocks, kMaxSplits));
  const int64_t splits = ceil_div(tiles, each);
  const NormShape shape{channels, pixels, static_cast<int>(splits), each * tile, pixel_bits};
  return {shape, dim3(splits, columns, batch), static_cast<int>(channel_groups * Item::kChannels)};
}

template <class T>
NormMap<T> map_of(const Tensor& x) {
  return {global<const T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

NormMasks masks_of(const Tensor& foreground, const std::optional<Tensor>& valid) {
  const Tensor& second = valid ? *valid : foreground;
  return {global<const byte>(foreground), global<const byte>(valid), foreground.stride(0), foreground.stride(1),
          second.stride(0), second.stride(1)};
}

void check_inputs(const Tensor& x, const Tensor& foreground, const std::optional<Tensor>& valid,
                  std::initializer_list<std::pair<const char*, Tensor>> parameters) {
  check(x.dim() == 3, "x must have shape (B, C, N), got ", shape_text(x));
  check_shape("foreground", foreground, {x.size(0), x.size(2)});
  check_device("foreground", foreground, x);
  if (valid) {
    check_shape("valid", *valid, {x.size(0), x.size(2)});
    check_device("valid", *valid, x);
  }
  for (const auto& [name, parameter] : parameters) {
    check_shape(name, parameter, {x.size(1)});
    check(parameter.stride(0) == 1 || x.size(1) == 1, name, " must be contiguous");
    check_device(name, parameter, x);
  }
}

// x (B, C, N), masks (B, N) bytes, parameters (C) float32 -> y (B, C, N), mean and deviation (B, C, 2).
std::tuple<Tensor, Tensor, Tensor> region_norm_forward(const Tensor& x, const Tensor& foreground,
                                                       const std::optional<Tensor>& valid, const Tensor& fg_weight,
                                                       const Tensor& fg_bias, const Tensor& bg_weight,
                                                       const Tensor& bg_bias, double eps, bool adapt) {
  check_inputs(x, foreground, valid,
               {{"fg_weight", fg_weight}, {"fg_bias", fg_bias}, {"bg_weight", bg_weight}, {"bg_bias", bg_bias}});
  const int64_t batch = x.size(0), channels = x.size(1);
  const Tensor y = allocate_like(x);
  const Tensor mean = allocate({batch, channels, 2}, x), deviations = allocate({batch, channels, 2}, x);
  if (batch == 0) return {y, mean, deviations};
  const NormParameters parameters{global<const float>(fg_weight), global<const float>(fg_bias),
                                  global<const float>(bg_weight), global<const float>(bg_bias)};
  dispatch_item({x}, {foreground, valid.value_or(foreground)}, [&](auto item) {
    using Item = decltype(item);
    constexpr int V = Item::kChannels * Item::kPixels;
    constexpr bool kLast = Item::kChannels > 1;
    const NormPlan plan = plan_of<Item>(x);
    Workspace space;
    const auto counts = space.add<float>(batch * plan.shape.splits * 2);
    const auto moments = space.add<float>(batch * plan.shape.splits * 4 * channels);
    space.allocate(x);
    dispatch(x.scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      LAUNCH((region_norm_fwd_moments_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>(NormMoments<Item::kChannels>::kFloats * kThreads), x, map_of<T>(x),
             masks_of(foreground, valid), space[counts], space[moments], plan.shape);
      LAUNCH((region_norm_fwd_apply_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>(6 * plan.channels) +
                 shared_bytes<float>(stage_size<V, kLast>(plan.shape.pixel_bits)),
             x, map_of<T>(x), masks_of(foreground, valid), space[counts], space[moments], parameters, global<T>(y),
             global<float>(mean), global<float>(deviations), plan.shape, static_cast<float>(eps), adapt);
    });
  });
  return {y, mean, deviations};
}

// -> dx (B, C, N), and every image's gradients of fg_weight, fg_bias, bg_weight and bg_bias (B, 4, C), float32.
std::tuple<Tensor, Tensor> region_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& foreground,
                                                const std::optional<Tensor>& valid, const Tensor& fg_weight,
                                                const Tensor& bg_weight, const Tensor& mean, const Tensor& deviations,
                                                bool adapt) {
  check_inputs(x, foreground, valid, {{"fg_weight", fg_weight}, {"bg_weight", bg_weight}});
  const int64_t batch = x.size(0), channels = x.size(1);
  check_shape("grad", grad, {batch, channels, x.size(2)});
  check_device("grad", grad, x);
  for (const Tensor& statistic : {mean, deviations}) {
    check_shape("mean and std", statistic, {batch, channels, 2});
    check_device("mean and std", statistic, x);
    check(statistic.is_contiguous(), "mean and std must be contiguous");
  }
  const Tensor dx = allocate_like(x), parameters = allocate({batch, 4, channels}, x);
  if (batch == 0) return {dx, parameters};
  const NormParameters weights{global<const float>(fg_weight), {}, global<const float>(bg_weight), {}};
  dispatch_item({grad, x}, {foreground, valid.value_or(foreground)}, [&](auto item) {
    using Item = decltype(item);
    constexpr int V = Item::kChannels * Item::kPixels;
    constexpr bool kLast = Item::kChannels > 1;
    const NormPlan plan = plan_of<Item>(x);
    Workspace space;
    const auto counts = space.add<float>(batch * plan.shape.splits * 2);
    const auto sums = space.add<float>(batch * plan.shape.splits * 4 * channels);
    space.allocate(x);
    dispatch(x.scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      LAUNCH((region_norm_bwd_sums_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>((2 + 4 * Item::kChannels) * kThreads), x, map_of<T>(grad), map_of<T>(x),
             masks_of(foreground, valid), global<const float>(mean), global<const float>(deviations), space[counts],
             space[sums], plan.shape);
      LAUNCH((region_norm_bwd_dx_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>(kBackwardFactors * plan.channels) +
                 shared_bytes<float>(stage_size<V, kLast>(plan.shape.pixel_bits)),
             x, map_of<T>(grad), map_of<T>(x), masks_of(foreground, valid), global<const float>(mean),
             global<const float>(deviations), space[counts], space[sums], weights,
             global<T>(dx), global<float>(parameters), plan.shape, adapt);
    });
  });
  return {dx, parameters};
}

}  // namespace

SCSCO_OPERATIONS(m) {
  m.impl("region_norm_forward", TORCH_BOX(&region_norm_forward));
  m.impl("region_norm_backward", TORCH_BOX(&region_norm_backward));
}

}  // namespace scsco
