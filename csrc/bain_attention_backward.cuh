// What the kernels of dq, dk and dv share: the gradients that belong to 64 rows, summed by the block that owns them.
#pragma once

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
// one of them out. Grid: blocks of rows, blocks of those columns, images. WHOLE: rows stand in shared memory whole.
template <class Kind, bool OWNS_QUERIES, int KEY_COLUMNS, int VALUE_COLUMNS, bool WHOLE>
class GradientBlock {
 public:
  __device__ __forceinline__ GradientBlock(const BackwardRows<typename Kind::Element>& rows, const Regions& regions,
                                           const AttentionShape& shape, const Staging& staging)
      : rows_(rows),
        regions_(regions),
        shape_(shape),
        staging_(staging),
        image_(blockIdx.z),
        start_(blockIdx.x * kOwned),
        key_column_(kKeys ? blockIdx.y * KEY_COLUMNS : 0),
        value_column_(kValues && !kKeys ? blockIdx.y * VALUE_COLUMNS : 0),
        n_query_(regions.queries(image_)),
        n_bg_(regions.background(image_)) {
    const int n_own = OWNS_QUERIES ? n_query_ : n_bg_;
    n_other_ = OWNS_QUERIES ? n_bg_ : n_query_;
    // Without others there are no gradients: products with NaN would make some of 0.
    results_ = n_other_ > 0 ? n_own - start_ : 0;
  }

  // `scale`, not negative, is to base 2, `factor` what dq or dk is multiplied by.
  __device__ __forceinline__ void run(const OutputMap& d_keys, const OutputMap& d_values, float scale, float factor) {
    if (results_ <= 0) {
      const auto zero = [](int, float value) { return value; };
      if constexpr (kKeys) write_keys(d_keys, {}, zero);
      if constexpr (kValues) write_values(d_values, {}, zero);
      return;
    }
    take_memory();
    find_rows();
    const bool ring = WHOLE && staging_.stages == 2;
    if (WHOLE) own_.copy(own_keys_, 0, shape_.key_width);
    if (kKeys && WHOLE) copy_channels(OWNS_QUERIES, own_channels_, start_, 0);
    if (ring) copy_others(0, 0);
    for (int at = 0, stage = 0; at < n_other_; at += kOthers) {
      if (!ring) {
        if (at > 0) __syncthreads();  // everybody is done with the last others
        copy_others(at, 0);
      }
      wait_for_copies();
      __syncthreads();  // this stage is there, the other one done with
      if (ring && at + kOthers < n_other_) copy_others(at + kOthers, stage ^ 1);
      add(at, stage, scale);
      if (ring) stage ^= 1;
    }
    write(d_keys, d_values, factor);
  }

 private:
  using Element = typename Kind::Element;
  using Tiles = ChannelTiles<Kind, OWNS_QUERIES>;
  static constexpr bool kKeys = KEY_COLUMNS > 0, kValues = VALUE_COLUMNS > 0;
  static constexpr bool kWholeChannels = WHOLE || !kKeys;
  static constexpr int kKeySums = kKeys ? KEY_COLUMNS : 16, kValueSums = kValues ? VALUE_COLUMNS : 16;

  __device__ __forceinline__ void take_memory() {
    key_size_ = key_tile_size<Element, KEY_COLUMNS>(staging_.keys);
    channel_size_ = tile_size<Element>(kOwned, staging_.channels);
    SharedMemory memory;
    own_keys_ = memory.array<Element>(tile_size<Element>(kOwned, staging_.keys));
    other_keys_ = memory.array<Element>(staging_.stages * key_size_);
    own_channels_ = memory.array<Element>(kKeys ? Tiles::kOwn * channel_size_ : 0);
    other_channels_ = memory.array<Element>(staging_.stages * Tiles::kOther * channel_size_);
    statistics_ = memory.array<float>(staging_.stages * 2 * kOthers);
    if constexpr (kIsIEEE<Kind>) operands_ = memory.array<float>(kOperandsSize);
  }

