// BAIN's attention, forward: every foreground pixel's mean and deviation of the background pixels it resembles.
//
// A block owns 64 queries and 64 or 128 channels and walks the keys, 64 at a time, with an online softmax and two
// float32 sums, sum P v' and sum P v'^2; no attention matrix and no v'^2 is kept. Logits become weights, and weights
// operands, in the registers of the warp that owns their rows. Counts are read on the device: a block past an image's
// count of queries only writes its pixels' 0 and 1. docs/kernels/bain_attention.md has the formulas.
#include "bain_attention_tiles.cuh"

namespace scsco {
namespace {

constexpr float kLowest = -3.0e38f;
// A row's peak is followed only when some row of the warp has passed it by 2^8: weights are then at most 256, which
// float16 holds as exactly as it does numbers below 1, and after the first keys the sums need hardly ever be rescaled.
constexpr float kSlack = 8.0f;

struct ForwardResults {
  OutputMap mean, deviation;      // (B, C, N)
  Global<float> first, variance;  // (B, N, C), by pixel
  Global<float> lse;              // (B, N), by pixel
};

template <class Element>
struct ForwardRows {
  Global<const Element> query, key;  // (B, N, key_width)
  Global<const Element> value;       // (B, N, width)
  Global<const float> pivot, unit;   // (B, width)
};

// What one lane has of a softmax: rows g and g + 8 of its warp, to base 2.
template <class Kind>
struct Softmax {
  // A finite start: a row whose logits are all -inf gets weights 0 and not exp2(-inf - -inf).
  float peak[2] = {kLowest, kLowest};
  float totals[4] = {};  // a product with ones: rows g and g + 8 in [0] and [2]

  // Turns logits into weights. Those of keys from `remaining` on, which are not there, become 0. Sums are rescaled
  // where a peak has risen.
  template <int COLUMNS>
  __device__ __forceinline__ void weigh(Logits<Kind>& logits, float scale, int remaining, Sums<Kind, COLUMNS>& first,
                                        Sums<Kind, COLUMNS>& second) {
    if (remaining < kOthers) {
      logits.each([&](int, int n, float& value) { value = n < remaining ? value : -INFINITY; });
    }
    float largest[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float own = -INFINITY;
#pragma unroll
      for (int j = 0; j < Logits<Kind>::kColumns; ++j) {
        own = fmaxf(own, fmaxf(logits.sums[0][j][2 * r], logits.sums[0][j][2 * r + 1]));
      }
#pragma unroll
      for (int lanes = 2; lanes > 0; lanes /= 2) own = fmaxf(own, __shfl_xor_sync(kAllLanes, own, lanes));
      largest[r] = fmaxf(peak[r], own * scale);
    }
    if (__any_sync(kAllLanes, largest[0] > peak[0] + kSlack || largest[1] > peak[1] + kSlack)) {
      float shrink[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        shrink[r] = exp2_of(peak[r] - largest[r]);
        peak[r] = largest[r];
        totals[2 * r] *= shrink[r];
      }
      scale_rows(first, shrink);
      scale_rows(second, shrink);
    }
#pragma unroll
    for (int j = 0; j < Logits<Kind>::kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        logits.sums[0][j][e] = exp2_of(fmaf(logits.sums[0][j][e], scale, -peak[e / 2]));
      }
    }
    if (remaining < kOthers) {  // once more, for a scale of 0
      logits.each([&](int, int n, float& value) { value = n < remaining ? value : 0.0f; });
    }
  }

  template <int COLUMNS>
  __device__ __forceinline__ static void scale_rows(Sums<Kind, COLUMNS>& sums, const float (&factors)[2]) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.sums[0][j][e] *= factors[e / 2];
    }
  }
};

// first += weights v and second += weights v^2, with the weights' sums as they are rounded: they add up to 1 exactly
// where they are used. v^2 is formed where v stands, in the registers of a fragment.
template <class Kind, int COLUMNS>
__device__ __forceinline__ void add_moments(Sums<Kind, COLUMNS>& first, Sums<Kind, COLUMNS>& second, float (&totals)[4],
                                            const Operands<Kind>& weights, Shared<const typename Kind::Element> v) {
  const Columns<Kind> values(v);
  weights.each([&](int row, const Left<Kind>& left) {
    add_row_sums(totals, left);
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; ++j) {
      Right<Kind> right[2];
      values.load(right, row, j);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply(first.sums[0][2 * j + n], left, right[n]);
        multiply(second.sums[0][2 * j + n], left, squared(right[n]));
      }
    }
  });
}

