// Region normalisation, forward: moments of both regions, split over the pixels, then their application.
#pragma once

#include "region_norm.cuh"

namespace scsco {
namespace {

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

  // Merges what the pixel groups of a block hold into what the first has. All threads of the block call it.
  template <class Place>
  __device__ __forceinline__ void merge_block(const Place& here, Shared<float> scratch) {
    const Shared<float> mine = scratch + (here.pixel_group * here.channel_groups + here.channel_group);
    put(mine);
    __syncthreads();
    for (int groups = here.pixel_groups / 2; groups > 0; groups /= 2) {
      if (here.pixel_group < groups) {
        merge(mine + groups * here.channel_groups);
        put(mine);
      }
      __syncthreads();
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
    load_tile(x, masks, here, start, shape, regions, values);
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

  own.merge_block(here, scratch);
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

// Of the moments of all splits.
__device__ __forceinline__ NormStatistics merge_splits(Global<const float> counts, Global<const float> moments,
                                                       int64_t image, int64_t c, const NormShape& shape, float eps) {
  NormStatistics own;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float count = 0, m2 = 0;
#pragma unroll 4
    for (int s = 0; s < shape.splits; ++s) {
      const int64_t part = image * shape.splits + s, at = part * 4 * shape.channels + c;
      const float more = counts[part * 2 + r];
      merge_moments(count, own.centre[r], m2, more, moments[at + r * shape.channels],
                    moments[at + (2 + r) * shape.channels]);
      count += more;
    }
    if (count > 0) own.deviation[r] = sqrtf(m2 / count + eps);
  }
  return own;
}

template <class T, int V, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    region_norm_fwd_apply_kernel(NormMap<T> x, NormMasks masks, Global<const float> counts, Global<const float> moments,
                                 Global<const float> affine,  // (4, C)
                                 Global<T> y,                 // (B, C, N)
                                 Global<float> mean,          // (B, C, 2)
                                 Global<float> deviations,    // (B, C, 2)
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
    NormStatistics own;
    if (inside) own = merge_splits(counts, moments, here.image, c, shape, eps);
#pragma unroll
    for (int r = 0; inside && here.split == 0 && r < 2; ++r) {
      mean[(here.image * shape.channels + c) * 2 + r] = own.centre[r];
      deviations[(here.image * shape.channels + c) * 2 + r] = own.deviation[r];
    }
    const float weight = inside ? affine[c] : 0.0f, bias = inside ? affine[shape.channels + c] : 0.0f;
    factors[i] = own.centre[0];
    factors[channels + i] = own.centre[1];
    factors[2 * channels + i] = (adapt ? weight * own.deviation[1] : weight) / own.deviation[0];
    factors[3 * channels + i] = inside ? affine[2 * shape.channels + c] / own.deviation[1] : 0.0f;
    factors[4 * channels + i] = adapt ? weight * own.centre[1] + bias : bias;
    factors[5 * channels + i] = inside ? affine[3 * shape.channels + c] : 0.0f;
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
    load_tile(x, masks, here, start, shape, regions, values);
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

}  // namespace
}  // namespace scsco