  __device__ __forceinline__ void find_rows() {
    const int64_t base = image_ * shape_.pixels;
    const Rows<Element> queries{rows_.query + base * shape_.key_width, n_query_, shape_.key_width};
    const Rows<Element> keys{rows_.key + base * shape_.key_width, n_bg_, shape_.key_width};
    values_ = {rows_.value + base * shape_.width, n_bg_, shape_.width};
    da_ = {rows_.da + base * shape_.width, n_query_, shape_.width};
    db_ = {rows_.db + base * shape_.width, n_query_, shape_.width};
    others_ = OWNS_QUERIES ? keys : queries;
    own_ = (OWNS_QUERIES ? queries : keys).from(start_);
    const int64_t statistics_size = statistics_width(shape_.pixels);
    lse_ = rows_.statistics + image_ * 2 * statistics_size;
    delta_ = lse_ + statistics_size;
    if constexpr (OWNS_QUERIES) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = Logits<Kind>::warp_row() + Logits<Kind>::lane_row() + 8 * r;
        if (row >= results_) continue;
        own_lse_[r] = lse_[start_ + row];
        own_delta_[r] = delta_[start_ + row];
      }
    }
  }

  __device__ __forceinline__ void copy_channels(bool of_queries, Shared<Element> to, int row, int column) const {
    if (of_queries) {
      da_.from(row).copy(to, column, staging_.channels);
      db_.from(row).copy(to + channel_size_, column, staging_.channels);
    } else {
      values_.from(row).copy(to, column, staging_.channels);
    }
  }

  __device__ __forceinline__ void copy_others(int at, int stage) const {
    if (WHOLE) others_.from(at).copy(other_keys_ + stage * key_size_, 0, shape_.key_width);
    if (kWholeChannels) {
      copy_channels(!OWNS_QUERIES, other_channels_ + stage * Tiles::kOther * channel_size_, at, value_column_);
    }
    if constexpr (!OWNS_QUERIES) {  // lse, then delta
      const int which = threadIdx.x / (kOthers / 4), i = threadIdx.x % (kOthers / 4) * 4;
      if (which < (kKeys ? 2 : 1)) {
        copy_16_bytes<float>(statistics_ + ((2 * stage + which) * kOthers + i), (which ? delta_ : lse_) + (at + i),
                             at + i < n_other_);
      }
    }
  }

  // Adds what the others from `at` on, which stand in `stage`, contribute to the sums.
  __device__ __forceinline__ void add(int at, int stage, float scale) {
    const Shared<Element> keys_here = other_keys_ + stage * key_size_;
    const Tiles tiles{own_channels_, other_channels_ + stage * Tiles::kOther * channel_size_, channel_size_};
    const Shared<const float> others_lse = statistics_ + stage * 2 * kOthers;
    Logits<Kind> weights;
    add_logits<Kind, WHOLE>(weights, own_keys_, keys_here, own_, others_.from(at), staging_.keys);
    weigh<Kind>(weights, scale, n_other_ - at,
                [&](int r, int n) -> float { return OWNS_QUERIES ? own_lse_[r] : float(others_lse[n]); });
    if constexpr (kValues) {
      Operands<Kind>(weights, operands_).each([&](int row, const Left<Kind>& left_rows) {
        add_columns(first_, left_rows, Columns<Kind>(tiles.others), row);
        add_columns(second_, left_rows, Columns<Kind>(tiles.others + channel_size_), row);
      });
    }
    if constexpr (kKeys) add_keys(weights, tiles, keys_here, others_lse + kOthers, at);
  }

  // Adds to dq or dk: what reaches the logits, times the others' keys or queries.
  __device__ __forceinline__ void add_keys(const Logits<Kind>& weights, const Tiles& tiles, Shared<Element> keys_here,
                                           Shared<const float> others_delta, int at) {
    Logits<Kind> gradients;
    // Subtracted first of all: then it costs nothing.
    each_logit(gradients,
               [&](int r, int n, float& value) { value = -(OWNS_QUERIES ? own_delta_[r] : float(others_delta[n])); });
    if constexpr (WHOLE) {
      tiles.add_gradients(gradients, shape_.width);
    } else {
      for (int column = 0; column < shape_.width; column += staging_.channels) {
        __syncthreads();
        copy_channels(OWNS_QUERIES, own_channels_, start_, column);
        copy_channels(!OWNS_QUERIES, other_channels_, at, column);
        wait_for_copies();
        __syncthreads();
        tiles.add_gradients(gradients, min(staging_.channels, shape_.width - column));
      }
    }
#pragma unroll
    for (int j = 0; j < Logits<Kind>::kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients.sums[0][j][e] *= weights.sums[0][j][e];
    }
    Shared<const Element> columns_here = panel_of<kOthers, Element>(keys_here, key_column_);
    if constexpr (!WHOLE) {  // nobody reads keys any more: the loop over channels had barriers
      others_.from(at).copy(other_keys_, key_column_, KEY_COLUMNS);
      wait_for_copies();
      __syncthreads();
      columns_here = other_keys_;
    }
    Operands<Kind>(gradients, operands_).each([&](int row, const Left<Kind>& left_rows) {
      add_columns(key_sums_, left_rows, Columns<Kind>(columns_here), row);
    });
  }

  __device__ __forceinline__ void write(const OutputMap& d_keys, const OutputMap& d_values, float factor) {
    SharedMemory again;
    const Shared<float> out = again.array<float>((kKeySums > kValueSums ? kKeySums : kValueSums) * kResultLd);
    const float span = rows_.span[image_];
    if constexpr (kKeys) {
      __syncthreads();
      store_columns<Kind, kKeySums>(key_sums_, out);
      __syncthreads();
      write_keys(d_keys, out, [&](int, float sum) { return sum * (factor * span); });
    }
    if constexpr (kValues) {
      add_through_squares(first_, second_, values_.from(start_), value_column_);
      __syncthreads();
      store_columns<Kind, kValueSums>(first_, out);
      __syncthreads();
      const Global<const float> unit = rows_.unit + (image_ * shape_.width + value_column_);
      write_values(d_values, out, [&](int c, float sum) { return sum * (span / unit[c]); });
    }
  }

  template <class Value>
  __device__ __forceinline__ void write_keys(const OutputMap& map, Shared<const float> tile, const Value& value) const {
    write_map<kKeySums>(map, image_, shape_.keys, shape_.pixels, key_column_, pixels(), tile, results_, 0.0f, value);
  }
  template <class Value>
  __device__ __forceinline__ void write_values(const OutputMap& map, Shared<const float> tile,
                                               const Value& value) const {
    write_map<kValueSums>(map, image_, shape_.channels, shape_.pixels, value_column_, pixels(), tile, results_, 0.0f,
                          value);
  }
  __device__ __forceinline__ auto pixels() const {
    return [this](int row) {
      return gradient_pixel<OWNS_QUERIES>(regions_, image_, start_ + row, n_bg_, shape_.pixels);
    };
  }

  const BackwardRows<Element>& rows_;
  const Regions& regions_;
  const AttentionShape& shape_;
  const Staging& staging_;
  const int64_t image_;
  const int start_, key_column_, value_column_, n_query_, n_bg_;
  int n_other_, results_;
  int64_t key_size_, channel_size_;
  Shared<Element> own_keys_, other_keys_, own_channels_, other_channels_;
  Shared<float> statistics_;  // of the others, if queries
  Shared<float> operands_{};
  Rows<Element> values_, da_, db_, others_, own_;
  Global<const float> lse_, delta_;
  float own_lse_[2] = {}, own_delta_[2] = {};
  Sums<Kind, kKeySums> key_sums_;
  Sums<Kind, kValueSums> first_, second_;
};

template <class Kind, bool OWNS_QUERIES, int KEY_COLUMNS, int VALUE_COLUMNS, bool WHOLE>
__device__ __forceinline__ void sum_gradients(const BackwardRows<typename Kind::Element>& rows, const Regions& regions,
                                              const OutputMap& d_keys, const OutputMap& d_values,
                                              const AttentionShape& shape, const Staging& staging, float scale,
                                              float factor) {
  if constexpr (!available<Kind>()) return;
  GradientBlock<Kind, OWNS_QUERIES, KEY_COLUMNS, VALUE_COLUMNS, WHOLE>(rows, regions, shape, staging)
      .run(d_keys, d_values, scale, factor);
}

}  // namespace
}  // namespace scsco
