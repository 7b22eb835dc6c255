// The Gram matrix of two feature maps, split over pixels.
#include "grams.cuh"

namespace scsco {
namespace {

template <class Kind, bool CHANNELS_LAST, int TILE>
__global__ void __launch_bounds__(kGramThreads<TILE>, (kGramBlocks<Kind, TILE>))
    cross_gram_fwd_kernel(StridedMatrix<typename Kind::Element> lefts, StridedMatrix<typename Kind::Element> rights,
                          Global<float> parts,  // (splits, B, Ca, Cb)
                          int64_t height, int64_t width, int64_t pixels, int columns,
                          int each) {  // blocks of pixels in a split
  if constexpr (!available<Kind>()) return;
  constexpr int D = kStepDepth<Kind>;
  using Element = typename Kind::Element;
  using Tile = MapTile<Element, TILE, D, CHANNELS_LAST, kGramThreads<TILE>>;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(kStages * Tile::kElements);
  const Shared<Element> right = memory.array<Element>(kStages * Tile::kElements);
  GramProduct<Kind, TILE> sums;

  const int part = blockIdx.y, row = blockIdx.x / columns * TILE, column = blockIdx.x % columns * TILE;
  const int64_t image = blockIdx.z;
  const auto a = lefts.of(image), b = rights.of(image);
  pipeline(
      part * each, min((part + 1) * each, static_cast<int>(ceil_div(pixels, int64_t(D)))),
      [&](int index, int stage) {
        Tile::copy(left + stage * Tile::kElements, a, row, index * D);
        Tile::copy(right + stage * Tile::kElements, b, column, index * D);
      },
      [&](int stage) {
        round_tile<Kind, Tile>(left + stage * Tile::kElements);
        round_tile<Kind, Tile>(right + stage * Tile::kElements);
      },
      [&](int stage) {
        sums.template add<!CHANNELS_LAST, !CHANNELS_LAST, Tile::kRows, Tile::kRows, kUnrolled<Kind, TILE>>(
            left + stage * Tile::kElements, right + stage * Tile::kElements, D);
      });

  const float scale = 1 / static_cast<float>(pixels);
  sums.each([&](int, int, float& value) { value *= scale; });
  store_product(sums, parts + (int64_t(part) * gridDim.z + image) * height * width, height, width, row, column);
}

// a (B, Ca, N), b (B, Cb, N) of one dtype -> parts (splits, B, Ca, Cb), float32, that add up to a b^T / N.
Tensor cross_gram_forward(const Tensor& a, const Tensor& b, bool tf32) {
  check(a.dim() == 3 && b.dim() == 3, "a and b must have shape (B, C, N), got ", shape_text(a), " and ",
        shape_text(b));
  const int64_t batch = a.size(0), height = a.size(1), width = b.size(1), pixels = a.size(2);
  check_shape("b", b, {batch, width, pixels});
  check_pixels(pixels);
  check_device("b", b, a);
  if (batch == 0) return allocate({1, batch, height, width}, a);
  const bool last = holds_vectors(a, true) && holds_vectors(b, true);
  const Tensor lefts = last ? a : in_vectors(a), rights = last ? b : in_vectors(b);
  std::optional<Tensor> parts;
  dispatch_gram(a.scalar_type(), tf32, last, is_wide(height, width), [&](auto kind, auto layout, auto tile) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    constexpr int TILE = decltype(tile)::value;
    using Element = typename Kind::Element;
    const int64_t blocks = ceil_div(pixels, int64_t(kStepDepth<Kind>)), columns = ceil_div(width, int64_t(TILE));
    const int64_t tiles = ceil_div(height, int64_t(TILE)) * columns;
    const int64_t each = ceil_div(blocks, split(tiles * batch, blocks / 4, wanted_blocks(TILE), kMostSplits));
    const int64_t splits = ceil_div(blocks, each);
    parts = allocate({splits, batch, height, width}, a);
    LAUNCH((cross_gram_fwd_kernel<Kind, kLast, TILE>), dim3(tiles, splits, batch), kGramThreads<TILE>,
           operand_bytes(TILE, 2 * kStages), a, matrix_of<Element>(lefts, last), matrix_of<Element>(rights, last),
           global<float>(parts), height, width, pixels, static_cast<int>(columns), static_cast<int>(each));
  });
  return *parts;
}

// grad (B, C, D) float32 of any strides, other (B, D, N) -> grad other / N: (B, C, N) in the dtype of other.
Tensor cross_gram_backward(const Tensor& grad, const Tensor& other, bool tf32) {
  return times_features(grad, other, {}, false, tf32);
}

}  // namespace

SCSCO_SCHEMAS(m) {
  m.def("cross_gram_forward(Tensor a, Tensor b, bool tf32) -> Tensor");
  m.def("cross_gram_backward(Tensor grad, Tensor other, bool tf32) -> Tensor");
}

SCSCO_OPERATIONS(m) {
  m.impl("cross_gram_forward", TORCH_BOX(&cross_gram_forward));
  m.impl("cross_gram_backward", TORCH_BOX(&cross_gram_backward));
}

}  // namespace scsco