// Of a row of (B, N, C), two neighbouring channels.
__device__ __forceinline__ void store_two(Global<float> row, int column, int channels, float low, float high) {
  if (channels % 2 == 0) {
    if (column < channels) store(row + column, Vector<float, 2>{{low, high}});
    return;
  }
  if (column < channels) row[column] = low;
  if (column + 1 < channels) row[column + 1] = high;
}

// What a block of pixels without a query leaves.
template <int COLUMNS, class Pixel>
__device__ __forceinline__ void fill_results(const ForwardResults& to, const AttentionShape& shape, int64_t image,
                                             int first_channel, const Pixel& pixel) {
  const Shared<const float> none{};
  const auto zero = [](int, float value) { return value; };
  write_map<COLUMNS>(to.mean, image, shape.channels, shape.pixels, first_channel, pixel, none, 0, 0.0f, zero);
  write_map<COLUMNS>(to.deviation, image, shape.channels, shape.pixels, first_channel, pixel, none, 0, 1.0f, zero);
  constexpr int kInRow = COLUMNS / 2, kStep = kAttentionThreads / kInRow;
  const int column = first_channel + static_cast<int>(threadIdx.x) % kInRow * 2;
#pragma unroll 4
  for (int row = threadIdx.x / kInRow; row < kOwned; row += kStep) {
    const int64_t at = pixel(row);
    if (at < 0) break;
    const int64_t place = (image * shape.pixels + at) * shape.channels;
    store_two(to.first + place, column, shape.channels, 0.0f, 0.0f);
    store_two(to.variance + place, column, shape.channels, 0.0f, 0.0f);
    if (column == 0) to.lse[image * shape.pixels + at] = 0.0f;
  }
}

// Makes means and variances of the sums and writes them as rows, for the backward, with the log-sum-exp of each of the
// `remaining` queries.
template <class Kind, int COLUMNS, class Pixel>
__device__ __forceinline__ void store_moments(Sums<Kind, COLUMNS>& first, Sums<Kind, COLUMNS>& second,
                                              const Softmax<Kind>& softmax,
                                              const ForwardRows<typename Kind::Element>& rows, const ForwardResults& to,
                                              const AttentionShape& shape, int remaining, const Pixel& pixel) {
  const int64_t image = blockIdx.z, base = image * shape.pixels;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = softmax.totals[2 * r];
    if (total < 1e-37f) total = 1e-37f;  // and not fmaxf, which would hide a NaN
    const float inverse = 1.0f / total;
    const int row = first.warp_row() + first.lane_row() + 8 * r;
    const int64_t at = pixel(row), place = at < 0 ? 0 : (base + at) * shape.channels;
    if (blockIdx.y == 0 && threadIdx.x % 4 == 0 && at >= 0) {
      to.lse[base + at] = row < remaining ? (softmax.peak[r] + log2f(total)) / kLog2E : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
      const int c = blockIdx.y * COLUMNS + 8 * j + first.lane_column();
      const bool inside = row < remaining && c < shape.width;
      const auto unit = inside ? load<2>(rows.unit + (image * shape.width + c)) : Vector<float, 2>{};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float &mean = first.sums[0][j][2 * r + e], &variance = second.sums[0][j][2 * r + e];
        mean *= inverse;
        variance = inside ? (variance * inverse - mean * mean) * (unit[e] * unit[e]) : 0.0f;
        mean = inside ? mean * unit[e] : 0.0f;
      }
      if (at < 0) continue;
      const float (&means)[4] = first.sums[0][j], (&variances)[4] = second.sums[0][j];
      store_two(to.first + place, c, shape.channels, means[2 * r], means[2 * r + 1]);
      store_two(to.variance + place, c, shape.channels, variances[2 * r], variances[2 * r + 1]);
    }
  }
}

