// BAIN's attention, forward: every foreground pixel's mean and deviation of the background pixels it resembles.
//
// A block owns 64 queries and 64 channels and walks the keys, 64 at a time (32 in float32), with an online softmax and
// two float32 accumulators, sum P v' and sum P v'^2; no attention matrix and no v'^2 is kept. A warp owns 16 whole rows
// of logits, so the softmax needs no barrier of the block. Counts are read on the device: a block past an image's count
// of queries only writes its pixels' 0 and 1. docs/kernels/bain_attention.md has the formulas.
#include "bain_attention_tiles.cuh"

namespace scsco {
namespace {

constexpr float kLowest = -3.0e38f;
// A row's peak is followed only when some row of the warp has passed it by 2^8: weights are then at most 256, which
// float16 holds as exactly as it does numbers below 1, and after the first keys the accumulators, whose layout only
// the hardware knows, need hardly ever be rescaled. A first pass for the exact maxima would compute every logit twice.
constexpr float kSlack = 8.0f;

struct ForwardResults {
  OutputMap mean, deviation;      // (B, C, N)
  Global<float> first, variance;  // (B, N, C), by pixel
  Global<float> lse;              // (B, N), by pixel
};

// Of 64 places and 64 channels: what is the same for a block's results.
struct Block {
  int64_t image;
  int start, left;      // `left` queries from `start` on
  int column, columns;  // channels
};

// Writes a tile [place, channel] of `first`, or of `variance`, as rows and as a map.
template <class Row, class Pixel>
__device__ __forceinline__ void write_tile(Shared<const float> tile, int ld, const Block& here, const Regions& regions,
                                           const Shape& shape, const Row& row, const Pixel& pixel) {
  const Global<const int64_t> places = regions.order + (here.image * shape.pixels + here.start);
  for (int i = threadIdx.x; i < kOwned * kColumns; i += kThreads) {
    const int place = i / kColumns, c = i % kColumns;
    if (here.start + place >= shape.pixels || c >= here.columns) continue;
    row((here.image * shape.pixels + places[place]) * shape.channels + here.column + c, place, c, tile[place * ld + c]);
  }
  for (int i = threadIdx.x; i < kOwned * here.columns; i += kThreads) {
    const int place = i % kOwned, c = i / kOwned;
    if (here.start + place >= shape.pixels) continue;
    pixel((here.image * shape.channels + here.column + c) * shape.pixels + places[place], place, c,
          tile[place * ld + c]);
  }
}

template <class Kind>
__global__ void __launch_bounds__(kThreads, 3)
    bain_attention_fwd_kernel(Global<const typename Kind::Element> q_rows, Global<const typename Kind::Element> k_rows,
                              Global<const typename Kind::Element> v_rows, Global<const float> pivot,
                              Global<const float> unit, Regions regions, ForwardResults to, Shape shape, int chunk,
                              float scale, float eps) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  using C = Cut<Kind, true>;
  constexpr int kKeys = C::kKeys, kValuesLd = leading<Element>(kColumns), kFloatsLd = leading<float>(kKeys);
  constexpr int kOutLd = leading<float>(kColumns);
  const int ld = leading<Element>(chunk);
  SharedMemory memory;
  const Shared<Element> q_tile = memory.array<Element>(kOwned * ld), k_tile = memory.array<Element>(kKeys * ld);
  const Shared<Element> v_tile = memory.array<Element>(kKeys * kValuesLd);
  const Shared<Element> weights = memory.array<Element>(kOwned * C::kLogitsLd);
  const Shared<float> floats = memory.array<float>(kOwned * kFloatsLd), factors = memory.array<float>(kOwned);

  const int64_t image = blockIdx.z;
  const int start = blockIdx.x * kOwned, n_query = regions.queries(image);
  const int column = blockIdx.y * kColumns, columns = min(kColumns, shape.width - column);
  const int n_keys = start < n_query ? regions.background(image) : 0;
  const int64_t base = image * shape.pixels;
  const Rows<Element> q{q_rows + (base + start) * shape.key_width, n_query - start, shape.key_width};
  const Rows<Element> k{k_rows + base * shape.key_width, n_keys, shape.key_width};
  const Rows<Element> v{v_rows + base * shape.width, n_keys, shape.width};
  const bool whole = chunk == shape.key_width;

  Logits<Kind, true> logits(floats);
  Sums<Kind> first(floats), second = first;
  if (n_keys > 0 && whole) {
    q.copy(q_tile, ld, kOwned, 0, chunk);
    k.copy(k_tile, ld, kKeys, 0, chunk);
  }

  constexpr int kOwn = kKeys / 2, V = 16 / sizeof(Element);  // a lane has half a row of logits
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane % 16, half_row = lane / 16 * kOwn;
  // A finite start: a row whose logits are all -inf gets weights 0 and not exp2(-inf - -inf).
  float peak = kLowest, total = 0;
  for (int at = 0; at < n_keys; at += kKeys) {
    wait_for_copies();
    __syncthreads();  // queries and keys are there, the last values are done with
    v.from(at).copy(v_tile, kValuesLd, kKeys, column, columns);
    logits.zero();
    add_logits<Kind, true>(logits, q_tile, k_tile, ld, q, k.from(at), whole, chunk);
    logits.store(floats, kFloatsLd);
    __syncwarp();

    const int left = n_keys - at - half_row;
    float own[kOwn], largest = peak;
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      const auto four = load<4>(floats + (row * kFloatsLd + half_row + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        own[i + j] = i + j < left ? four[j] * (scale * kLog2E) : -INFINITY;
        largest = fmaxf(largest, own[i + j]);
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 16));
    if (__any_sync(kAllLanes, largest > peak + kSlack)) {
      const float shrink = exp2_of(peak - largest);
      peak = largest;
      total *= shrink;
      if (lane < 16) factors[row] = shrink;
      __syncwarp();
      first.each([&](int m, int, float& value) { value *= factors[m]; });
      second.each([&](int m, int, float& value) { value *= factors[m]; });
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; i += V) {
      Vector<Element, V> rounded;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        rounded[j] = Kind::element(exp2_of(own[i + j] - peak));
        // The sum of the rounded weights: then they add up to 1 exactly where they are used.
        sum += to_float(rounded[j]);
      }
      store(weights + (row * C::kLogitsLd + half_row + i), rounded);
    }
    total += sum + __shfl_xor_sync(kAllLanes, sum, 16);

