// Mean absolute differences between one feature map and several others; the one map is read once for all of them.
//
// Maps that lie in memory in one and the same order without gaps are read in that order, four elements at a time. All
// others are read in tiles of channels by pixels.
#include "portable.cuh"

namespace scsco {
namespace {

constexpr int kThreads = 256;
constexpr int kMinBlocks = 2;  // of a multiprocessor: left to itself ptxas spills a few bytes to fit another
constexpr int64_t kWantedBlocks = 1056;  // of threads: eight for each of an H100's 132 multiprocessors
constexpr int kMaxSplits = 256;          // of one image: bounds the buffer of partial sums
constexpr int kOthers = 8;               // that are compared at once
constexpr int kVector = 4;
constexpr int kTileChannels = 64, kTilePixels = 32;
constexpr int kTileItems = kTileChannels * kTilePixels / kThreads;  // of a thread
constexpr int kStageWidth = kTilePixels + 1;                        // odd: 32 channels of a pixel lie in 32 banks

template <class T>
struct DistanceMaps {
  Global<const T> f, o;
  int64_t stride_fb, stride_fc, stride_fn, stride_ob, stride_oj, stride_oc, stride_on;
};

struct DistanceShape {
  int64_t channels, pixels;
  int others;
  int64_t blocks_per_split;  // of kThreads vectors, or tiles
  bool channels_first;       // of a tile, neighbouring threads read neighbouring channels
};

__device__ __forceinline__ int64_t tiles_of(const DistanceShape& shape) {
  return ceil_div(shape.channels, int64_t(kTileChannels)) * ceil_div(shape.pixels, int64_t(kTilePixels));
}

// A tile of a map. Tiles are numbered along the pixels; one division finds a block's first tile.
struct DistanceTile {
  int64_t channel, pixel;  // its first
  int channels, pixels;    // of it that lie inside the map

  __device__ __forceinline__ DistanceTile(int64_t tile, const DistanceShape& shape) {
    const int64_t columns = ceil_div(shape.pixels, int64_t(kTilePixels));
    channel = tile / columns * kTileChannels;
    pixel = tile % columns * kTilePixels;
    measure(shape);
  }

  __device__ __forceinline__ void advance(const DistanceShape& shape) {
    pixel += kTilePixels;
    if (pixel >= shape.pixels) {
      pixel = 0;
      channel += kTileChannels;
    }
    measure(shape);
  }

 private:
  __device__ __forceinline__ void measure(const DistanceShape& shape) {
    channels = static_cast<int>(min(shape.channels - channel, int64_t(kTileChannels)));
    pixels = static_cast<int>(min(shape.pixels - pixel, int64_t(kTilePixels)));
  }
};

// The elements of a tile that a thread takes: from its first on, each a step away from the one before.
struct DistancePlace {
  int channel, pixel;  // of the first, counted from the tile's first
  int channel_step, pixel_step;

  __device__ __forceinline__ explicit DistancePlace(bool channels_first) {
    const int thread = threadIdx.x;
    channel = channels_first ? thread % kTileChannels : thread / kTilePixels;
    pixel = channels_first ? thread / kTileChannels : thread % kTilePixels;
    channel_step = channels_first ? 0 : kThreads / kTilePixels;
    pixel_step = channels_first ? kThreads / kTileChannels : 0;
  }

  __device__ __forceinline__ bool inside(const DistanceTile& tile, int item) const {
    return channel + item * channel_step < tile.channels && pixel + item * pixel_step < tile.pixels;
  }