// Writes the maps of deviation and mean, through shared memory, so that neighbouring threads write neighbouring pixels.
template <class Kind, int COLUMNS, class Pixel>
__device__ __forceinline__ void write_maps(Sums<Kind, COLUMNS>& mean, Sums<Kind, COLUMNS>& variance,
                                           const ForwardRows<typename Kind::Element>& rows, const ForwardResults& to,
                                           const AttentionShape& shape, int remaining, float eps, const Pixel& pixel) {
  const int64_t image = blockIdx.z;
  const int column = blockIdx.y * COLUMNS;
  SharedMemory memory;
  const Shared<float> out = memory.array<float>(COLUMNS * kResultLd);
  __syncthreads();
  store_columns<Kind, COLUMNS>(variance, out);
  __syncthreads();
  write_map<COLUMNS>(to.deviation, image, shape.channels, shape.pixels, column, pixel, out, remaining, 1.0f,
                     [&](int, float own) { return sqrtf((own < 0 ? 0.0f : own) + eps); });
  __syncthreads();
  store_columns<Kind, COLUMNS>(mean, out);
  __syncthreads();
  const Global<const float> pivot = rows.pivot + (image * shape.width + column);
  write_map<COLUMNS>(to.mean, image, shape.channels, shape.pixels, column, pixel, out, remaining, 0.0f,
                     [&](int c, float own) { return own + pivot[c]; });
}

// Grid: blocks of kOwned places, blocks of COLUMNS channels, images. `scale`, not negative, is to base 2. WHOLE: rows
// of queries and keys stand in shared memory whole.
template <class Kind, int COLUMNS, bool WHOLE>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks<Kind, COLUMNS>)
    bain_attention_fwd_kernel(ForwardRows<typename Kind::Element> rows, Regions regions, ForwardResults to,
                              AttentionShape shape, Staging staging, float scale, float eps) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  const int64_t image = blockIdx.z, base = image * shape.pixels;
  const int start = blockIdx.x * kOwned, n_query = regions.queries(image);
  const int column = blockIdx.y * COLUMNS;
  const auto pixel = [&](int row) -> int64_t {
    return start + row < shape.pixels ? int64_t(regions.order[base + start + row]) : int64_t(-1);
  };
  if (start >= n_query) return fill_results<COLUMNS>(to, shape, image, column, pixel);

  const int64_t k_size = tile_size<Element>(kOthers, staging.keys), v_size = tile_size<Element>(kOthers, COLUMNS);
  SharedMemory memory;
  const Shared<Element> q_tile = memory.array<Element>(tile_size<Element>(kOwned, staging.keys));
  const Shared<Element> k_tiles = memory.array<Element>(staging.stages * k_size);
  const Shared<Element> v_tiles = memory.array<Element>(staging.stages * v_size);
  Shared<float> operands{};
  if constexpr (kIsIEEE<Kind>) operands = memory.array<float>(kOperandsSize);

  const int n_keys = regions.background(image);
  const Rows<Element> q{rows.query + (base + start) * shape.key_width, n_query - start, shape.key_width};
  const Rows<Element> k{rows.key + base * shape.key_width, n_keys, shape.key_width};
  const Rows<Element> v{rows.value + base * shape.width, n_keys, shape.width};
  const bool ring = WHOLE && staging.stages == 2;
  const auto copy_others = [&](int at, int stage) {
    if (WHOLE) k.from(at).copy(k_tiles + stage * k_size, 0, shape.key_width);
    v.from(at).copy(v_tiles + stage * v_size, column, COLUMNS);
  };

  Softmax<Kind> softmax;
  Sums<Kind, COLUMNS> first, second;
  if (WHOLE) q.copy(q_tile, 0, shape.key_width);
  if (ring) copy_others(0, 0);
  for (int at = 0, stage = 0; at < n_keys; at += kOthers) {
    if (!ring) {
      if (at > 0) __syncthreads();  // everybody is done with the last keys and values
      copy_others(at, 0);
    }
    wait_for_copies();
    __syncthreads();  // this stage is there, the other one done with
    if (ring && at + kOthers < n_keys) copy_others(at + kOthers, stage ^ 1);
    Logits<Kind> logits;
    add_logits<Kind, WHOLE>(logits, q_tile, k_tiles + stage * k_size, q, k.from(at), staging.keys);
    softmax.weigh(logits, scale, n_keys - at, first, second);
    add_moments(first, second, softmax.totals, Operands<Kind>(logits, operands), v_tiles + stage * v_size);
    if (ring) stage ^= 1;
  }

  store_moments<Kind, COLUMNS>(first, second, softmax, rows, to, shape, q.remaining, pixel);

  write_maps<Kind, COLUMNS>(first, second, rows, to, shape, q.remaining, eps, pixel);
}

