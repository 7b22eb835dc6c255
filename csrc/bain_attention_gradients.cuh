// Gradients of the attention's moments as packed rows, and what the softmax's backward subtracts from each row.
#pragma once

#include "bain_attention_packing.cuh"

namespace scsco {
namespace {

constexpr int kGradientPlaces = 32;               // that are packed at a time
constexpr int kPairs = kChannels / 2;             // of channels, of which a thread has one
constexpr int kPairStep = kPackThreads / kPairs;  // places between two of a thread
constexpr int kStatisticsStep = 64;  // rows of statistics are padded to a multiple: 16 bytes can be read at once

// What the forward saved and the gradients of its results.
struct MomentGradients {
  InputMap d_mean, d_std;
  Global<const float> first, variance;  // (B, N, C)
  Global<const float> unit;             // (B, width)
  float eps;
};

// da and db of scaled values, and a and b themselves, of one query and channel.
struct MomentGradient {
  float da, db, a, b;
};

// Calls function(i, gradients) with the gradients of a thread's two channels, those of pair thread % kPairs of the
// block at `first_channel`, of place thread / kPairs + i * kPairStep of those in `pixels`; 0 outside. All threads of a
// block call it; `stage` holds two tiles.
template <class Function>
__device__ __forceinline__ void each_gradient(const MomentGradients& from, int64_t image, Shared<const int64_t> pixels,
                                              int count, int first_channel, const AttentionShape& shape,
                                              Shared<float> stage, const Function& function) {
  constexpr int kTileSize = kGradientPlaces * kStageLd;
  __syncthreads();
  stage_map<kGradientPlaces>(from.d_mean, image, pixels, count, first_channel, shape.channels, stage);
  stage_map<kGradientPlaces>(from.d_std, image, pixels, count, first_channel, shape.channels, stage + kTileSize);
  __syncthreads();
  const int own = threadIdx.x % kPairs * 2;
  float unit[2], inverse[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int channel = first_channel + own + c;
    unit[c] = channel < shape.channels ? float(from.unit[image * shape.width + channel]) : 1.0f;
    inverse[c] = 1.0f / unit[c];  // exact, of a power of two
  }
#pragma unroll
  for (int i = 0; i < kGradientPlaces / kPairStep; ++i) {
    const int place = threadIdx.x / kPairs + i * kPairStep;
    MomentGradient gradients[2] = {};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int channel = first_channel + own + c;
      if (place >= count || channel >= shape.channels) continue;
      const int64_t at = (image * shape.pixels + pixels[place]) * shape.channels + channel;
      const float first = from.first[at], variance = from.variance[at];
      const float d_mean = stage[place * kStageLd + own + c], d_std = stage[kTileSize + place * kStageLd + own + c];
      const float d_var = variance >= 0 ? 0.5f * d_std / sqrtf(variance + from.eps) : 0.0f;
      const float a = first * inverse[c];
      gradients[c] = {(d_mean - 2.0f * first * d_var) * unit[c], d_var * unit[c] * unit[c], a,
                      variance * (inverse[c] * inverse[c]) + a * a};
    }
    function(i, gradients);
  }
}

__device__ __forceinline__ void stage_pixels(const Regions& regions, int64_t first, int count, Shared<int64_t> pixels) {
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) pixels[threadIdx.x] = regions.order[first + threadIdx.x];
}

