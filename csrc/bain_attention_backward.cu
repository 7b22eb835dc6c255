// BAIN's attention, backward: P is recomputed from the saved log-sum-exp, and gradients go to whoever owns them.
//
// dq is summed by the block that owns 64 queries, dk and dv by blocks that own 64 keys: nothing is added atomically, so
// the same inputs give the same bits. With da and db the packed gradients of sum P v' and sum P v'^2:
//
//   dS = P o (da v'^T + db (v'^2)^T - delta)     dq = scale dS k     dk = scale dS^T q
//   dv = (P^T da + 2 v' o (P^T db)) / u
//
// Where D and C are at most 64, one kernel sums dk and dv and computes P once for both. For wider ones the sums of both
// would not fit into registers: dk and dv have a kernel each, which costs two products of seven at 128 channels.
#include "bain_attention_gradients.cuh"
#include "bain_attention_tiles.cuh"

namespace scsco {
namespace {

template <class Element>
struct BackwardRows {
  Global<const Element> query, key;     // (B, N, key_width)
  Global<const Element> value, da, db;  // (B, N, width)
  Global<const float> statistics;       // (B, 2, N padded), as in GradientRows
  Global<const float> span, unit;       // (B), (B, width)
};

// Calls function(r, n, value) for the thread's logits, of row g + 8 r and column n: r is a constant, so that what
// belongs to a row is found in registers.
template <class Kind, class Function>
__device__ __forceinline__ void each_logit(Logits<Kind>& logits, const Function& function) {
#pragma unroll
  for (int j = 0; j < Logits<Kind>::kColumns; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) function(e / 2, 8 * j + logits.lane_column() + e % 2, logits.sums[0][j][e]);
  }
}

// P, laid out as the logits are, of rows that a block owns with its others. Those of others from `remaining` on, which
// are not there, become 0. lse(r, n) is the log-sum-exp of the query, to base 2, for row g + 8 r and column n.
template <class Kind, class Lse>
__device__ __forceinline__ void weigh(Logits<Kind>& logits, float scale, int remaining, const Lse& lse) {
  each_logit(logits, [&](int r, int n, float& value) { value = exp2_of(fmaf(value, scale, -lse(r, n))); });
  if (remaining < kOthers) {
    logits.each([&](int, int n, float& value) { value = n < remaining ? value : 0.0f; });
  }
}

// The tiles of a block that holds `channels` columns of values and their gradients: of its own rows and of the others'.
// Queries have gradients, da and db, keys have values.
template <class Kind, bool OWNS_QUERIES>
struct ChannelTiles {
  using Element = typename Kind::Element;
  static constexpr int kOwn = OWNS_QUERIES ? 2 : 1, kOther = 3 - kOwn;

  Shared<Element> own, others;  // tiles one after the other
  int64_t size;                 // of a tile

  // gradients += da v^T + db (v^2)^T, or its transpose, over columns that the tiles hold.
  __device__ __forceinline__ void add_gradients(Logits<Kind>& gradients, int columns) const {
    constexpr int kStep = Kind::kDepth;
    const LeftRows<Kind, kOwned> first(own, Logits<Kind>::warp_row()), second(own + size, Logits<Kind>::warp_row());
    const RightRows<Kind, kOthers> first_others(others), second_others(others + size);
    each_step<kPanel<Element>, kStep, kUnrolledSteps<Kind>>(columns, [&](int column, int k) {
      const int panel = column / kPanel<Element>, step = k / kStep;
      const Left<Kind> a = first.load(panel, step);
      Left<Kind> b;
      if constexpr (OWNS_QUERIES) {
        b = second.load(panel, step);
      } else {
        b = squared(a);
      }
#pragma unroll
      for (int j = 0; j < kOthers / 16; ++j) {
        Right<Kind> x[2], y[2];
        first_others.load(x, panel, step, j);
        if constexpr (!OWNS_QUERIES) second_others.load(y, panel, step, j);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          multiply(gradients.sums[0][2 * j + n], a, x[n]);
          if constexpr (OWNS_QUERIES) y[n] = squared(x[n]);
          multiply(gradients.sums[0][2 * j + n], b, y[n]);
        }
      }
    });
  }
};

