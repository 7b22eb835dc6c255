// BAIN's attention, backward: P is recomputed from the saved log-sum-exp, and gradients go to whoever owns them.
//
// dq is summed by the block that owns 64 queries, dk and dv by blocks that own 64 keys: nothing is added atomically, so
// the same inputs give the same bits. With da and db the packed gradients of sum P v' and sum P v'^2:
//
//   dS = P o (da v'^T + db (v'^2)^T - delta)     dq = scale dS k     dk = scale dS^T q
//   dv = (P^T da + 2 v' o (P^T db)) / u
//
// dv has a kernel of its own: with three more accumulators beside the logits' a kernel for dk and dv would hold 160
// numbers per thread, and the products that it saves are two of seven at 64 channels.
#include "bain_attention_gradients.cuh"
#include "bain_attention_tiles.cuh"

namespace scsco {
namespace {

template <class Element>
struct BackwardRows {
  Global<const Element> query, key;            // (B, N, key_width)
  Global<const Element> value, da, db;         // (B, N, width)
  Global<const float> delta, lse, span, unit;  // (B, N), (B, N) in base 2, (B), (B, width)
};

// Columns of queries and keys, and of channels, that stand in shared memory at once.
struct Chunks {
  int keys, channels;
};

// COUNT numbers; 0 from `left` on.
template <int COUNT>
__device__ __forceinline__ void copy_numbers(Shared<float> to, Global<const float> from, int left) {
  const int i = threadIdx.x;
  static_assert(COUNT <= kThreads);
  if (i < COUNT) to[i] = i < left ? float(from[i]) : 0.0f;
}

// The place in `order` whose gradient the block's row `rank` of keys writes. Ranks past the last key run on from the
// first place, so that every pixel is written once.
__device__ __forceinline__ int key_place(int rank, int n_bg, int pixels) {
  return rank < n_bg ? pixels - n_bg + rank : rank - n_bg;
}

// Writes a tile [row, column] to a map of `channels` channels from `first_channel` on; rows from `left` on become 0.
template <bool QUERIES, class Scale>
__device__ __forceinline__ void write_map(Shared<const float> tile, int ld, int64_t image, int start, int left,
                                          int first_channel, int channels, const Regions& regions, int pixels,
                                          const OutputMap& to, const Scale& scale) {
  const int columns = min(kColumns, channels - first_channel);
  for (int i = threadIdx.x; i < kOwned * columns; i += kThreads) {
    const int row = i % kOwned, c = i / kOwned;
    if (start + row >= pixels) continue;
    const int place = QUERIES ? start + row : key_place(start + row, start + left, pixels);
    const int64_t at = (image * channels + first_channel + c) * pixels + regions.order[image * pixels + place];
    to.put(at, row < left ? tile[row * ld + c] * scale(c) : 0.0f);
  }
}

// dq where QUERIES, else dk. Grid: blocks of kOwned rows, blocks of PANELS * kColumns columns of D, images.
template <class Kind, bool QUERIES, int PANELS>
__device__ __forceinline__ void sum_logit_gradients(const BackwardRows<typename Kind::Element>& rows,
                                                    const Regions& regions, const OutputMap& to, const Shape& shape,
                                                    const Chunks& chunks, float scale) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  using C = Cut<Kind, QUERIES>;
  constexpr int kQueries = C::kQueries, kKeys = C::kKeys, kOutLd = leading<float>(kColumns);
  const int ld = leading<Element>(round_up(chunks.keys, kColumns)), channel_ld = leading<Element>(chunks.channels);
  SharedMemory memory;
  const Shared<Element> q_tile = memory.array<Element>(kQueries * ld), k_tile = memory.array<Element>(kKeys * ld);
  const Shared<Element> da_tile = memory.array<Element>(kQueries * channel_ld);
  const Shared<Element> db_tile = memory.array<Element>(kQueries * channel_ld);
  const Shared<Element> v_tile = memory.array<Element>(kKeys * channel_ld);
  const Shared<Element> d_logits = memory.array<Element>(kQueries * C::kLogitsLd);
  // In one array: an element's lse and delta lie at one address in a register and another in the instruction.
  const Shared<float> lse = memory.array<float>(2 * kQueries), delta = lse + kQueries;