// Largest |da| and |db|, so that float16 can hold them: gradients may be far below its smallest number.
__global__ void __launch_bounds__(kPackThreads, 2)
    bain_attention_bwd_range_kernel(MomentGradients from, Regions regions,
                                    Global<float> largest,  // (B, blocks of channels, kSplits)
                                    AttentionShape shape) {
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(2 * kGradientPlaces * kStageLd);
  const Shared<int64_t> pixels = memory.array<int64_t>(kGradientPlaces);
  const Shared<float> scratch = memory.array<float>(kPackWarps);
  const int64_t image = blockIdx.z;
  const int split = blockIdx.x, n_query = regions.queries(image), length = ceil_div(n_query, kSplits);
  const int end = min((split + 1) * length, n_query);
  float own = 0;
  for (int start = split * length; start < end; start += kGradientPlaces) {
    const int count = min(end - start, kGradientPlaces);
    stage_pixels(regions, image * shape.pixels + start, count, pixels);
    each_gradient(from, image, pixels, count, blockIdx.y * kChannels, shape, stage,
                  [&](int, const MomentGradient(&g)[2]) {
#pragma unroll
                    for (int c = 0; c < 2; ++c) own = fmaxf(own, fmaxf(fabsf(g[c].da), fabsf(g[c].db)));
                  });
  }
  own = warp_max(own);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = own;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 0; warp < kPackWarps; ++warp) own = fmaxf(own, scratch[warp]);
  largest[(image * gridDim.y + blockIdx.y) * kSplits + split] = own;
}

// Float16 weights are multiplied by 2^8. With thousands of keys they, and the gradients of their logits, are below its
// smallest normal number, 6e-5: at 256 x 256 pixels dq and dk would have errors of 3 %.
constexpr int kWeightBits = 8;

template <class Element>
struct GradientRows {
  Global<Element> da, db;    // (B, N, width)
  Global<float> statistics;  // (B, 2, N padded): lse in base 2, in float16 less kWeightBits; delta
  Global<float> span;        // (B): what the gradients of such rows are multiplied by
};

__host__ __device__ constexpr int64_t statistics_width(int pixels) {
  return ceil_div(int64_t(pixels), int64_t(kStatisticsStep)) * kStatisticsStep;
}

// By what power of two float16 gradients stay below 2: one outlier's v' of up to sqrt(N) / 4 in every channel, a weight
// of 1/2 and kWeightBits make the logits' gradients C sqrt(N) 2^4 / room, which float16 must hold. 8 at least: for the
// sums over channels.
inline float room_of(const AttentionShape& shape) {
  const double most = std::log2(std::max(1, shape.channels)) + std::log2(std::max(1, shape.pixels)) / 2;
  return static_cast<float>(std::exp2(std::max(3.0, std::ceil(most) - 9)));
}

// Grid: blocks of kGradientPlaces places, images. Without `largest` nothing is scaled.
template <class Kind>
__global__ void __launch_bounds__(kPackThreads, 2)
    bain_attention_bwd_pack_kernel(MomentGradients from, Regions regions,
                                   Global<const float> lse,      // (B, N)
                                   Global<const float> largest,  // (B, n_largest) or absent
                                   int n_largest, float room, GradientRows<typename Kind::Element> to,
                                   AttentionShape shape) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  constexpr int kOwn = kGradientPlaces / kPairStep;
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(2 * kGradientPlaces * kStageLd);
  const Shared<int64_t> pixels = memory.array<int64_t>(kGradientPlaces);
  const int64_t image = blockIdx.y;
  const int start = blockIdx.x * kGradientPlaces, n_query = regions.queries(image);
  if (start > 0 && start >= n_query) return;
  const int thread = threadIdx.x, count = min(n_query - start, kGradientPlaces);
  const int64_t base = image * shape.pixels;

  float span = 1;
  if (largest) {
    float most = 0;
    for (int i = thread % kWarp; i < n_largest; i += kWarp) most = fmaxf(most, largest[image * n_largest + i]);
    most = warp_max(most);
    // The largest gradient becomes 1 / room to 2 / room, far from float16's smallest number.
    if (most > 1e-30f && most < 1e30f) span = __int_as_float(__float_as_int(most) & 0x7f800000) * room;
  }
  const int lifted = largest ? kWeightBits : 0;
  if (start == 0 && thread == 0) to.span[image] = span / (1 << lifted);
  const float inverse = 1.0f / span;

  stage_pixels(regions, base + start, count, pixels);
  float delta[kOwn] = {};
  for (int first_channel = 0; first_channel < shape.width; first_channel += kChannels) {
    each_gradient(from, image, pixels, count, first_channel, shape, stage, [&](int i, const MomentGradient(&g)[2]) {
      const int place = thread / kPairs + i * kPairStep, channel = first_channel + thread % kPairs * 2;
      const auto da = rounded<Kind>({g[0].da * inverse, g[1].da * inverse});
      const auto db = rounded<Kind>({g[0].db * inverse, g[1].db * inverse});
      // With the rounded gradients, so that the logits' gradients of a row add up to 0.
#pragma unroll
      for (int c = 0; c < 2; ++c) delta[i] += to_float(da[c]) * g[c].a + to_float(db[c]) * g[c].b;
      if (place >= count || channel >= shape.width) return;
      const int64_t at = (base + start + place) * shape.width + channel;
      store(to.da + at, da);
      store(to.db + at, db);
    });
  }
  const int64_t width = statistics_width(shape.pixels);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int place = thread / kPairs + i * kPairStep;