// The pixel to which row `row` of a block's gradients goes. Of keys, ranks past the last run on from the first place,
// so that every pixel is written once.
template <bool OWNS_QUERIES>
__device__ __forceinline__ int64_t gradient_pixel(const Regions& regions, int64_t image, int rank, int n_bg,
                                                  int pixels) {
  if (rank >= pixels) return -1;
  const int place = OWNS_QUERIES ? rank : rank < n_bg ? pixels - n_bg + rank : rank - n_bg;
  return regions.order[image * pixels + place];
}

// Elements of a tile of the others' queries or keys. A block that sums columns of gradients reads as many of the tile,
// more than there may be.
template <class Element, int KEY_COLUMNS>
__host__ __device__ constexpr int64_t key_tile_size(int keys) {
  constexpr int kMultiple = KEY_COLUMNS > 0 ? KEY_COLUMNS : kPanel<Element>;
  return tile_size<Element>(kOwned, ceil_div(keys, kMultiple) * kMultiple);
}

// first += 2 v' o second: what reaches v' through its square. The sums' first column is `column` of the values.
template <class Sums, class Element>
__device__ __forceinline__ void add_through_squares(Sums& first, const Sums& second, const Rows<Element>& values,
                                                    int column) {
#pragma unroll
  for (int j = 0; j < Sums::kColumns; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first.warp_row() + first.lane_row() + 8 * r, c = column + 8 * j + first.lane_column();
      if (row >= values.remaining || c >= values.width) continue;
      const auto two = load<2>(values.data + (int64_t(row) * values.width + c));
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        first.sums[0][j][2 * r + e] += 2.0f * to_float(two[e]) * second.sums[0][j][2 * r + e];
      }
    }
  }
}

// Shared memory of a block, by its Staging; `stages` of every tile of the others.
template <class Kind, bool OWNS_QUERIES, int KEY_COLUMNS, int VALUE_COLUMNS>
size_t backward_bytes(const Staging& staging) {
  using Element = typename Kind::Element;
  using Tiles = ChannelTiles<Kind, OWNS_QUERIES>;
  const int64_t keys = tile_size<Element>(kOwned, staging.keys);
  const int64_t other_keys = key_tile_size<Element, KEY_COLUMNS>(staging.keys);
  const int64_t channels = tile_size<Element>(kOwned, staging.channels);
  const int64_t own_channels = KEY_COLUMNS > 0 ? Tiles::kOwn * channels : 0;
  const size_t used = shared_bytes<Element>(keys) + shared_bytes<Element>(staging.stages * other_keys) +
                      shared_bytes<Element>(own_channels) +
                      shared_bytes<Element>(staging.stages * Tiles::kOther * channels) +
                      shared_bytes<float>(staging.stages * 2 * kOthers) + kOperandsBytes<Kind>;
  return std::max(used, kResultBytes<std::max(KEY_COLUMNS, VALUE_COLUMNS)>);
}

