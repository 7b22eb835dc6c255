// Mean absolute differences between one feature map and several others; the one map is read once for all of them.
//
// Maps that lie in memory in one and the same order without gaps are read in that order, four elements at a time. All
// others are read in tiles of channels by pixels.
#include "portable.cuh"

namespace scsco {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;    // of a multiprocessor, at least: left to itself ptxas spills a few bytes to fit another
constexpr int kSplits = 256;  // of one image, at most: bounds the buffer of partial sums
constexpr int kOthers = 8;    // that are compared at once
constexpr int kVector = 4;
constexpr int kTileChannels = 64, kTilePixels = 32;
constexpr int kTileItems = kTileChannels * kTilePixels / kThreads;  // of a thread
constexpr int kStageWidth = kTilePixels + 1;                        // odd: 32 channels of a pixel lie in 32 banks

template <class T>
struct Maps {
  Global<const T> f, o;
  int64_t stride_fb, stride_fc, stride_fn, stride_ob, stride_oj, stride_oc, stride_on;
};

struct Shape {
  int64_t channels, pixels;
  int others;
  int64_t blocks_per_split;  // of kThreads vectors, or tiles
  bool channels_first;       // of a tile, neighbouring threads read neighbouring channels
};

// A thread's element of a tile.
struct Place {
  int channel, pixel;  // counted from the tile's first
  int64_t c, n;
  bool inside;