template <class Kind, int COLUMNS>
size_t forward_bytes(const Staging& staging) {
  using Element = typename Kind::Element;
  const int64_t keys = tile_size<Element>(kOthers, staging.keys), values = tile_size<Element>(kOthers, COLUMNS);
  const size_t used = shared_bytes<Element>(keys) + shared_bytes<Element>(staging.stages * keys) +
                      shared_bytes<Element>(staging.stages * values) + kOperandsBytes<Kind>;
  return std::max(used, kResultBytes<COLUMNS>);
}

template <class Kind>
void launch_forward(const ForwardRows<typename Kind::Element>& rows, const Regions& regions, const ForwardResults& to,
                    const AttentionShape& shape, double scale, double eps, const Tensor& on) {
  launch_fitting<Kind>(
      shape, shape.width, 0, shared_limit(on),
      [](auto columns, const Staging& staging) { return forward_bytes<Kind, decltype(columns)::value>(staging); },
      [&](auto columns, auto whole, const Staging& staging) {
        constexpr int kColumns = decltype(columns)::value;
        const dim3 grid(ceil_div(shape.pixels, kOwned), ceil_div(shape.width, kColumns), on.size(0));
        LAUNCH((bain_attention_fwd_kernel<Kind, kColumns, decltype(whole)::value>), grid, kAttentionThreads,
               (forward_bytes<Kind, kColumns>(staging)), on, rows, regions, to, shape, staging,
               static_cast<float>(std::abs(scale) * kLog2E), static_cast<float>(eps));
      });
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// query and key (B, D, N), value (B, C, N) of any layout -> mean and deviation (B, C, N) in the dtype of value, first
// and variance (B, N, C) and lse (B, N) in float32.
Results bain_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order,
                               const Tensor& counts, double scale, double eps, bool tf32) {
  const AttentionShape shape = shape_of(query, key, value, order, counts);
  const int64_t batch = value.size(0), pixels = shape.pixels, channels = shape.channels;
  const Tensor mean = allocate_like(value), deviation = allocate_like(value);
  const Tensor first = allocate({batch, pixels, channels}, value), variance = allocate_like(first);
  const Tensor lse = allocate({batch, pixels}, value);
  if (first.numel() == 0) return {mean, deviation, first, variance, lse};
  const Regions regions{global<const int64_t>(order), global<const int64_t>(counts)};
  const ForwardResults to{output_map(mean), output_map(deviation), global<float>(first), global<float>(variance),
                          global<float>(lse)};
  dispatch_product(query.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    using Element = typename Kind::Element;
    Workspace space;
    const PackedRows<Element> packed(space, batch, shape);
    space.allocate(value);
    pack<Kind>(query, key, value, regions, shape, scale, space, packed);
    const ForwardRows<Element> rows{space[packed.query], space[packed.key], space[packed.value], space[packed.pivot],
                                    space[packed.unit]};
    launch_forward<Kind>(rows, regions, to, shape, scale, eps, value);
  });
  return {mean, deviation, first, variance, lse};
}

}  // namespace

SCSCO_SCHEMAS(m) {
  m.def(
      "bain_attention_forward(Tensor query, Tensor key, Tensor value, Tensor order, Tensor counts, float scale, "
      "float eps, bool tf32) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

SCSCO_OPERATIONS(m) { m.impl("bain_attention_forward", TORCH_BOX(&bain_attention_forward)); }

}  // namespace scsco