// Gradients that belong to 64 queries or to 64 keys: KEY_COLUMNS columns of dq or dk, and VALUE_COLUMNS of dv; 0 leaves
// one of them out. Grid: blocks of rows, blocks of those columns, images. `scale`, not negative, is to base 2, `factor`
// what dq or dk is multiplied by. WHOLE: rows stand in shared memory whole.
template <class Kind, bool OWNS_QUERIES, int KEY_COLUMNS, int VALUE_COLUMNS, bool WHOLE>
__device__ __forceinline__ void sum_gradients(const BackwardRows<typename Kind::Element>& rows, const Regions& regions,
                                              const OutputMap& d_keys, const OutputMap& d_values,
                                              const AttentionShape& shape, const Staging& staging, float scale,
                                              float factor) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  using Tiles = ChannelTiles<Kind, OWNS_QUERIES>;
  constexpr bool kKeys = KEY_COLUMNS > 0, kValues = VALUE_COLUMNS > 0;
  constexpr int kKeySums = kKeys ? KEY_COLUMNS : 16, kValueSums = kValues ? VALUE_COLUMNS : 16;

  const int64_t image = blockIdx.z, base = image * shape.pixels;
  const int start = blockIdx.x * kOwned;
  const int key_column = kKeys ? blockIdx.y * KEY_COLUMNS : 0;
  const int value_column = kValues && !kKeys ? blockIdx.y * VALUE_COLUMNS : 0;
  const int n_query = regions.queries(image), n_bg = regions.background(image);
  const int n_own = OWNS_QUERIES ? n_query : n_bg, n_other = OWNS_QUERIES ? n_bg : n_query;
  // Without others there are no gradients: products with NaN would make some of 0.
  const int results = n_other > 0 ? n_own - start : 0;
  const auto pixel = [&](int row) {
    return gradient_pixel<OWNS_QUERIES>(regions, image, start + row, n_bg, shape.pixels);
  };
  const auto write_keys = [&](Shared<const float> tile, const auto& value) {
    write_map<kKeySums>(d_keys, image, shape.keys, shape.pixels, key_column, pixel, tile, results, 0.0f, value);
  };
  const auto write_values = [&](Shared<const float> tile, const auto& value) {
    write_map<kValueSums>(d_values, image, shape.channels, shape.pixels, value_column, pixel, tile, results, 0.0f,
                          value);
  };
  if (results <= 0) {
    const auto zero = [](int, float value) { return value; };
    if constexpr (kKeys) write_keys({}, zero);
    if constexpr (kValues) write_values({}, zero);
    return;
  }

  const int64_t key_size = key_tile_size<Element, KEY_COLUMNS>(staging.keys);
  const int64_t channel_size = tile_size<Element>(kOwned, staging.channels);
  SharedMemory memory;
  const Shared<Element> own_keys = memory.array<Element>(tile_size<Element>(kOwned, staging.keys));
  const Shared<Element> other_keys = memory.array<Element>(staging.stages * key_size);
  const Shared<Element> own_channels = memory.array<Element>(kKeys ? Tiles::kOwn * channel_size : 0);
  const Shared<Element> other_channels = memory.array<Element>(staging.stages * Tiles::kOther * channel_size);
  const Shared<float> statistics = memory.array<float>(staging.stages * 2 * kOthers);  // of the others, if queries
  Shared<float> operands{};
  if constexpr (kIsIEEE<Kind>) operands = memory.array<float>(kOperandsSize);

  const Rows<Element> queries{rows.query + base * shape.key_width, n_query, shape.key_width};
  const Rows<Element> keys{rows.key + base * shape.key_width, n_bg, shape.key_width};
  const Rows<Element> values{rows.value + base * shape.width, n_bg, shape.width};
  const Rows<Element> da{rows.da + base * shape.width, n_query, shape.width};
  const Rows<Element> db{rows.db + base * shape.width, n_query, shape.width};
  const Rows<Element>& all_others = OWNS_QUERIES ? keys : queries;
  const Rows<Element> own = (OWNS_QUERIES ? queries : keys).from(start);
  const int64_t statistics_size = statistics_width(shape.pixels);
  const Global<const float> lse = rows.statistics + image * 2 * statistics_size, delta = lse + statistics_size;

  const bool ring = WHOLE && staging.stages == 2;
  constexpr bool kWholeChannels = WHOLE || !kKeys;
  const auto copy_channels = [&](bool queries_side, Shared<Element> to, int row, int column) {
    if (queries_side) {
      da.from(row).copy(to, column, staging.channels);
      db.from(row).copy(to + channel_size, column, staging.channels);
    } else {
      values.from(row).copy(to, column, staging.channels);
    }
  };
  const auto copy_others = [&](int at, int stage) {
    if (WHOLE) all_others.from(at).copy(other_keys + stage * key_size, 0, shape.key_width);
    if (kWholeChannels) {
      copy_channels(!OWNS_QUERIES, other_channels + stage * Tiles::kOther * channel_size, at, value_column);
    }
    if constexpr (!OWNS_QUERIES) {  // lse, then delta
      const int which = threadIdx.x / (kOthers / 4), i = threadIdx.x % (kOthers / 4) * 4;
      if (which < (kKeys ? 2 : 1)) {
        copy_16_bytes<float>(statistics + ((2 * stage + which) * kOthers + i), (which ? delta : lse) + (at + i),
                             at + i < n_other);
      }
    }
  };

  float own_lse[2] = {}, own_delta[2] = {};
  if constexpr (OWNS_QUERIES) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = Logits<Kind>::warp_row() + Logits<Kind>::lane_row() + 8 * r;
      if (row >= results) continue;
      own_lse[r] = lse[start + row];
      own_delta[r] = delta[start + row];
    }
  }
  if (WHOLE) own.copy(own_keys, 0, shape.key_width);
  if (kKeys && WHOLE) copy_channels(OWNS_QUERIES, own_channels, start, 0);
  if (ring) copy_others(0, 0);

  Sums<Kind, kKeySums> key_sums;
  Sums<Kind, kValueSums> first, second;
  for (int at = 0, stage = 0; at < n_other; at += kOthers) {
    if (!ring) {
      if (at > 0) __syncthreads();  // everybody is done with the last others
      copy_others(at, 0);
    }
    wait_for_copies();
    __syncthreads();  // this stage is there, the other one done with
    if (ring && at + kOthers < n_other) copy_others(at + kOthers, stage ^ 1);
    const Shared<Element> keys_here = other_keys + stage * key_size;
    const Tiles tiles{own_channels, other_channels + stage * Tiles::kOther * channel_size, channel_size};
    const Shared<const float> others_lse = statistics + stage * 2 * kOthers, others_delta = others_lse + kOthers;

    Logits<Kind> weights;
    add_logits<Kind, WHOLE>(weights, own_keys, keys_here, own, all_others.from(at), staging.keys);
    weigh<Kind>(weights, scale, n_other - at,
                [&](int r, int n) -> float { return OWNS_QUERIES ? own_lse[r] : float(others_lse[n]); });
    if constexpr (kValues) {
      Operands<Kind>(weights, operands).each([&](int row, const Left<Kind>& left_rows) {
        add_columns(first, left_rows, Columns<Kind>(tiles.others), row);
        add_columns(second, left_rows, Columns<Kind>(tiles.others + channel_size), row);
      });
    }
    if constexpr (kKeys) {
      Logits<Kind> gradients;
      // Subtracted first of all: then it costs nothing.
      each_logit(gradients,
                 [&](int r, int n, float& value) { value = -(OWNS_QUERIES ? own_delta[r] : float(others_delta[n])); });
      if constexpr (WHOLE) {
        tiles.add_gradients(gradients, shape.width);
      } else {
        for (int column = 0; column < shape.width; column += staging.channels) {
          __syncthreads();
          copy_channels(OWNS_QUERIES, own_channels, start, column);
          copy_channels(!OWNS_QUERIES, other_channels, at, column);
          wait_for_copies();
          __syncthreads();
          tiles.add_gradients(gradients, min(staging.channels, shape.width - column));
        }
      }
#pragma unroll
      for (int j = 0; j < Logits<Kind>::kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) gradients.sums[0][j][e] *= weights.sums[0][j][e];
      }
      Shared<const Element> columns_here = panel_of<kOthers, Element>(keys_here, key_column);
      if constexpr (!WHOLE) {  // nobody reads keys any more: the loop over channels had barriers
        all_others.from(at).copy(other_keys, key_column, KEY_COLUMNS);
        wait_for_copies();
        __syncthreads();
        columns_here = other_keys;
      }
      Operands<Kind>(gradients, operands).each([&](int row, const Left<Kind>& left_rows) {
        add_columns(key_sums, left_rows, Columns<Kind>(columns_here), row);
      });
    }
    if (ring) stage ^= 1;
  }

  SharedMemory again;
  const Shared<float> out = again.array<float>((kKeySums > kValueSums ? kKeySums : kValueSums) * kResultLd);
  const float span = rows.span[image];
  if constexpr (kKeys) {
    __syncthreads();
    store_columns<Kind, kKeySums>(key_sums, out);
    __syncthreads();
    write_keys(out, [&](int, float sum) { return sum * (factor * span); });
  }
  if constexpr (kValues) {
    add_through_squares(first, second, values.from(start), value_column);
    __syncthreads();
    store_columns<Kind, kValueSums>(first, out);
    __syncthreads();
    const Global<const float> unit = rows.unit + (image * shape.width + value_column);
    write_values(out, [&](int c, float sum) { return sum * (span / unit[c]); });
  }
}

