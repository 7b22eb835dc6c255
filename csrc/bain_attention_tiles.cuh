// What the attention kernels share: rows on their way to shared memory, products of 64 rows with 64 others, weights as
// operands, and results on their way to maps.
//
// A block owns 64 queries, or 64 keys, and walks the others, 64 at a time. A warp owns 16 of its rows whole, so that
// sums over a row stay within four lanes and what is computed from the logits stays in registers.
#pragma once

#include "bain_attention_packing.cuh"

namespace scsco {
namespace {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kOwned = 64;
constexpr int kOthers = 64;
constexpr int kNarrow = 64, kWide = 128;  // columns of results that a block sums
constexpr int kResultLd = kOwned + 4;     // of a column of results: the 8 rows by 4 columns of a warp lie in 32 banks

// Steps of a panel that are unrolled. One of an IEEE product has 256 multiply-adds for a thread.
template <class Kind>
constexpr int kUnrolledSteps = kIsIEEE<Kind> ? 1 : kPanel<typename Kind::Element> / Kind::kDepth;

template <class Kind, int COLUMNS>
using Sums = TileProduct<Kind, kOwned, COLUMNS, kAttentionWarps, 1>;
template <class Kind>
using Logits = Sums<Kind, kOthers>;

// Blocks of a multiprocessor, at least: two leave a thread 255 registers, three 168, which float32 products pass. An
// sm_75 has shared memory for one or two.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kMostBlocks = 2;
#else
constexpr int kMostBlocks = 3;
#endif
template <class Kind, int COLUMNS>
constexpr int kAttentionBlocks = COLUMNS == kNarrow && !kIsIEEE<Kind> ? kMostBlocks : 2;

// 2^x as the hardware computes it, to 2 roundings; below 2^-126 it is 0, which in no dtype is a weight.
__device__ __forceinline__ float exp2_of(float x) {
#ifdef SCSCO_EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows on their way to shared memory.

// Packed rows from some row on, of which `remaining` may be read.
template <class Element>
struct Rows {
  Global<const Element> data;
  int remaining, width;

  __device__ __forceinline__ Rows from(int row) const { return {data + int64_t(row) * width, remaining - row, width}; }

  // Copies 64 rows and the panels of `columns` columns from `column` on to a tile; 0 outside.
  __device__ __forceinline__ void copy(Shared<Element> tile, int column, int columns) const {
    constexpr int kInRow = kRowBytes / 16, kStep = kAttentionThreads / kInRow;
    const int row = static_cast<int>(threadIdx.x) / kInRow, own = static_cast<int>(threadIdx.x) % kInRow;
    const Shared<Element> to = tile + place_in_panel<Element>(row, own * kGroup<Element>);
    Global<const Element> from = data + (int64_t(row) * width + column + own * kGroup<Element>);
    for (int panel = 0; panel * kPanel<Element> < columns; ++panel, from += kPanel<Element>) {
      // Rows that exist, if the columns do; of what does not exist nothing but the address is computed.
      const int rows = column + panel * kPanel<Element> + own * kGroup<Element> < width ? remaining - row : 0;
      Global<const Element> at = from;
#pragma unroll
      for (int i = 0; i < kOwned; i += kStep) {  // steps of 8 rows or more: the exchange of groups stays the same
        copy_16_bytes<Element>(to + (panel * kOwned + i) * kPanel<Element>, at, i < rows);
        at += int64_t(kStep) * width;
      }
    }
  }
};

// How much stands in shared memory at once.
struct Staging {
  int stages;    // of what the block walks: with two, copies travel while the block computes
  int keys;      // columns of queries and keys
  int channels;  // of values and of their gradients
};

// Whole rows, where they fit; bytes(staging) tells what a block takes. Two blocks of a multiprocessor hide each other's
// waits, so two with one stage each come before one with two.
template <class Bytes>
std::optional<Staging> fit_whole(int keys, int channels, size_t limit, const Bytes& bytes) {
  const size_t half_of = (limit + 1024) / 2 - 1024;  // a block takes 1 KiB more than it asks for
  for (const size_t most : {half_of, limit}) {
    for (const int stages : {2, 1}) {
      const Staging staging{stages, keys, channels};
      if (bytes(staging) <= most) return staging;
    }
  }
  return {};
}

// Some panels of a row at a time, with at least `fewest` channels.
template <class Element, class Bytes>
Staging fit_parts(int keys, int channels, int fewest, size_t limit, const Bytes& bytes) {
  constexpr int kPart = kPanel<Element>;
  const auto whole_panels = [](int width) { return ceil_div(width, kPart) * kPart; };
  Staging staging{1, whole_panels(keys), whole_panels(channels)};
  // Channels first: their tiles are three.
  while (staging.channels > std::max(kPart, fewest) && bytes(staging) > limit) staging.channels -= kPart;
  while (staging.keys > kPart && bytes(staging) > limit) staging.keys -= kPart;
  return staging;
}

// Launches a kernel with blocks of 64 or 128 of `width` columns of results: launch(columns, whole, staging), of which
// the first two are types with a value. `channels` stand in shared memory, or, if 0, those of the block's columns.
template <class Kind, class Bytes, class Launch>
void launch_fitting(const AttentionShape& shape, int width, int channels, size_t limit, const Bytes& bytes,
                    const Launch& launch) {
  using Narrow = std::integral_constant<int, kNarrow>;
  using Wide = std::integral_constant<int, kWide>;
  const auto channels_of = [&](int columns) { return channels > 0 ? channels : columns; };
  const auto whole = [&](auto columns) {
    const auto staging = fit_whole(shape.key_width, channels_of(columns), limit,
                                   [&](const Staging& tried) { return bytes(columns, tried); });
    if (staging) launch(columns, std::true_type(), *staging);
    return staging.has_value();
  };
  if constexpr (kIsHalf<Kind>) {  // wide tiles of float32 numbers would take twice the shared memory
    if (width > kNarrow && whole(Wide())) return;
  }
  if (whole(Narrow())) return;
  launch(Narrow(), std::false_type(),
         fit_parts<typename Kind::Element>(shape.key_width, channels_of(kNarrow), channels > 0 ? 0 : kNarrow, limit,
                                           [&](const Staging& tried) { return bytes(Narrow(), tried); }));
}

// ---------------------------------------------------------------------------------------------------------------------
// Products.

// logits += own others^T. WHOLE: the tiles hold all columns and have arrived. Else they are filled here, part by part,
// and nobody may still read them.
template <class Kind, bool WHOLE>
__device__ __forceinline__ void add_logits(Logits<Kind>& logits, Shared<typename Kind::Element> own_tile,
                                           Shared<typename Kind::Element> other_tile,
                                           const Rows<typename Kind::Element>& own,
                                           const Rows<typename Kind::Element>& others, int part) {
  if constexpr (WHOLE) {
    logits.template add<true, true, kOwned, kOthers, kUnrolledSteps<Kind>>(own_tile, other_tile, own.width);
  } else {
    for (int column = 0; column < own.width; column += part) {
      if (column > 0) __syncthreads();
      own.copy(own_tile, column, part);
      others.copy(other_tile, column, part);
      wait_for_copies();
      __syncthreads();
      logits.template add<true, true, kOwned, kOthers, kUnrolledSteps<Kind>>(own_tile, other_tile,
                                                                             min(part, own.width - column));
    }
  }
}

// Numbers that are laid out as logits, as left operands of products with the others. IEEE products have them pass
// through `tile` in shared memory, a panel at a time, where a warp touches its own rows only.
template <class Kind>
class Operands {
 public:
  __device__ __forceinline__ Operands(const Logits<Kind>& numbers, Shared<float> tile)
      : numbers_(numbers), tile_(tile) {}

  // Calls function(row, left) with the others' first row of every step and the operand.
  template <class Function>
  __device__ __forceinline__ void each(const Function& function) const {
    constexpr int kStep = Kind::kDepth;
    if constexpr (kIsIEEE<Kind>) {
      constexpr int kInPanel = kPanel<float>;
      const LeftRows<Kind, kOwned> rows(tile_, Logits<Kind>::warp_row());
#pragma unroll
      for (int first = 0; first < kOthers; first += kInPanel) {
        put_panel(first / kInPanel);
#pragma unroll 1
        for (int row = 0; row < kInPanel; row += kStep) function(first + row, rows.load(0, row / kStep));
      }
    } else {
#pragma unroll
      for (int row = 0; row < kOthers; row += kStep) function(row, left_of<Kind>(numbers_.sums[0], row / kStep));
    }
  }

 private:
  __device__ __forceinline__ void put_panel(int panel) const {
    constexpr int kColumns = kPanel<float> / 8;  // of fragments
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = Logits<Kind>::warp_row() + Logits<Kind>::lane_row() + 8 * r;
        const int place = place_in_panel<float>(row, 8 * j + Logits<Kind>::lane_column());
        const float (&own)[4] = numbers_.sums[0][panel * kColumns + j];
        store(tile_ + place, Vector<float, 2>{{own[2 * r], own[2 * r + 1]}});
      }
    }
    __syncwarp();
  }