#pragma unroll
    for (int lanes = kPairs / 2; lanes > 0; lanes /= 2) delta[i] += __shfl_xor_sync(kAllLanes, delta[i], lanes);
    if (thread % kPairs != 0) continue;
    const Global<float> own = to.statistics + (image * 2 * width + start + place);
    own[0] = place < count ? lse[base + pixels[place]] * kLog2E - lifted : 0.0f;
    own[width] = place < count ? delta[i] : 0.0f;  // 16 bytes are read of a row's end, too
  }
}

// ---------------------------------------------------------------------------------------------------------------------

// Gradients of both moments of every query, in float16 scaled, and what the softmax's backward subtracts: arrays of the
// call's workspace.
template <class Element>
struct PackedGradients {
  Workspace::Array<Element> da, db;    // (B, N, width)
  Workspace::Array<float> statistics;  // (B, 2, N padded), as in GradientRows
  Workspace::Array<float> span;        // (B)
  Workspace::Array<float> largest;     // (B, blocks of channels, kSplits)

  PackedGradients(Workspace& space, int64_t batch, const AttentionShape& shape) {
    da = space.add<Element>(batch * shape.pixels * shape.width);
    db = space.add<Element>(batch * shape.pixels * shape.width);
    statistics = space.add<float>(batch * 2 * statistics_width(shape.pixels));
    span = space.add<float>(batch);
    largest = space.add<float>(batch * ceil_div(shape.channels, kChannels) * kSplits);
  }
};

template <class Kind>
void pack_gradients(const Tensor& grad_mean, const Tensor& grad_std, const Tensor& first, const Tensor& variance,
                    const Tensor& lse, const Regions& regions, const AttentionShape& shape, double eps,
                    const Workspace& space, Global<const float> unit,
                    const PackedGradients<typename Kind::Element>& to) {
  using Element = typename Kind::Element;
  const int64_t batch = lse.size(0);
  const MomentGradients from{
      input_map(grad_mean),   input_map(grad_std), global<const float>(first), global<const float>(variance), unit,
      static_cast<float>(eps)};
  const size_t shared = shared_bytes<float>(2 * kGradientPlaces * kStageLd) + shared_bytes<int64_t>(kGradientPlaces);
  const int blocks = ceil_div(shape.channels, kChannels);
  Global<const float> largest{};
  if constexpr (std::is_same_v<Element, half>) {
    LAUNCH((bain_attention_bwd_range_kernel), dim3(kSplits, blocks, batch), kPackThreads,
           shared + shared_bytes<float>(kPackWarps), lse, from, regions, space[to.largest], shape);
    largest = space[to.largest];
  }
  const GradientRows<Element> rows{space[to.da], space[to.db], space[to.statistics], space[to.span]};
  LAUNCH((bain_attention_bwd_pack_kernel<Kind>), dim3(ceil_div(shape.pixels, kGradientPlaces), batch), kPackThreads,
         shared, lse, from, regions, global<const float>(lse), largest, blocks * kSplits, room_of(shape), rows, shape);
}

}  // namespace
}  // namespace scsco