template <class Kind, int COLUMNS, bool WHOLE>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks<Kind, COLUMNS>)
    bain_attention_bwd_dq_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_query,
                                 AttentionShape shape, Staging staging, float scale, float factor) {
  sum_gradients<Kind, true, COLUMNS, 0, WHOLE>(rows, regions, d_query, {}, shape, staging, scale, factor);
}

template <class Kind, int COLUMNS, bool WHOLE>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    bain_attention_bwd_dk_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_key,
                                 AttentionShape shape, Staging staging, float scale, float factor) {
  sum_gradients<Kind, false, COLUMNS, 0, WHOLE>(rows, regions, d_key, {}, shape, staging, scale, factor);
}

template <class Kind, int COLUMNS, bool WHOLE>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    bain_attention_bwd_dv_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_value,
                                 AttentionShape shape, Staging staging, float scale) {
  sum_gradients<Kind, false, 0, COLUMNS, WHOLE>(rows, regions, {}, d_value, shape, staging, scale, 0.0f);
}

template <class Kind>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    bain_attention_bwd_dkv_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_key,
                                  OutputMap d_value, AttentionShape shape, Staging staging, float scale, float factor) {
  sum_gradients<Kind, false, kNarrow, kNarrow, true>(rows, regions, d_key, d_value, shape, staging, scale, factor);
}