  __device__ __forceinline__ Place(int64_t tile, int item, const Shape& shape) {
    const int element = item * kThreads + static_cast<int>(threadIdx.x);
    channel = shape.channels_first ? element % kTileChannels : element / kTilePixels;
    pixel = shape.channels_first ? element / kTileChannels : element % kTilePixels;
    const int64_t columns = ceil_div(shape.pixels, int64_t(kTilePixels));
    c = tile / columns * kTileChannels + channel;
    n = tile % columns * kTilePixels + pixel;
    inside = c < shape.channels && n < shape.pixels;
  }
};

__device__ __forceinline__ int64_t tiles_of(const Shape& shape) {
  return ceil_div(shape.channels, int64_t(kTileChannels)) * ceil_div(shape.pixels, int64_t(kTilePixels));
}

// Writes the sums over the block of the distances to the others [first, first + kOthers).
__device__ __forceinline__ void store_sums(float (&sums)[kOthers], Global<float> parts, int first, int others) {
  SharedMemory memory;
  const Shared<float> scratch = memory.array<float>(kOthers * kWarp);
  block_sum(sums, scratch);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int j = 0; j < kOthers; ++j) {
    if (first + j < others) parts[(int64_t(blockIdx.z) * others + first + j) * gridDim.x + blockIdx.x] = sums[j];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    feature_distances_fwd_flat_kernel(Maps<T> maps, Global<float> parts /* (B, J, splits) */, Shape shape) {
  const int first = blockIdx.y * kOthers;
  const Global<const T> f = maps.f + blockIdx.z * maps.stride_fb;
  const Global<const T> o = maps.o + (blockIdx.z * maps.stride_ob + first * maps.stride_oj);
  const int64_t vectors = shape.channels * shape.pixels / kVector, step = shape.blocks_per_split * kThreads;
  const int64_t last = min((blockIdx.x + int64_t(1)) * step, vectors);
  float sums[kOthers] = {};
  for (int64_t i = blockIdx.x * step + threadIdx.x; i < last; i += kThreads) {
    const auto a = load<kVector>(f + i * kVector);
#pragma unroll
    for (int j = 0; j < kOthers; ++j) {
      if (first + j >= shape.others) continue;
      const auto b = load<kVector>(o + (j * maps.stride_oj + i * kVector));
#pragma unroll
      for (int v = 0; v < kVector; ++v) sums[j] += fabsf(to_float(a[v]) - to_float(b[v]));
    }
  }
  store_sums(sums, parts, first, shape.others);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    feature_distances_fwd_tiled_kernel(Maps<T> maps, Global<float> parts /* (B, J, splits) */, Shape shape) {
  const int first = blockIdx.y * kOthers;
  const Global<const T> f = maps.f + blockIdx.z * maps.stride_fb;
  const Global<const T> o = maps.o + (blockIdx.z * maps.stride_ob + first * maps.stride_oj);
  const int64_t last = min((blockIdx.x + int64_t(1)) * shape.blocks_per_split, tiles_of(shape));
  float sums[kOthers] = {};
  for (int64_t tile = blockIdx.x * shape.blocks_per_split; tile < last; ++tile) {
    for (int item = 0; item < kTileItems; ++item) {
      const Place here(tile, item, shape);
      if (!here.inside) continue;
      const float a = to_float(f[here.c * maps.stride_fc + here.n * maps.stride_fn]);
      const int64_t at = here.c * maps.stride_oc + here.n * maps.stride_on;
#pragma unroll
      for (int j = 0; j < kOthers; ++j) {
        if (first + j < shape.others) sums[j] += fabsf(a - to_float(o[j * maps.stride_oj + at]));
      }
    }
  }
  store_sums(sums, parts, first, shape.others);
}

// grad sign(away), 0 at 0.
__device__ __forceinline__ float flow_of(float away, float grad) {
  return away > 0 ? grad : away < 0 ? -grad : 0.0f;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    feature_distances_bwd_flat_kernel(Maps<T> maps,
                                      Global<const float> grad,  // (B, J): of each distance, divided by C H W
                                      Global<T> d_f,             // (B, C, N)
                                      Global<T> d_o,             // (B, J, C, N)
                                      Shape shape) {
  const int64_t elements = shape.channels * shape.pixels, step = shape.blocks_per_split * kThreads;
  const int64_t last = min((blockIdx.x + int64_t(1)) * step, elements / kVector);
  const int64_t image = blockIdx.z;
  for (int64_t i = blockIdx.x * step + threadIdx.x; i < last; i += kThreads) {
    const auto a = load<kVector>(maps.f + (image * maps.stride_fb + i * kVector));
    float total[kVector] = {};
#pragma unroll 4
    for (int j = 0; j < shape.others; ++j) {
      const auto b = load<kVector>(maps.o + (image * maps.stride_ob + j * maps.stride_oj + i * kVector));
      const float g = grad[image * shape.others + j];
      Vector<T, kVector> out;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const float flow = flow_of(to_float(a[v]) - to_float(b[v]), g);
        total[v] += flow;
        out[v] = from_float<T>(-flow);
      }
      store(d_o + ((image * shape.others + j) * elements + i * kVector), out);
    }
    Vector<T, kVector> out;
#pragma unroll
    for (int v = 0; v < kVector; ++v) out[v] = from_float<T>(total[v]);
    store(d_f + (image * elements + i * kVector), out);
  }
}

// Writes a tile to a contiguous map (C, N). Where neighbouring threads hold neighbouring channels, it is turned through
// `stage`, so that they write neighbouring pixels. All threads of a block call it.
template <class T>
__device__ __forceinline__ void store_tile(Global<T> map, int64_t tile, const float (&values)[kTileItems],
                                           Shared<float> stage, const Shape& shape) {
  if (!shape.channels_first) {
#pragma unroll
    for (int item = 0; item < kTileItems; ++item) {
      const Place here(tile, item, shape);
      if (here.inside) map[here.c * shape.pixels + here.n] = from_float<T>(values[item]);
    }
    return;
  }
#pragma unroll
  for (int item = 0; item < kTileItems; ++item) {
    const Place here(tile, item, shape);
    stage[here.channel * kStageWidth + here.pixel] = values[item];
  }
  __syncthreads();
  Shape turned = shape;
  turned.channels_first = false;
#pragma unroll
  for (int item = 0; item < kTileItems; ++item) {
    const Place here(tile, item, turned);
    if (here.inside) {
      map[here.c * shape.pixels + here.n] = from_float<T>(stage[here.channel * kStageWidth + here.pixel]);
    }
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    feature_distances_bwd_tiled_kernel(Maps<T> maps,
                                       Global<const float> grad,  // (B, J): of each distance, divided by C H W
                                       Global<T> d_f,             // (B, C, N)
                                       Global<T> d_o,             // (B, J, C, N)
                                       Shape shape) {
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(kTileChannels * kStageWidth);
  const int64_t elements = shape.channels * shape.pixels, image = blockIdx.z;
  const int64_t last = min((blockIdx.x + int64_t(1)) * shape.blocks_per_split, tiles_of(shape));
  for (int64_t tile = blockIdx.x * shape.blocks_per_split; tile < last; ++tile) {
    float a[kTileItems], total[kTileItems];
#pragma unroll
    for (int item = 0; item < kTileItems; ++item) {
      const Place here(tile, item, shape);
      const int64_t at = image * maps.stride_fb + here.c * maps.stride_fc + here.n * maps.stride_fn;
      a[item] = here.inside ? to_float(maps.f[at]) : 0.0f;
      total[item] = 0;
    }
    for (int j = 0; j < shape.others; ++j) {
      const float g = grad[image * shape.others + j];
      float out[kTileItems];
#pragma unroll
      for (int item = 0; item < kTileItems; ++item) {
        const Place here(tile, item, shape);
        const int64_t at = image * maps.stride_ob + j * maps.stride_oj;
        const Global<const T> o = maps.o + (at + here.c * maps.stride_oc + here.n * maps.stride_on);
        const float flow = here.inside ? flow_of(a[item] - to_float(o[0]), g) : 0.0f;
        total[item] += flow;
        out[item] = -flow;
      }
      store_tile(d_o + (image * shape.others + j) * elements, tile, out, stage, shape);
    }
    store_tile(d_f + image * elements, tile, total, stage, shape);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

// One channel of the maps (B, C, N) and (B, J, C, N), or one pixel, lies after the other in both, and vectors are
// aligned: their elements may be paired in the order of memory. `raster`: only pixels one after the other will do.
bool is_flat(const Tensor& f, const Tensor& o, bool raster) {
  const int64_t channels = f.size(1), pixels = f.size(2);
  const auto in_order = [&](int64_t stride_c, int64_t stride_n) {
    const bool planes = (pixels == 1 || stride_n == 1) && (channels == 1 || stride_c == pixels);
    const bool channels_last = (channels == 1 || stride_c == 1) && (pixels == 1 || stride_n == channels);
    return planes ? 1 : channels_last && !raster ? 2 : 0;
  };
  const auto aligned = [](const Tensor& tensor) {
    const size_t bytes = kVector * (tensor.scalar_type() == ScalarType::Float ? 4 : 2);
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
  };
  const int order = in_order(f.stride(1), f.stride(2));
  return order != 0 && order == in_order(o.stride(2), o.stride(3)) && channels * pixels % kVector == 0 &&
         f.stride(0) % kVector == 0 && o.stride(0) % kVector == 0 && o.stride(1) % kVector == 0 && aligned(f) &&
         aligned(o);
}

template <class T>
Maps<T> maps_of(const Tensor& f, const Tensor& o) {
  return {global<const T>(f), global<const T>(o), f.stride(0), f.stride(1), f.stride(2),
          o.stride(0),        o.stride(1),        o.stride(2), o.stride(3)};
}

struct Plan {
  Shape shape;
  int64_t splits;
};

Plan plan_of(const Tensor& f, const Tensor& o, bool flat, int64_t programs) {
  const int64_t channels = f.size(1), pixels = f.size(2);
  const int64_t blocks = flat ? ceil_div(channels * pixels, int64_t(kVector * kThreads))
                              : ceil_div(channels, int64_t(kTileChannels)) * ceil_div(pixels, int64_t(kTilePixels));
  const int64_t each = ceil_div(blocks, split(f.size(0), blocks, programs, kSplits));
  const bool channels_first = f.stride(1) < f.stride(2);
  return {{channels, pixels, static_cast<int>(o.size(1)), each, channels_first}, ceil_div(blocks, each)};
}

void check_inputs(const Tensor& f, const Tensor& o) {
  check(f.dim() == 3, "anchor must have shape (B, C, N), got ", shape_text(f));
  check(o.dim() == 4, "others must have shape (B, J, C, N), got ", shape_text(o));
  check_shape("others", o, {f.size(0), o.size(1), f.size(1), f.size(2)});
  check(o.scalar_type() == f.scalar_type(), "others must have the dtype of anchor");
  check_device("others", o, f);
}

// f (B, C, N), o (B, J, C, N) -> sums of absolute differences over splits of the elements, (B, J, splits) float32.
Tensor feature_distances_forward(const Tensor& f, const Tensor& o, int64_t programs) {
  check_inputs(f, o);
  const int64_t batch = f.size(0), others = o.size(1);
  const bool flat = is_flat(f, o, false);
  const Plan plan = plan_of(f, o, flat, programs);
  const Tensor parts = allocate({batch, others, plan.splits}, f);
  if (batch == 0 || others == 0) return parts;
  const dim3 grid(plan.splits, ceil_div(others, int64_t(kOthers)), batch);
  const size_t shared = shared_bytes<float>(kOthers * kWarp);
  dispatch(f.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (flat) {
      LAUNCH((feature_distances_fwd_flat_kernel<T>), grid, kThreads, shared, f, maps_of<T>(f, o), global<float>(parts),
             plan.shape);
    } else {
      LAUNCH((feature_distances_fwd_tiled_kernel<T>), grid, kThreads, shared, f, maps_of<T>(f, o),
             global<float>(parts), plan.shape);
    }
  });
  return parts;
}

// grad (B, J), divided by C N -> gradients of f (B, C, N) and o (B, J, C, N), contiguous.
std::tuple<Tensor, Tensor> feature_distances_backward(const Tensor& grad, const Tensor& f, const Tensor& o,
                                                      int64_t programs) {
  check_inputs(f, o);
  const int64_t batch = f.size(0), others = o.size(1);
  check_shape("grad", grad, {batch, others});
  check(grad.is_contiguous(), "grad must be contiguous");
  check_device("grad", grad, f);
  const Tensor d_f = allocate_like(f), d_o = allocate_like(o);
  if (batch == 0) return {d_f, d_o};
  const bool flat = is_flat(f, o, true);
  const Plan plan = plan_of(f, o, flat, programs);
  const dim3 grid(plan.splits, 1, batch);
  dispatch(f.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (flat) {
      LAUNCH((feature_distances_bwd_flat_kernel<T>), grid, kThreads, 0, f, maps_of<T>(f, o), global<const float>(grad),
             global<T>(d_f), global<T>(d_o), plan.shape);
    } else {
      LAUNCH((feature_distances_bwd_tiled_kernel<T>), grid, kThreads,
             shared_bytes<float>(kTileChannels * kStageWidth), f, maps_of<T>(f, o), global<const float>(grad),
             global<T>(d_f), global<T>(d_o), plan.shape);
    }
  });
  return {d_f, d_o};
}

}  // namespace

SCSCO_OPERATIONS(m) {
  m.impl("feature_distances_forward", TORCH_BOX(&feature_distances_forward));
  m.impl("feature_distances_backward", TORCH_BOX(&feature_distances_backward));
}

}  // namespace scsco