    wait_for_copies();
    __syncthreads();  // weights and values are there, the keys are done with
    if (whole && at + kKeys < n_keys) k.from(at + kKeys).copy(k_tile, ld, kKeys, 0, chunk);
    first.add_moments(second, weights, C::kLogitsLd, v_tile, kValuesLd, depth_of(kKeys, n_keys - at));
  }

  if (total < 1e-37f) total = 1e-37f;  // and not fmaxf, which would hide a NaN
  __syncwarp();
  if (lane < 16) {
    factors[row] = 1.0f / total;
    if (blockIdx.y == 0 && start + row < shape.pixels) {
      to.lse[base + regions.order[base + start + row]] = row < q.left ? (peak + log2f(total)) / kLog2E : 0.0f;
    }
  }
  __syncwarp();
  float means[kOwned * kColumns / kThreads];
  int i = 0;
  first.each([&](int m, int, float& value) { means[i++] = value *= factors[m]; });
  i = 0;
  second.each([&](int m, int, float& value) {
    value = value * factors[m] - means[i] * means[i];
    ++i;
  });

  SharedMemory again;
  const Shared<float> out = again.array<float>(kOwned * kOutLd);
  const Block here{image, start, q.left, column, min(kColumns, shape.channels - column)};
  const auto unit_of = [&](int c) -> float { return unit[image * shape.width + column + c]; };
  __syncthreads();
  second.store(out, kOutLd);
  __syncthreads();
  write_tile(
      out, kOutLd, here, regions, shape,
      [&](int64_t at, int place, int c, float variance) {
        to.variance[at] = place < q.left ? variance * (unit_of(c) * unit_of(c)) : 0.0f;
      },
      [&](int64_t at, int place, int c, float variance) {
        const float scaled = variance * (unit_of(c) * unit_of(c));
        to.deviation.put(at, place < q.left ? sqrtf((scaled < 0 ? 0.0f : scaled) + eps) : 1.0f);
      });
  __syncthreads();
  first.store(out, kOutLd);
  __syncthreads();
  write_tile(
      out, kOutLd, here, regions, shape,
      [&](int64_t at, int place, int c, float mean) { to.first[at] = place < q.left ? mean * unit_of(c) : 0.0f; },
      [&](int64_t at, int place, int c, float mean) {
        to.mean.put(at, place < q.left ? mean * unit_of(c) + pivot[image * shape.width + column + c] : 0.0f);
      });
}

template <class Kind>
size_t forward_bytes(int chunk) {
  using Element = typename Kind::Element;
  using C = Cut<Kind, true>;
  const int ld = leading<Element>(chunk);
  const size_t used = shared_bytes<Element>(kOwned * ld) + shared_bytes<Element>(C::kKeys * ld) +
                      shared_bytes<Element>(C::kKeys * leading<Element>(kColumns)) +
                      shared_bytes<Element>(kOwned * C::kLogitsLd) +
                      shared_bytes<float>(kOwned * leading<float>(C::kKeys)) + shared_bytes<float>(kOwned);
  return std::max(used, shared_bytes<float>(kOwned * leading<float>(kColumns)));
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// query and key (B, D, N), value (B, C, N) of any layout -> mean and deviation (B, C, N) in the dtype of value, first
// and variance (B, N, C) and lse (B, N) in float32. Blocks take at most `shared` bytes of shared memory.
Results bain_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& order,
                               const Tensor& counts, double scale, double eps, bool tf32, int64_t shared) {
  const Shape shape = shape_of(query, key, value, order, counts);
  const int64_t batch = value.size(0), pixels = shape.pixels, channels = shape.channels;
  const Tensor mean = allocate_like(value), deviation = allocate_like(value);
  const Tensor first = allocate({batch, pixels, channels}, value), variance = allocate_like(first);
  const Tensor lse = allocate({batch, pixels}, value);
  if (first.numel() == 0) return {mean, deviation, first, variance, lse};
  const Regions regions{global<const int64_t>(order), global<const int64_t>(counts)};
  dispatch_product(query.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    using Element = typename Kind::Element;
    const Packed packed = pack<Kind>(query, key, value, regions, shape);
    const ForwardResults to{output_map(mean), output_map(deviation), global<float>(first), global<float>(variance),
                            global<float>(lse)};
    const int chunk = fit(shape.key_width, kColumns, shared, forward_bytes<Kind>);
    const dim3 grid(ceil_div(pixels, kOwned), ceil_div(shape.width, kColumns), batch);
    LAUNCH((bain_attention_fwd_kernel<Kind>), grid, kThreads, forward_bytes<Kind>(chunk), value,
           global<const Element>(packed.query), global<const Element>(packed.key), global<const Element>(packed.value),
           global<const float>(packed.pivot), global<const float>(packed.unit), regions, to, shape, chunk,
           static_cast<float>(scale), static_cast<float>(eps));
  });
  return {mean, deviation, first, variance, lse};
}

}  // namespace

SCSCO_OPERATIONS(m) { m.impl("bain_attention_forward", TORCH_BOX(&bain_attention_forward)); }

}  // namespace scsco