  const int64_t image = blockIdx.z, base = image * shape.pixels;
  const int start = blockIdx.x * kOwned, first_column = blockIdx.y * PANELS * kColumns;
  const int n_query = regions.queries(image), n_bg = regions.background(image);
  const int own_left = (QUERIES ? n_query : n_bg) - start;
  const int n_other = own_left > 0 ? (QUERIES ? n_bg : n_query) : 0;
  const Rows<Element> all_q{rows.query + base * shape.key_width, n_query, shape.key_width};
  const Rows<Element> all_k{rows.key + base * shape.key_width, n_bg, shape.key_width};
  const Rows<Element> all_da{rows.da + base * shape.width, n_query, shape.width};
  const Rows<Element> all_db{rows.db + base * shape.width, n_query, shape.width};
  const Rows<Element> all_v{rows.value + base * shape.width, n_bg, shape.width};
  const bool whole_keys = PANELS == 1 || chunks.keys == shape.key_width;
  const bool whole_channels = chunks.channels == shape.width;

  SharedMemory before;
  const Shared<float> scratch = before.array<float>(kProductScratch<Kind>);
  Logits<Kind, QUERIES> logits(scratch), d_weights = logits;
  Sums<Kind> first_sums(scratch), second_sums = first_sums;  // of one panel the second is never used

  const auto copy_other_keys = [&](int at) {
    if (!whole_keys || at >= n_other) return;
    QUERIES ? all_k.from(at).copy(k_tile, ld, kKeys, 0, shape.key_width)
            : all_q.from(at).copy(q_tile, ld, kQueries, 0, shape.key_width);
  };
  const auto copy_queries_gradients = [&](int at) {
    all_da.from(at).copy(da_tile, channel_ld, kQueries, 0, shape.width);
    all_db.from(at).copy(db_tile, channel_ld, kQueries, 0, shape.width);
  };
  const auto copy_other_channels = [&](int at) {
    if (!whole_channels || at >= n_other) return;
    if (QUERIES) {
      all_v.from(at).copy(v_tile, channel_ld, kKeys, 0, shape.width);
    } else {
      copy_queries_gradients(at);
    }
  };
  if (n_other > 0) {
    if (whole_keys) {
      QUERIES ? all_q.from(start).copy(q_tile, ld, kQueries, 0, shape.key_width)
              : all_k.from(start).copy(k_tile, ld, kKeys, 0, shape.key_width);
    }
    if (whole_channels) {
      if (QUERIES) {
        copy_queries_gradients(start);
      } else {
        all_v.from(start).copy(v_tile, channel_ld, kKeys, 0, shape.width);
      }
    }
    copy_other_keys(0);
    copy_other_channels(0);
  }

  for (int at = 0; at < n_other; at += C::kOther) {
    const int query = QUERIES ? start : at, key = QUERIES ? at : start;
    const Rows<Element> q = all_q.from(query), k = all_k.from(key);
    if (!QUERIES || at == 0) {
      copy_numbers<kQueries>(lse, rows.lse + (base + query), q.left);
      copy_numbers<kQueries>(delta, rows.delta + (base + query), q.left);
    }
    wait_for_copies();
    __syncthreads();
    logits.zero();
    add_logits<Kind, QUERIES>(logits, q_tile, k_tile, ld, q, k, whole_keys, chunks.keys);
    d_weights.zero();
    for (int column = 0; column < shape.width; column += chunks.channels) {
      const int columns = min(chunks.channels, shape.width - column);
      if (!whole_channels) {
        if (column > 0) __syncthreads();
        all_da.from(query).copy(da_tile, channel_ld, kQueries, column, columns);
        all_db.from(query).copy(db_tile, channel_ld, kQueries, column, columns);
        all_v.from(key).copy(v_tile, channel_ld, kKeys, column, columns);
        wait_for_copies();
        __syncthreads();
      }
      d_weights.add_gradients(da_tile, db_tile, channel_ld, v_tile, channel_ld, columns);
    }

    float weights[kQueries * kKeys / kThreads];
    int i = 0;
    logits.each([&](int m, int n, float& value) {
      weights[i++] = m < q.left && n < k.left ? exp2_of(value * (scale * kLog2E) - lse[m]) : 0.0f;
    });
    i = 0;
    d_weights.each([&](int m, int, float& value) {
      weights[i] = weights[i] != 0 ? weights[i] * (value - delta[m]) : 0.0f;
      ++i;
    });
    i = 0;
    d_weights.each([&](int m, int n, float&) { d_logits[m * C::kLogitsLd + n] = Kind::element(weights[i++]); });
    __syncthreads();  // the logits' gradients are there, the tiles of channels are done with
    copy_other_channels(at + C::kOther);

    const Shared<Element> tile = QUERIES ? k_tile : q_tile;
    const Rows<Element>& other = QUERIES ? k : q;
    const int depth = depth_of(C::kOther, other.left);
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
      const int column = first_column + panel * kColumns;
      if (column >= shape.key_width) break;
      if (!whole_keys) {
        __syncthreads();
        other.copy(tile, ld, C::kOther, column, min(kColumns, shape.key_width - column));
        wait_for_copies();
        __syncthreads();
      }
      (panel == 0 ? first_sums : second_sums)
          .template add<QUERIES, true>(d_logits, C::kLogitsLd, tile + (whole_keys ? column : 0), ld, depth);
    }
    __syncthreads();  // and so are the tiles of queries and keys
    copy_other_keys(at + C::kOther);
  }