  const Logits<Kind>& numbers_;
  Shared<float> tile_;
};

constexpr int kOperandsSize = kOwned * kPanel<float>;
template <class Kind>
constexpr size_t kOperandsBytes = kIsIEEE<Kind> ? shared_bytes<float>(kOperandsSize) : 0;

// A tile of the others [row, column] as right operands.
template <class Kind>
using Columns = RightColumns<Kind, kOthers, true>;

// sums += left others, of the others' rows from `row` on.
template <class Kind, int COLUMNS>
__device__ __forceinline__ void add_columns(Sums<Kind, COLUMNS>& sums, const Left<Kind>& left,
                                            const Columns<Kind>& others, int row) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 16; ++j) {
    Right<Kind> right[2];
    others.load(right, row, j);
#pragma unroll
    for (int n = 0; n < 2; ++n) multiply(sums.sums[0][2 * j + n], left, right[n]);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Results on their way to maps.

// Writes columns [first, first + COLUMNS) of a map (B, channels, N). A thread keeps one row, so one pixel: pixel(row),
// or -1 for none. Neighbouring threads have neighbouring rows, and so mostly neighbouring pixels. Rows from `results`
// become `fill`; the others come from `tile`, column by column, which is not read where there are none.
template <int COLUMNS, class Pixel, class Value>
__device__ __forceinline__ void write_map(const OutputMap& map, int64_t image, int channels, int pixels, int first,
                                          const Pixel& pixel, Shared<const float> tile, int results, float fill,
                                          const Value& value) {
  constexpr int kStep = kAttentionThreads / kOwned;
  const int row = static_cast<int>(threadIdx.x) % kOwned, own = static_cast<int>(threadIdx.x) / kOwned;
  const int64_t at = pixel(row);
  if (at < 0) return;
  const bool filled = row >= results;
  const int columns = min(COLUMNS, channels - first);
  map.visit([&](auto elements) {
    using T = std::remove_cvref_t<decltype(load<1>(elements)[0])>;
    auto to = elements + ((image * channels + first + own) * pixels + at);
#pragma unroll 4
    for (int c = own; c < columns; c += kStep) {
      to[0] = from_float<T>(filled ? fill : value(c, tile[c * kResultLd + row]));
      to += kStep * int64_t(pixels);
    }
  });
}

// A block's sums as a tile [column, row], for write_map.
template <class Kind, int COLUMNS>
__device__ __forceinline__ void store_columns(Sums<Kind, COLUMNS>& sums, Shared<float> tile) {
  sums.each([&](int m, int n, float& value) { tile[n * kResultLd + m] = value; });
}

template <int COLUMNS>
constexpr size_t kResultBytes = shared_bytes<float>(COLUMNS * kResultLd);

}  // namespace
}  // namespace scsco