  // Where the first element lies in a map, and how far apart two are.
  __device__ __forceinline__ int64_t at(const DistanceTile& tile, int64_t stride_c, int64_t stride_n) const {
    return (tile.channel + channel) * stride_c + (tile.pixel + pixel) * stride_n;
  }
  __device__ __forceinline__ int64_t step(int64_t stride_c, int64_t stride_n) const {
    return channel_step * stride_c + pixel_step * stride_n;
  }
};

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
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    feature_distances_fwd_flat_kernel(DistanceMaps<T> maps,
                                      Global<float> parts,  // (B, J, splits)
                                      DistanceShape shape) {
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
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    feature_distances_fwd_tiled_kernel(DistanceMaps<T> maps,
                                       Global<float> parts,  // (B, J, splits)
                                       DistanceShape shape) {
  const int first = blockIdx.y * kOthers;
  const Global<const T> f = maps.f + blockIdx.z * maps.stride_fb;
  const Global<const T> o = maps.o + (blockIdx.z * maps.stride_ob + first * maps.stride_oj);
  const int64_t last = min((blockIdx.x + int64_t(1)) * shape.blocks_per_split, tiles_of(shape));
  const DistancePlace here(shape.channels_first);
  const int64_t step_f = here.step(maps.stride_fc, maps.stride_fn), step_o = here.step(maps.stride_oc, maps.stride_on);
  int64_t number = blockIdx.x * shape.blocks_per_split;
  float sums[kOthers] = {};
  for (DistanceTile tile(number, shape); number < last; ++number, tile.advance(shape)) {
    Global<const T> own = f + here.at(tile, maps.stride_fc, maps.stride_fn);
    Global<const T> other = o + here.at(tile, maps.stride_oc, maps.stride_on);
    for (int item = 0; item < kTileItems; ++item, own += step_f, other += step_o) {
      if (!here.inside(tile, item)) continue;
      const float a = to_float(own[0]);
#pragma unroll
      for (int j = 0; j < kOthers; ++j) {
        if (first + j < shape.others) sums[j] += fabsf(a - to_float(other[j * maps.stride_oj]));
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
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    feature_distances_bwd_flat_kernel(DistanceMaps<T> maps,
                                      Global<const float> grad,  // (B, J): of each distance, divided by C H W
                                      Global<T> d_f,             // (B, C, N)
                                      Global<T> d_o,             // (B, J, C, N)
                                      DistanceShape shape) {
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
__device__ __forceinline__ void store_tile(Global<T> map, const DistanceTile& tile, const DistancePlace& here,
                                           float (&values)[kTileItems], Shared<float> stage,
                                           const DistanceShape& shape) {
  const DistancePlace there(false);
  if (shape.channels_first) {
#pragma unroll
    for (int item = 0; item < kTileItems; ++item) {
      const int channel = here.channel + item * here.channel_step, pixel = here.pixel + item * here.pixel_step;
      stage[channel * kStageWidth + pixel] = values[item];
    }
    __syncthreads();
#pragma unroll
    for (int item = 0; item < kTileItems; ++item) {
      values[item] = stage[(there.channel + item * there.channel_step) * kStageWidth + there.pixel];
    }
    __syncthreads();
  }
  const int64_t step = there.step(shape.pixels, 1);
  Global<T> own = map + there.at(tile, shape.pixels, 1);
#pragma unroll
  for (int item = 0; item < kTileItems; ++item, own += step) {
    if (there.inside(tile, item)) own[0] = from_float<T>(values[item]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    feature_distances_bwd_tiled_kernel(DistanceMaps<T> maps,
                                       Global<const float> grad,  // (B, J): of each distance, divided by C H W
                                       Global<T> d_f,             // (B, C, N)
                                       Global<T> d_o,             // (B, J, C, N)
                                       DistanceShape shape) {
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(kTileChannels * kStageWidth);
  const int64_t elements = shape.channels * shape.pixels, image = blockIdx.z;
  const int64_t last = min((blockIdx.x + int64_t(1)) * shape.blocks_per_split, tiles_of(shape));
  const DistancePlace here(shape.channels_first);
  const int64_t step_f = here.step(maps.stride_fc, maps.stride_fn), step_o = here.step(maps.stride_oc, maps.stride_on);
  int64_t number = blockIdx.x * shape.blocks_per_split;
  for (DistanceTile tile(number, shape); number < last; ++number, tile.advance(shape)) {
    Global<const T> own = maps.f + (image * maps.stride_fb + here.at(tile, maps.stride_fc, maps.stride_fn));
    const int64_t at_o = image * maps.stride_ob + here.at(tile, maps.stride_oc, maps.stride_on);
    bool inside[kTileItems];
    float a[kTileItems], total[kTileItems];
#pragma unroll
    for (int item = 0; item < kTileItems; ++item, own += step_f) {
      inside[item] = here.inside(tile, item);
      a[item] = inside[item] ? to_float(own[0]) : 0.0f;
      total[item] = 0;
    }
    for (int j = 0; j < shape.others; ++j) {
      const float g = grad[image * shape.others + j];
      Global<const T> other = maps.o + (j * maps.stride_oj + at_o);
      float out[kTileItems];
#pragma unroll
      for (int item = 0; item < kTileItems; ++item, other += step_o) {
        const float flow = inside[item] ? flow_of(a[item] - to_float(other[0]), g) : 0.0f;
        total[item] += flow;
        out[item] = -flow;
      }
      store_tile(d_o + (image * shape.others + j) * elements, tile, here, out, stage, shape);
    }
    store_tile(d_f + image * elements, tile, here, total, stage, shape);
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
  const auto apart = [](const Tensor& tensor, int dim) {  // torch gives a dimension of size 1 any stride
    return tensor.size(dim) == 1 || tensor.stride(dim) % kVector == 0;
  };
  const auto aligned = [](const Tensor& tensor) {
    const size_t bytes = kVector * (tensor.scalar_type() == ScalarType::Float ? 4 : 2);
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
  };
  const int order = in_order(f.stride(1), f.stride(2));
  return order != 0 && order == in_order(o.stride(2), o.stride(3)) && channels * pixels % kVector == 0 &&
         apart(f, 0) && apart(o, 0) && apart(o, 1) && aligned(f) && aligned(o);
}

template <class T>
DistanceMaps<T> maps_of(const Tensor& f, const Tensor& o) {
  return {global<const T>(f), global<const T>(o), f.stride(0), f.stride(1), f.stride(2),
          o.stride(0),        o.stride(1),        o.stride(2), o.stride(3)};
}

struct DistancePlan {
  DistanceShape shape;
  int64_t splits;
};

DistancePlan plan_of(const Tensor& f, const Tensor& o, bool flat) {
  const int64_t channels = f.size(1), pixels = f.size(2);
  const int64_t blocks = flat ? ceil_div(channels * pixels, int64_t(kVector * kThreads))
                              : ceil_div(channels, int64_t(kTileChannels)) * ceil_div(pixels, int64_t(kTilePixels));
  const int64_t each = ceil_div(blocks, split(f.size(0), blocks, kWantedBlocks, kMaxSplits));
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
Tensor feature_distances_forward(const Tensor& f, const Tensor& o) {
  check_inputs(f, o);
  const int64_t batch = f.size(0), others = o.size(1);
  const bool flat = is_flat(f, o, false);
  const DistancePlan plan = plan_of(f, o, flat);
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
std::tuple<Tensor, Tensor> feature_distances_backward(const Tensor& grad, const Tensor& f, const Tensor& o) {
  check_inputs(f, o);
  const int64_t batch = f.size(0), others = o.size(1);
  check_shape("grad", grad, {batch, others});
  check(grad.is_contiguous(), "grad must be contiguous");
  check_device("grad", grad, f);
  const Tensor d_f = allocate_like(f), d_o = allocate_like(o);
  if (batch == 0) return {d_f, d_o};
  const bool flat = is_flat(f, o, true);
  const DistancePlan plan = plan_of(f, o, flat);
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

SCSCO_SCHEMAS(m) {
  m.def("feature_distances_forward(Tensor anchor, Tensor others) -> Tensor");
  m.def("feature_distances_backward(Tensor grad, Tensor anchor, Tensor others) -> (Tensor, Tensor)");
}

SCSCO_OPERATIONS(m) {
  m.impl("feature_distances_forward", TORCH_BOX(&feature_distances_forward));
  m.impl("feature_distances_backward", TORCH_BOX(&feature_distances_backward));
}

}  // namespace scsco