  SharedMemory again;
  const Shared<float> out = again.array<float>(kOwned * kOutLd);
  const float factor = scale * rows.span[image];
#pragma unroll
  for (int panel = 0; panel < PANELS; ++panel) {
    const int column = first_column + panel * kColumns;
    if (column >= shape.keys) break;
    __syncthreads();
    (panel == 0 ? first_sums : second_sums).store(out, kOutLd);
    __syncthreads();
    write_map<QUERIES>(out, kOutLd, image, start, own_left, column, shape.keys, regions, shape.pixels, to,
                       [&](int) { return factor; });
  }
}

template <class Kind, int PANELS>
__global__ void __launch_bounds__(kThreads, PANELS == 1 ? 3 : 2)
    bain_attention_bwd_dq_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_query,
                                 Shape shape, Chunks chunks, float scale) {
  sum_logit_gradients<Kind, true, PANELS>(rows, regions, d_query, shape, chunks, scale);
}

template <class Kind, int PANELS>
__global__ void __launch_bounds__(kThreads, PANELS == 1 ? 3 : 2)
    bain_attention_bwd_dk_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_key,
                                 Shape shape, Chunks chunks, float scale) {
  sum_logit_gradients<Kind, false, PANELS>(rows, regions, d_key, shape, chunks, scale);
}

