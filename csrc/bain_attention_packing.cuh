// Maps (B, C, N) of any dtype and layout as the packed rows that the attention kernels read.
//
// `order` lists an image's pixels foreground first, background last. A packed matrix (B, N, width) holds queries, and
// gradients of their moments, at their place in that order; keys and values at their rank in the background. So every
// block of rows is one contiguous read and the ragged ends are a comparison with a count. Rows that are no query or no
// key are never written and never read; columns are filled with zeros up to `width`, a multiple of 16.
//
// Values are centred by the background's mean and divided by a power of two near four standard deviations, per image
// and channel: without the former bfloat16 loses the variance once |mean| / std passes 3, without the latter the
// squares of values above 255 overflow in float16. A power of two rounds nothing.
#pragma once

#include "products.cuh"

namespace scsco {
namespace {

constexpr int kSplits = 16;  // partial sums per image and channel: their number is fixed, so is the order of the sum
constexpr int kPackThreads = 256;
constexpr int kPackWarps = kPackThreads / kWarp;
constexpr int kChannels = 32;            // of a block
constexpr int kPlaces = 64;              // that are packed at a time
constexpr int kStageLd = kChannels + 1;  // odd: a column's floats lie in 32 banks
constexpr float kLog2E = 1.4426950408889634f;

// A map in one of three dtypes; the other two are absent. A template parameter for each of the maps' dtypes would make
// nine kernels of one.
template <template <class> class Const>
struct AnyMap {
  Global<typename Const<float>::type> as_float32;
  Global<typename Const<half>::type> as_float16;
  Global<typename Const<bfloat16>::type> as_bfloat16;

  // Calls function(elements) with the elements in their dtype: outside of loops, for it branches.
  template <class Function>
  __device__ __forceinline__ void visit(const Function& function) const {
    if (as_float16) return function(as_float16);
    if (as_bfloat16) return function(as_bfloat16);
    function(as_float32);
  }
};

// A map (B, C, N) that is read.
struct InputMap : AnyMap<std::add_const> {
  int64_t stride_b, stride_c, stride_n;
};

// A contiguous map (B, C, N) that is written.
using OutputMap = AnyMap<std::type_identity>;

struct AttentionShape {
  int pixels;
  int keys, channels;    // D and C
  int key_width, width;  // of packed rows
};

struct Regions {
  Global<const int64_t> order;   // (B, N)
  Global<const int64_t> counts;  // (B, 2)

  // Pixels are fewer than 2^31; products of their number are not.
  __device__ __forceinline__ int foreground(int64_t image) const { return static_cast<int>(counts[2 * image]); }
  __device__ __forceinline__ int background(int64_t image) const { return static_cast<int>(counts[2 * image + 1]); }
  // Foreground pixels that have something to attend to.
  __device__ __forceinline__ int queries(int64_t image) const { return background(image) > 0 ? foreground(image) : 0; }
};

// The first background pixel's value: sums of differences from it cancel no digits.
template <class T>
__device__ __forceinline__ float shift_of(Global<const T> elements, const InputMap& value, int64_t image,
                                          int64_t channel, const Regions& regions, int pixels, int n_bg) {
  if (n_bg == 0) return 0.0f;
  const int64_t pixel = regions.order[image * pixels + pixels - n_bg];
  return to_float(elements[image * value.stride_b + channel * value.stride_c + pixel * value.stride_n]);
}

// Sums of v - shift and of its square over one of kSplits parts of the background.
__global__ void __launch_bounds__(kPackThreads, 2)
    bain_attention_moments_kernel(InputMap value, Regions regions,
                                  Global<float> sums,  // (B, 2, kSplits, C)
                                  AttentionShape shape) {
  constexpr int kOwn = kChannels / kPackWarps;  // channels of a warp
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, channels = shape.channels;
  const int first_channel = blockIdx.y * kChannels + warp * kOwn;
  const int64_t image = blockIdx.z;
  const int split = blockIdx.x, n_bg = regions.background(image), length = ceil_div(n_bg, kSplits);
  const int end = min((split + 1) * length, n_bg);
  const Global<const int64_t> places = regions.order + (image * shape.pixels + shape.pixels - n_bg);

  float sum[kOwn] = {}, squares[kOwn] = {};
  value.visit([&](auto elements) {
    float shift[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool inside = first_channel + i < channels;
      shift[i] = inside ? shift_of(elements, value, image, first_channel + i, regions, shape.pixels, n_bg) : 0.0f;
    }
    const auto map = elements + (image * value.stride_b + first_channel * value.stride_c);
#pragma unroll 2
    for (int rank = split * length + lane; rank < end; rank += kWarp) {
      const int64_t at = places[rank] * value.stride_n;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const float v = first_channel + i < channels ? to_float(map[at + i * value.stride_c]) - shift[i] : 0.0f;
        sum[i] += v;
        squares[i] += v * v;
      }
    }
  });
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    sum[i] = warp_sum(sum[i]);
    squares[i] = warp_sum(squares[i]);
    if (lane == 0 && first_channel + i < channels) {
      const int64_t at = (image * 2 * kSplits + split) * channels + first_channel + i;
      sums[at] = sum[i];
      sums[at + int64_t(kSplits) * channels] = squares[i];
    }
  }
}

