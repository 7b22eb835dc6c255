// Gradients of the attention's moments as packed rows, and what the softmax's backward subtracts from each row.
#pragma once

#include "bain_attention_packing.cuh"

namespace scsco {
namespace {

constexpr int kGradientPlaces = 32;  // that are packed at a time

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

// Calls function(i, gradient) with a thread's channel, its lane's of the block at `first_channel`, of place
// warp + i * kPackWarps of those in `pixels`; 0 outside. All threads of a block call it; `stage` holds two tiles.
template <class Function>
__device__ __forceinline__ void each_gradient(const MomentGradients& from, int64_t image, Shared<const int64_t> pixels,
                                              int count, int first_channel, const Shape& shape, Shared<float> stage,
                                              const Function& function) {
  constexpr int kTileSize = kGradientPlaces * kStageLd;
  __syncthreads();
  stage_map<kGradientPlaces>(from.d_mean, image, pixels, count, first_channel, shape.channels, stage);
  stage_map<kGradientPlaces>(from.d_std, image, pixels, count, first_channel, shape.channels, stage + kTileSize);
  __syncthreads();
  const int lane = threadIdx.x % kWarp, channel = first_channel + lane;
  const bool inside = channel < shape.channels;
  const float unit = inside ? float(from.unit[image * shape.width + channel]) : 1.0f;
#pragma unroll
  for (int i = 0; i < kGradientPlaces / kPackWarps; ++i) {
    const int place = threadIdx.x / kWarp + i * kPackWarps;
    MomentGradient gradient{0, 0, 0, 0};
    if (place < count && inside) {
      const int64_t at = (image * shape.pixels + pixels[place]) * shape.channels + channel;
      const float first = from.first[at], variance = from.variance[at];
      const float d_mean = stage[place * kStageLd + lane], d_std = stage[kTileSize + place * kStageLd + lane];
      const float d_var = variance >= 0 ? 0.5f * d_std / sqrtf(variance + from.eps) : 0.0f;
      const float a = first / unit;
      gradient = {(d_mean - 2.0f * first * d_var) * unit, d_var * unit * unit, a, variance / (unit * unit) + a * a};
    }
    function(i, gradient);
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
                                    Shape shape) {
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
                  [&](int, const MomentGradient& g) { own = fmaxf(own, fmaxf(fabsf(g.da), fabsf(g.db))); });
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
  Global<float> delta, lse;  // (B, N); lse in base 2, in float16 less kWeightBits
  Global<float> span;        // (B): what the gradients of such rows are multiplied by
};

// Grid: blocks of kGradientPlaces places, images. Without `largest` nothing is scaled.
template <class Kind>
__global__ void __launch_bounds__(kPackThreads, 2)
    bain_attention_bwd_pack_kernel(MomentGradients from, Regions regions,
                                   Global<const float> lse,      // (B, N)
                                   Global<const float> largest,  // (B, n_largest) or absent
                                   int n_largest, GradientRows<typename Kind::Element> to, Shape shape) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(2 * kGradientPlaces * kStageLd);
  const Shared<int64_t> pixels = memory.array<int64_t>(kGradientPlaces);
  const int64_t image = blockIdx.y;
  const int start = blockIdx.x * kGradientPlaces, n_query = regions.queries(image);
  if (start > 0 && start >= n_query) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int count = min(n_query - start, kGradientPlaces);
  const int64_t base = image * shape.pixels;

  float span = 1;
  if (largest) {
    float most = 0;
    for (int i = lane; i < n_largest; i += kWarp) most = fmaxf(most, largest[image * n_largest + i]);
    most = warp_max(most);
    // The largest gradient becomes 1/8 to 1/4: room for the sums over channels, far from float16's smallest number.
    if (most > 1e-30f && most < 1e30f) span = __int_as_float(__float_as_int(most) & 0x7f800000) * 8.0f;
  }
  const int lifted = largest ? kWeightBits : 0;
  if (start == 0 && threadIdx.x == 0) to.span[image] = span / (1 << lifted);

  stage_pixels(regions, base + start, count, pixels);
  float delta[kGradientPlaces / kPackWarps] = {};
  for (int first_channel = 0; first_channel < shape.width; first_channel += kChannels) {
    each_gradient(from, image, pixels, count, first_channel, shape, stage, [&](int i, const MomentGradient& g) {
      const int place = warp + i * kPackWarps, channel = first_channel + lane;
      const Element da = Kind::element(g.da / span), db = Kind::element(g.db / span);
      // With the rounded gradients, so that the logits' gradients of a row add up to 0.
      delta[i] += to_float(da) * g.a + to_float(db) * g.b;
      if (place < count && channel < shape.width) {
        const int64_t at = (base + start + place) * shape.width + channel;
        to.da[at] = da;
        to.db[at] = db;
      }
    });
  }
#pragma unroll
  for (int i = 0; i < kGradientPlaces / kPackWarps; ++i) {
    const int place = warp + i * kPackWarps;
    const float sum = warp_sum(delta[i]);
    if (lane == 0 && place < count) {
      to.delta[base + start + place] = sum;
      to.lse[base + start + place] = lse[base + pixels[place]] * kLog2E - lifted;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------

// Gradients of both moments of every query, in float16 scaled, and what the softmax's backward subtracts.
struct PackedGradients {
  Tensor da, db;      // (B, N, width)
  Tensor delta, lse;  // (B, N) float32; as in GradientRows
  Tensor span;        // (B) float32
};

template <class Kind>
PackedGradients pack_gradients(const Tensor& grad_mean, const Tensor& grad_std, const Tensor& first,
                               const Tensor& variance, const Tensor& lse, const Packed& packed, const Regions& regions,
                               const Shape& shape, double eps) {
  using Element = typename Kind::Element;
  const int64_t batch = lse.size(0);
  const PackedGradients to{allocate_like(packed.value), allocate_like(packed.value), allocate_like(lse),
                           allocate_like(lse), allocate({batch}, lse)};
  const MomentGradients from{input_map(grad_mean),
                             input_map(grad_std),
                             global<const float>(first),
                             global<const float>(variance),
                             global<const float>(packed.unit),
                             static_cast<float>(eps)};
  const size_t shared = shared_bytes<float>(2 * kGradientPlaces * kStageLd) + shared_bytes<int64_t>(kGradientPlaces);
  const int blocks = ceil_div(shape.channels, kChannels);
  std::optional<Tensor> largest;
  if constexpr (std::is_same_v<Element, half>) {
    largest = allocate({batch, blocks, kSplits}, lse);
    LAUNCH((bain_attention_bwd_range_kernel), dim3(kSplits, blocks, batch), kPackThreads,
           shared + shared_bytes<float>(kPackWarps), lse, from, regions, global<float>(*largest), shape);
  }
  const GradientRows<Element> rows{global<Element>(to.da), global<Element>(to.db), global<float>(to.delta),
                                   global<float>(to.lse), global<float>(to.span)};
  LAUNCH((bain_attention_bwd_pack_kernel<Kind>), dim3(ceil_div(shape.pixels, kGradientPlaces), batch), kPackThreads,
         shared, lse, from, regions, global<const float>(lse), global<const float>(largest), blocks * kSplits, rows,
         shape);
  return to;
}

}  // namespace
}  // namespace scsco
