// Region normalisation, backward: sums over both regions, split over the pixels, then the gradient of the map.
#pragma once

#include "region_norm.cuh"

namespace scsco {
namespace {

// Adds what the pixel groups of a block hold to what the first has. All threads of the block call it.
template <int N, class Place>
__device__ __forceinline__ void add_block(float (&own)[N], const Place& here, Shared<float> scratch) {
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
}

// A thread's items of a tile in both maps, and their regions.
template <class T, int V, bool CHANNELS_LAST, int P>
__device__ __forceinline__ void load_tiles(const NormMap<T>& grad, const NormMap<T>& x, const NormMasks& masks,
                                           const NormPlace<V, CHANNELS_LAST>& here, int64_t start,
                                           const NormShape& shape, int (&regions)[kItems][P], float (&dy)[kItems][V],
                                           float (&values)[kItems][V]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t n = start + here.pixel(i);
    const bool inside = n < here.last && here.channel < shape.channels;
    load_regions(masks, here.image, n, n < here.last, regions[i]);
    load_item(grad, here, n, inside, dy[i]);
    load_item(x, here, n, inside, values[i]);
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
    load_tiles(grad, x, masks, here, start, shape, regions, dy, values);
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

  add_block(own, here, scratch);
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

// Of a channel: both regions' pixels, and the sums of dy in both and of dy xh in both.
struct NormSums {
  float size[2] = {0, 0}, sum[4] = {0, 0, 0, 0};
};

__device__ __forceinline__ NormSums add_splits(Global<const float> counts, Global<const float> sums, int64_t image,
                                               int64_t c, const NormShape& shape) {
  NormSums own;
#pragma unroll 4
  for (int s = 0; s < shape.splits; ++s) {
    const int64_t part = image * shape.splits + s;
#pragma unroll
    for (int r = 0; r < 2; ++r) own.size[r] += counts[part * 2 + r];
#pragma unroll
    for (int k = 0; k < 4; ++k) own.sum[k] += sums[(part * 4 + k) * shape.channels + c];
  }
  return own;
}

// Gradient of a channel's affine, `channels` apart.
__device__ __forceinline__ void store_affine(Global<float> to, int64_t channels, const NormSums& total,
                                             const NormStatistics& own, bool adapt) {
  const float (&sum)[4] = total.sum;
  const float d_fg_weight = adapt ? own.deviation[1] * sum[2] + own.centre[1] * sum[0] : sum[2];
  to[0] = total.size[0] > 0 ? d_fg_weight : 0.0f;
  to[channels] = sum[0];
  to[2 * channels] = sum[3];
  to[3 * channels] = sum[1];
}

// What dx is computed with, `channels` apart: of both regions mean, 1 / deviation, mean of dy and of dy xh, and slope.
__device__ __forceinline__ void put_factors(Shared<float> to, int channels, const NormSums& total,
                                            const NormStatistics& own, float fg_weight, float bg_weight, bool adapt) {
  // Without a foreground nothing passes between the regions, not even 0 * NaN.
  const bool has_foreground = total.size[0] > 0;
  const float size[2] = {fmaxf(total.size[0], 1.0f), fmaxf(total.size[1], 1.0f)};
  const float slope[2] = {(adapt ? fg_weight * own.deviation[1] : fg_weight) / own.deviation[0],
                          bg_weight / own.deviation[1]};
  const float share = fg_weight / size[1];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    to[r * channels] = own.centre[r];
    to[(2 + r) * channels] = 1.0f / own.deviation[r];
    to[(4 + r) * channels] = total.sum[r] / size[r];
    to[(6 + r) * channels] = total.sum[2 + r] / size[r];
    to[(8 + r) * channels] = slope[r];
    // What reaches the background's moments through the foreground.
    to[(10 + r) * channels] = adapt && has_foreground ? share * total.sum[2 * r] : 0.0f;
  }
}

template <class T, int V, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    region_norm_bwd_dx_kernel(NormMap<T> grad, NormMap<T> x, NormMasks masks, Global<const float> mean,
                              Global<const float> deviations, Global<const float> counts, Global<const float> sums,
                              Global<const float> affine,  // (4, C)
                              Global<T> dx,                // (B, C, N)
                              Global<float> d_affine,      // (B, 4, C): this image's part
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
    NormSums total;
    if (inside) total = add_splits(counts, sums, here.image, c, shape);
    NormStatistics own;
#pragma unroll
    for (int r = 0; inside && r < 2; ++r) {
      own.centre[r] = mean[(here.image * shape.channels + c) * 2 + r];
      own.deviation[r] = deviations[(here.image * shape.channels + c) * 2 + r];
    }
    if (inside && here.split == 0) {
      store_affine(d_affine + (here.image * 4 * shape.channels + c), shape.channels, total, own, adapt);
    }
    const float fg_weight = inside ? affine[c] : 0.0f;
    const float bg_weight = inside ? affine[2 * shape.channels + c] : 0.0f;
    put_factors(factors + i, channels, total, own, fg_weight, bg_weight, adapt);
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
    load_tiles(grad, x, masks, here, start, shape, regions, dy, values);
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

}  // namespace
}  // namespace scsco