// Background mean of a channel, and the power of two in (2 sigma, 4 sigma] times `headroom`. The latter is 1 if sigma
// is 0 or not finite, and at most 2^50: the square of units must be a float32.
__device__ __forceinline__ void pivot_and_unit(Global<const float> sums, int64_t image, int channel, int channels,
                                               int n_bg, float shift, float headroom, float& pivot, float& unit) {
  float first = 0, second = 0;
#pragma unroll
  for (int split = 0; split < kSplits; ++split) {
    const int64_t at = (image * 2 * kSplits + split) * channels + channel;
    first += sums[at];
    second += sums[at + int64_t(kSplits) * channels];
  }
  const float count = static_cast<float>(max(n_bg, 1));
  first /= count;
  const float sigma = sqrtf(fmaxf(second / count - first * first, 0.0f));
  pivot = shift + first;
  const bool usable = sigma > 1e-15f && sigma < INFINITY;
  unit = usable ? fminf(__int_as_float(__float_as_int(sigma) & 0x7f800000) * 4.0f * headroom, 0x1p50f) : 1.0f;
}

// Reads PLACES pixels of kChannels channels into `stage`, [place, channel]; 0 outside the map. Neighbouring threads
// read what lies side by side; a thread's loads are all under way before it uses one.
template <int PLACES>
__device__ __forceinline__ void stage_map(const InputMap& map, int64_t image, Shared<const int64_t> pixels, int count,
                                          int first_channel, int channels, Shared<float> stage) {
  constexpr int kOwn = PLACES * kChannels / kPackThreads;
  const int thread = threadIdx.x;
  const bool channels_last = map.stride_c == 1;
  const int place = channels_last ? thread / kChannels : thread % PLACES;
  const int channel = channels_last ? thread % kChannels : thread / PLACES;
  const int place_step = channels_last ? kPackWarps : 0, channel_step = channels_last ? 0 : kPackThreads / PLACES;
  static_assert(kChannels == kWarp && kPackThreads % PLACES == 0, "a thread keeps its channel or its place");
  float values[kOwn];
  map.visit([&](auto elements) {
    const auto own = elements + (image * map.stride_b + (first_channel + channel) * map.stride_c);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int p = place + i * place_step, c = i * channel_step;
      const bool inside = p < count && first_channel + channel + c < channels;
      values[i] = inside ? to_float(own[c * map.stride_c + pixels[p] * map.stride_n]) : 0.0f;
    }
  });
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    stage[(place + i * place_step) * kStageLd + channel + i * channel_step] = values[i];
  }
}

struct PackArguments {
  InputMap query, key, value;
  Regions regions;
  Global<const float> sums;   // (B, 2, kSplits, C)
  Global<float> pivot, unit;  // (B, width)
  float headroom;
  float sign;  // of the queries: the kernels take the logits' scale as positive
};