// What every backward kernel is launched with.
template <class Kind>
struct BackwardLaunch {
  using Element = typename Kind::Element;

  BackwardRows<Element> rows;
  Regions regions;
  AttentionShape shape;
  double scale;
  size_t limit;  // of shared memory

  void dq(const Tensor& d_query) const {
    launch_fitting<Kind>(shape, shape.key_width, shape.width, limit, bytes_of<true, true>(),
                         [&](auto columns, auto whole, const Staging& staging) {
                           constexpr int kColumns = decltype(columns)::value;
                           LAUNCH((bain_attention_bwd_dq_kernel<Kind, kColumns, decltype(whole)::value>),
                                  grid(d_query, shape.key_width, kColumns), kAttentionThreads,
                                  (backward_bytes<Kind, true, kColumns, 0>(staging)), d_query, rows, regions,
                                  output_map(d_query), shape, staging, to_base_2(), static_cast<float>(scale));
                         });
  }

  void dk(const Tensor& d_key) const {
    launch_fitting<Kind>(shape, shape.key_width, shape.width, limit, bytes_of<false, true>(),
                         [&](auto columns, auto whole, const Staging& staging) {
                           constexpr int kColumns = decltype(columns)::value;
                           LAUNCH((bain_attention_bwd_dk_kernel<Kind, kColumns, decltype(whole)::value>),
                                  grid(d_key, shape.key_width, kColumns), kAttentionThreads,
                                  (backward_bytes<Kind, false, kColumns, 0>(staging)), d_key, rows, regions,
                                  output_map(d_key), shape, staging, to_base_2(), factor_of_dk());
                         });
  }

  void dv(const Tensor& d_value) const {
    launch_fitting<Kind>(shape, shape.width, 0, limit, bytes_of<false, false>(),
                         [&](auto columns, auto whole, const Staging& staging) {
                           constexpr int kColumns = decltype(columns)::value;
                           LAUNCH((bain_attention_bwd_dv_kernel<Kind, kColumns, decltype(whole)::value>),
                                  grid(d_value, shape.width, kColumns), kAttentionThreads,
                                  (backward_bytes<Kind, false, 0, kColumns>(staging)), d_value, rows, regions,
                                  output_map(d_value), shape, staging, to_base_2());
                         });
  }

  // dk and dv by one kernel, if both are narrow and it fits.
  bool dkv(const Tensor& d_key, const Tensor& d_value) const {
    if constexpr (!kIsIEEE<Kind>) {  // whose fragments leave too few registers
      if (shape.key_width > kNarrow || shape.width > kNarrow) return false;
      const auto bytes = backward_bytes<Kind, false, kNarrow, kNarrow>;
      const auto staging = fit_whole(shape.key_width, kNarrow, limit, bytes);
      if (!staging) return false;
      LAUNCH((bain_attention_bwd_dkv_kernel<Kind>), grid(d_key, kNarrow, kNarrow), kAttentionThreads, bytes(*staging),
             d_key, rows, regions, output_map(d_key), output_map(d_value), shape, *staging, to_base_2(),
             factor_of_dk());
      return true;
    }
    return false;
  }