// Grid: blocks of kOwned keys, blocks of kColumns channels, images.
template <class Kind>
__global__ void __launch_bounds__(kThreads, 3)
    bain_attention_bwd_dv_kernel(BackwardRows<typename Kind::Element> rows, Regions regions, OutputMap d_value,
                                 Shape shape, int chunk, float scale) {
  if constexpr (!available<Kind>()) return;
  using Element = typename Kind::Element;
  using C = Cut<Kind, false>;
  constexpr int kQueries = C::kQueries, kOutLd = leading<float>(kColumns), kChannelLd = leading<Element>(kColumns);
  const int ld = leading<Element>(chunk);
  SharedMemory memory;
  const Shared<Element> q_tile = memory.array<Element>(kQueries * ld), k_tile = memory.array<Element>(kOwned * ld);
  const Shared<Element> da_tile = memory.array<Element>(kQueries * kChannelLd);
  const Shared<Element> db_tile = memory.array<Element>(kQueries * kChannelLd);
  const Shared<Element> weights = memory.array<Element>(kQueries * C::kLogitsLd);
  const Shared<float> lse = memory.array<float>(kQueries);

  const int64_t image = blockIdx.z, base = image * shape.pixels;
  const int start = blockIdx.x * kOwned;
  const int column = blockIdx.y * kColumns, columns = min(kColumns, shape.width - column);
  const int n_query = regions.queries(image), n_bg = regions.background(image), n_other = start < n_bg ? n_query : 0;
  const Rows<Element> all_q{rows.query + base * shape.key_width, n_query, shape.key_width};
  const Rows<Element> k{rows.key + (base + start) * shape.key_width, n_bg - start, shape.key_width};
  const Rows<Element> da{rows.da + base * shape.width, n_query, shape.width};
  const Rows<Element> db{rows.db + base * shape.width, n_query, shape.width};
  const bool whole = chunk == shape.key_width;

  SharedMemory before;
  const Shared<float> scratch = before.array<float>(kProductScratch<Kind>);
  Logits<Kind, false> logits(scratch);
  Sums<Kind> first(scratch), second = first;
  if (n_other > 0 && whole) {
    k.copy(k_tile, ld, kOwned, 0, chunk);
    all_q.copy(q_tile, ld, kQueries, 0, chunk);
  }
  for (int at = 0; at < n_other; at += kQueries) {
    const Rows<Element> q = all_q.from(at);
    copy_numbers<kQueries>(lse, rows.lse + (base + at), q.left);
    wait_for_copies();
    __syncthreads();  // queries are there, the last weights and gradients are done with
    da.from(at).copy(da_tile, kChannelLd, kQueries, column, columns);
    db.from(at).copy(db_tile, kChannelLd, kQueries, column, columns);
    logits.zero();
    add_logits<Kind, false>(logits, q_tile, k_tile, ld, q, k, whole, chunk);
    logits.each([&](int m, int n, float& value) {
      value = m < q.left && n < k.left ? exp2_of(value * (scale * kLog2E) - lse[m]) : 0.0f;
    });
    logits.each([&](int m, int n, float& value) { weights[m * C::kLogitsLd + n] = Kind::element(value); });
    wait_for_copies();
    __syncthreads();  // weights and gradients are there, the queries are done with
    if (whole && at + kQueries < n_other) all_q.from(at + kQueries).copy(q_tile, ld, kQueries, 0, chunk);
    const int depth = depth_of(kQueries, q.left);
    first.add_pair(second, weights, C::kLogitsLd, da_tile, db_tile, kChannelLd, depth);
  }

  SharedMemory again;
  const Shared<float> out = again.array<float>(kOwned * kOutLd);
  const Shared<Element> v_tile = again.array<Element>(kOwned * kChannelLd);
  const Rows<Element> v{rows.value + (base + start) * shape.width, n_bg - start, shape.width};
  __syncthreads();
  v.copy(v_tile, kChannelLd, kOwned, column, columns);
  wait_for_copies();
  __syncthreads();
  float seconds[kOwned * kColumns / kThreads];
  int i = 0;
  second.each([&](int, int, float& value) { seconds[i++] = value; });
  i = 0;
  first.each([&](int m, int n, float& value) { value += 2.0f * to_float(v_tile[m * kChannelLd + n]) * seconds[i++]; });
  first.store(out, kOutLd);
  __syncthreads();
  const float span = rows.span[image];
  write_map<false>(out, kOutLd, image, start, k.left, column, shape.channels, regions, shape.pixels, d_value,
                   [&](int c) { return span / rows.unit[image * shape.width + column + c]; });
}

constexpr size_t kOutBytes = shared_bytes<float>(kOwned * leading<float>(kColumns));

template <class Kind, bool QUERIES>
size_t logit_gradients_bytes(const Chunks& chunks) {
  using Element = typename Kind::Element;
  using C = Cut<Kind, QUERIES>;
  const int ld = leading<Element>(round_up(chunks.keys, kColumns)), channel_ld = leading<Element>(chunks.channels);
  const size_t used = shared_bytes<Element>(C::kQueries * ld) + shared_bytes<Element>(C::kKeys * ld) +
                      2 * shared_bytes<Element>(C::kQueries * channel_ld) +
                      shared_bytes<Element>(C::kKeys * channel_ld) + shared_bytes<Element>(C::kQueries * C::kLogitsLd) +
                      shared_bytes<float>(2 * C::kQueries);
  return std::max(used, kOutBytes);
}

// Channels first: their tiles are three, and are read once per tile of keys.
template <class Kind, bool QUERIES>
Chunks fit_chunks(const Shape& shape, int64_t shared) {
  constexpr int kStep = 128 / sizeof(typename Kind::Element);
  Chunks chunks{shape.key_width, shape.width};
  chunks.channels = fit(shape.width, kStep, shared, [&](int channels) {
    return logit_gradients_bytes<Kind, QUERIES>({shape.key_width, channels});
  });
  chunks.keys = fit(shape.key_width, kColumns, shared,
                    [&](int keys) { return logit_gradients_bytes<Kind, QUERIES>({keys, chunks.channels}); });
  return chunks;
}

// Blocks sum PANELS * kColumns columns of dq and dk.
template <class Kind, int PANELS>
void launch_logit_gradients(const BackwardRows<typename Kind::Element>& rows, const Regions& regions,
                            const Tensor& d_query, const Tensor& d_key, const Shape& shape, float scale,
                            int64_t shared) {
  const dim3 grid(ceil_div(shape.pixels, kOwned), ceil_div(shape.key_width, PANELS * kColumns), d_query.size(0));
  const Chunks dq = fit_chunks<Kind, true>(shape, shared), dk = fit_chunks<Kind, false>(shape, shared);
  LAUNCH((bain_attention_bwd_dq_kernel<Kind, PANELS>), grid, kThreads, (logit_gradients_bytes<Kind, true>(dq)), d_query,
         rows, regions, output_map(d_query), shape, dq, scale);
  LAUNCH((bain_attention_bwd_dk_kernel<Kind, PANELS>), grid, kThreads, (logit_gradients_bytes<Kind, false>(dk)), d_key,
         rows, regions, output_map(d_key), shape, dk, scale);
}