// Grid: blocks of kPlaces places; blocks of kChannels columns of queries, keys and values in turn; images.
template <class Kind>
__global__ void __launch_bounds__(kPackThreads, 2)
    bain_attention_pack_kernel(PackArguments from,
                               Global<typename Kind::Element> q_rows,  // (B, N, key_width)
                               Global<typename Kind::Element> k_rows,  // (B, N, key_width)
                               Global<typename Kind::Element> v_rows,  // (B, N, width)
                               AttentionShape shape) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  constexpr int V = kGroup<Element>;
  SharedMemory memory;
  const Shared<float> stage = memory.array<float>(kPlaces * kStageLd);
  const Shared<float> centre = memory.array<float>(kChannels), factor = memory.array<float>(kChannels);
  const Shared<int64_t> pixels = memory.array<int64_t>(kPlaces);

  const int key_blocks = ceil_div(shape.key_width, kChannels), block = blockIdx.y;
  const int part = min(block / key_blocks, 2);  // queries, keys or values
  const int first_channel = (block - part * key_blocks) * kChannels, width = part == 2 ? shape.width : shape.key_width;
  const int64_t image = blockIdx.z;
  const int start = blockIdx.x * kPlaces, n_bg = from.regions.background(image);
  const int rows = part == 0 ? from.regions.queries(image) : n_bg;
  if (start >= rows && (part < 2 || start > 0)) return;  // the values' first block writes pivot and unit

  const int thread = threadIdx.x, count = max(min(rows - start, kPlaces), 0);
  const int64_t first_place = image * shape.pixels + (part == 0 ? 0 : shape.pixels - n_bg) + start;
  if (thread < count) pixels[thread] = from.regions.order[first_place + thread];
  if (thread < kChannels) {
    const int channel = first_channel + thread;
    float pivot = 0, unit = 1;
    if (part == 2 && channel < shape.channels) {
      float shift = 0;
      from.value.visit([&](auto elements) {
        shift = shift_of(elements, from.value, image, channel, from.regions, shape.pixels, n_bg);
      });
      pivot_and_unit(from.sums, image, channel, shape.channels, n_bg, shift, from.headroom, pivot, unit);
    }
    if (part == 2 && start == 0 && channel < width) {
      from.pivot[image * width + channel] = pivot;
      from.unit[image * width + channel] = unit;
    }
    centre[thread] = pivot;
    factor[thread] = part == 0 ? from.sign : 1.0f / unit;
  }
  __syncthreads();
  const InputMap& map = part == 0 ? from.query : part == 1 ? from.key : from.value;
  stage_map<kPlaces>(map, image, pixels, count, first_channel, part == 2 ? shape.channels : shape.keys, stage);
  __syncthreads();

  const Global<Element> target = (part == 0   ? q_rows
                                  : part == 1 ? k_rows
                                              : v_rows) +
                                 ((image * shape.pixels + start) * width + first_channel);
  constexpr int kGroups = kChannels / V;
#pragma unroll
  for (int i = thread; i < kPlaces * kGroups; i += kPackThreads) {
    const int place = i / kGroups, c = i % kGroups * V;
    if (place >= count || first_channel + c >= width) continue;
    float values[V];
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = (stage[place * kStageLd + c + v] - centre[c + v]) * factor[c + v];
    store(target + (int64_t(place) * width + c), rounded<Kind>(values));
  }
}

// ---------------------------------------------------------------------------------------------------------------------

// The elements of a map in the dtype that they have.
template <template <class> class Const>
AnyMap<Const> any_map(const Tensor& x) {
  AnyMap<Const> map{};
  dispatch(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto elements = global<typename Const<T>::type>(x);
    if constexpr (std::is_same_v<T, half>) {
      map.as_float16 = elements;
    } else if constexpr (std::is_same_v<T, bfloat16>) {
      map.as_bfloat16 = elements;
    } else {
      map.as_float32 = elements;
    }
  });
  return map;
}

InputMap input_map(const Tensor& x) { return {any_map<std::add_const>(x), x.stride(0), x.stride(1), x.stride(2)}; }