 private:
  template <bool OWNS_QUERIES, bool KEYS>
  static auto bytes_of() {
    return [](auto columns, const Staging& staging) {
      constexpr int kColumns = decltype(columns)::value;
      return backward_bytes<Kind, OWNS_QUERIES, KEYS ? kColumns : 0, KEYS ? 0 : kColumns>(staging);
    };
  }
  dim3 grid(const Tensor& result, int width, int columns) const {
    return dim3(ceil_div(shape.pixels, kOwned), ceil_div(width, columns), result.size(0));
  }
  float to_base_2() const { return static_cast<float>(std::abs(scale) * kLog2E); }
  // The packed queries have the sign of the scale.
  float factor_of_dk() const { return static_cast<float>(std::abs(scale)); }
};

void check_backward(const Tensor& grad_mean, const Tensor& grad_std, const Tensor& value, const Tensor& first,
                    const Tensor& variance, const Tensor& lse) {
  const int64_t batch = value.size(0), channels = value.size(1), pixels = value.size(2);
  for (const Tensor& grad : {grad_mean, grad_std}) check_shape("a gradient", grad, {batch, channels, pixels});
  for (const Tensor& saved : {first, variance}) check_shape("first and variance", saved, {batch, pixels, channels});
  check_shape("lse", lse, {batch, pixels});
  for (const Tensor& tensor : {grad_mean, grad_std, first, variance, lse}) {
    check_device("gradients, first, variance and lse", tensor, value);
  }
  for (const Tensor& saved : {first, variance, lse}) {
    check(saved.is_contiguous(), "first, variance and lse must be contiguous");
  }
}

// Gradients of the forward's results (B, C, N) of any layout, its inputs and what it saved -> contiguous gradients of
// query, key and value in their dtypes.
std::tuple<Tensor, Tensor, Tensor> bain_attention_backward(const Tensor& grad_mean, const Tensor& grad_std,
                                                           const Tensor& query, const Tensor& key, const Tensor& value,
                                                           const Tensor& order, const Tensor& counts,
                                                           const Tensor& first, const Tensor& variance,
                                                           const Tensor& lse, double scale, double eps, bool tf32) {
  const AttentionShape shape = shape_of(query, key, value, order, counts);
  check_backward(grad_mean, grad_std, value, first, variance, lse);
  const int64_t batch = value.size(0);
  const Tensor d_query = allocate_like(query), d_key = allocate_like(key), d_value = allocate_like(value);
  if (first.numel() == 0) return {d_query, d_key, d_value};
  const Regions regions{global<const int64_t>(order), global<const int64_t>(counts)};
  dispatch_product(query.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    using Element = typename Kind::Element;
    Workspace space;
    const PackedRows<Element> packed(space, batch, shape);
    const PackedGradients<Element> grads(space, batch, shape);
    space.allocate(value);
    pack<Kind>(query, key, value, regions, shape, scale, space, packed);
    pack_gradients<Kind>(grad_mean, grad_std, first, variance, lse, regions, shape, eps, space, space[packed.unit],
                         grads);
    const BackwardRows<Element> rows{space[packed.query], space[packed.key], space[packed.value],
                                     space[grads.da],     space[grads.db],   space[grads.statistics],
                                     space[grads.span],   space[packed.unit]};
    const BackwardLaunch<Kind> launch{rows, regions, shape, scale, shared_limit(value)};
    launch.dq(d_query);
    if (launch.dkv(d_key, d_value)) return;
    launch.dk(d_key);
    launch.dv(d_value);
  });
  return {d_query, d_key, d_value};
}

}  // namespace

SCSCO_OPERATIONS(m) { m.impl("bain_attention_backward", TORCH_BOX(&bain_attention_backward)); }

}  // namespace scsco