template <class Kind>
size_t values_bytes(int chunk) {
  using Element = typename Kind::Element;
  using C = Cut<Kind, false>;
  const int ld = leading<Element>(chunk);
  const size_t used = shared_bytes<Element>(C::kQueries * ld) + shared_bytes<Element>(kOwned * ld) +
                      2 * shared_bytes<Element>(C::kQueries * leading<Element>(kColumns)) +
                      shared_bytes<Element>(C::kQueries * C::kLogitsLd) + shared_bytes<float>(C::kQueries);
  return std::max(used, kOutBytes + shared_bytes<Element>(kOwned * leading<Element>(kColumns)));
}

// Gradients of the forward's results (B, C, N) of any layout, its inputs and what it saved -> contiguous gradients of
// query, key and value in their dtypes. Blocks take at most `shared` bytes of shared memory.
std::tuple<Tensor, Tensor, Tensor> bain_attention_backward(const Tensor& grad_mean, const Tensor& grad_std,
                                                           const Tensor& query, const Tensor& key, const Tensor& value,
                                                           const Tensor& order, const Tensor& counts,
                                                           const Tensor& first, const Tensor& variance,
                                                           const Tensor& lse, double scale, double eps, bool tf32,
                                                           int64_t shared) {
  const Shape shape = shape_of(query, key, value, order, counts);
  const int64_t batch = value.size(0), pixels = shape.pixels, channels = shape.channels;
  for (const Tensor& grad : {grad_mean, grad_std}) check_shape("a gradient", grad, {batch, channels, pixels});
  for (const Tensor& saved : {first, variance}) check_shape("first and variance", saved, {batch, pixels, channels});
  check_shape("lse", lse, {batch, pixels});
  for (const Tensor& tensor : {grad_mean, grad_std, first, variance, lse}) {
    check_device("gradients, first, variance and lse", tensor, value);
  }
  for (const Tensor& saved : {first, variance, lse}) {
    check(saved.is_contiguous(), "first, variance and lse must be contiguous");
  }
  const Tensor d_query = allocate_like(query), d_key = allocate_like(key), d_value = allocate_like(value);
  if (first.numel() == 0) return {d_query, d_key, d_value};
  const Regions regions{global<const int64_t>(order), global<const int64_t>(counts)};
  dispatch_product(query.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    using Element = typename Kind::Element;
    const Packed packed = pack<Kind>(query, key, value, regions, shape);
    const PackedGradients grads =
        pack_gradients<Kind>(grad_mean, grad_std, first, variance, lse, packed, regions, shape, eps);
    const BackwardRows<Element> rows{
        global<const Element>(packed.query), global<const Element>(packed.key), global<const Element>(packed.value),
        global<const Element>(grads.da),     global<const Element>(grads.db),   global<const float>(grads.delta),
        global<const float>(grads.lse),      global<const float>(grads.span),   global<const float>(packed.unit)};
    const float factor = static_cast<float>(scale);
    const int64_t blocks = ceil_div(pixels, kOwned);
    if (shape.key_width <= kColumns) {
      launch_logit_gradients<Kind, 1>(rows, regions, d_query, d_key, shape, factor, shared);
    } else {
      launch_logit_gradients<Kind, 2>(rows, regions, d_query, d_key, shape, factor, shared);
    }
    const int chunk = fit(shape.key_width, kColumns, shared, values_bytes<Kind>);
    const dim3 values_grid(blocks, ceil_div(shape.width, kColumns), batch);
    LAUNCH((bain_attention_bwd_dv_kernel<Kind>), values_grid, kThreads, values_bytes<Kind>(chunk), value, rows, regions,
           output_map(d_value), shape, chunk, factor);
  });
  return {d_query, d_key, d_value};
}

}  // namespace

SCSCO_OPERATIONS(m) { m.impl("bain_attention_backward", TORCH_BOX(&bain_attention_backward)); }

}  // namespace scsco