OutputMap output_map(const Tensor& x) { return any_map<std::type_identity>(x); }

AttentionShape shape_of(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order,
                        const Tensor& counts) {
  check(value.dim() == 3 && query.dim() == 3, "query and value must have shapes (B, D, N) and (B, C, N), got ",
        shape_text(query), " and ", shape_text(value));
  const int64_t batch = value.size(0), pixels = value.size(2), keys = query.size(1), channels = value.size(1);
  check_shape("query", query, {batch, keys, pixels});
  check_shape("key", key, {batch, keys, pixels});
  check_shape("order", order, {batch, pixels});
  check_shape("counts", counts, {batch, 2});
  for (const Tensor& tensor : {query, key, order, counts}) check_device("query, key, order and counts", tensor, value);
  check(order.is_contiguous() && counts.is_contiguous(), "order and counts must be contiguous");
  check(query.scalar_type() == key.scalar_type(), "query and key must have the same dtype");
  constexpr int64_t kMost = 1 << 19;  // of which a grid's second dimension still holds the blocks
  check(pixels < (int64_t(1) << 31) - kPlaces && keys <= kMost && channels <= kMost, "at most 2^31 - ", kPlaces,
        " pixels and 2^19 channels are served, got ", pixels, " pixels, ", keys, " and ", channels, " channels");
  const int d = static_cast<int>(keys), c = static_cast<int>(channels);
  return {static_cast<int>(pixels), d, c, ceil_div(d, 16) * 16, ceil_div(c, 16) * 16};
}

// One batch as rows, in the dtype that matrices are multiplied in: arrays of the call's workspace.
template <class Element>
struct PackedRows {
  Workspace::Array<Element> query, key;  // (B, N, key_width)
  Workspace::Array<Element> value;       // (B, N, width)
  Workspace::Array<float> pivot, unit;   // (B, width)
  Workspace::Array<float> sums;          // (B, 2, kSplits, C)

  PackedRows(Workspace& space, int64_t batch, const AttentionShape& shape) {
    const int64_t rows = batch * shape.pixels;
    query = space.add<Element>(rows * shape.key_width);
    key = space.add<Element>(rows * shape.key_width);
    value = space.add<Element>(rows * shape.width);
    pivot = space.add<float>(batch * shape.width);
    unit = space.add<float>(batch * shape.width);
    sums = space.add<float>(batch * 2 * kSplits * shape.channels);
  }
};

template <class Kind>
void pack(const Tensor& query, const Tensor& key, const Tensor& value, const Regions& regions,
          const AttentionShape& shape, double scale, const Workspace& space,
          const PackedRows<typename Kind::Element>& to) {
  const int64_t batch = value.size(0), pixels = shape.pixels;
  const int blocks = ceil_div(shape.channels, kChannels);
  LAUNCH((bain_attention_moments_kernel), dim3(kSplits, blocks, batch), kPackThreads, 0, value, input_map(value),
         regions, space[to.sums], shape);
  // |v - pivot| <= sigma sqrt(n): with this headroom its square stays below 2^14 for any number of pixels.
  const double headroom = std::exp2(std::max(0.0, std::ceil(std::log2(double(pixels)) / 2) - 8));
  const PackArguments from{input_map(query),        input_map(key),  input_map(value), regions,
                           space[to.sums],          space[to.pivot], space[to.unit],   static_cast<float>(headroom),
                           scale < 0 ? -1.0f : 1.0f};
  const int columns = 2 * ceil_div(shape.key_width, kChannels) + ceil_div(shape.width, kChannels);
  const size_t shared =
      shared_bytes<float>(kPlaces * kStageLd) + 2 * shared_bytes<float>(kChannels) + shared_bytes<int64_t>(kPlaces);
  LAUNCH((bain_attention_pack_kernel<Kind>), dim3(ceil_div(pixels, kPlaces), columns, batch), kPackThreads, shared,
         value, from, space[to.query], space[to.key], space[to.value], shape);
}

}  // namespace
}  // namespace scsco
