// The Gram matrix of two feature maps, split over pixels.
#include "grams.cuh"

namespace scsco {
namespace {

constexpr int kSplits = 32;  // at most

template <class Kind, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    cross_gram_fwd_kernel(Matrix<typename Kind::Element> lefts, Matrix<typename Kind::Element> rights,
                          Global<float> parts,  // (splits, B, Ca, Cb)
                          int64_t height, int64_t width, int64_t pixels, int columns,
                          int64_t each) {  // blocks of pixels in a split
  if constexpr (!available<Kind>()) return;
  constexpr int D = kDepth<Kind>;
  using Tile = MapTile<Kind, kTile, D, CHANNELS_LAST>;
  using Element = typename Kind::Element;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(Tile::kElements), right = memory.array<Element>(Tile::kElements);
  Sums<Kind> sums;

  const int64_t part = blockIdx.y, image = blockIdx.z;
  const int64_t row = int64_t(blockIdx.x / columns) * kTile, column = int64_t(blockIdx.x % columns) * kTile;
  const auto a_map = lefts.of(image), b_map = rights.of(image);
  typename Tile::Share a, b;
  pipeline(
      part * each, min((part + 1) * each, ceil_div(pixels, int64_t(D))),
      [&](int64_t index) {
        a.fetch(a_map, row, index * D);
        b.fetch(b_map, column, index * D);
      },
      [&] {
        Tile::put(left, a);
        Tile::put(right, b);
      },
      [&] { sums.template add<!CHANNELS_LAST, !CHANNELS_LAST, Tile::kRows, Tile::kRows>(left, right, D); });

  const int64_t at = (part * gridDim.z + image) * height * width;
  sums.each([&](int m, int n, float& value) {
    if (row + m < height && column + n < width) {
      parts[at + (row + m) * width + column + n] = value / static_cast<float>(pixels);
    }
  });
}

// a (B, Ca, N), b (B, Cb, N) of one dtype -> parts (splits, B, Ca, Cb), float32, that add up to a b^T / N.
Tensor cross_gram_forward(const Tensor& a, const Tensor& b, bool tf32, int64_t programs) {
  check(a.dim() == 3 && b.dim() == 3, "a and b must have shape (B, C, N), got ", shape_text(a), " and ",
        shape_text(b));
  const int64_t batch = a.size(0), height = a.size(1), width = b.size(1), pixels = a.size(2);
  check_shape("b", b, {batch, width, pixels});
  check_device("b", b, a);
  if (batch == 0) return allocate({1, batch, height, width}, a);
  const bool last = holds_vectors(a, true) && holds_vectors(b, true);
  const Tensor lefts = last ? a : in_vectors(a), rights = last ? b : in_vectors(b);
  std::optional<Tensor> parts;
  dispatch_gram(a.scalar_type(), tf32, last, [&](auto kind, auto layout) {
    using Kind = typename decltype(kind)::type;
    constexpr bool kLast = decltype(layout)::value;
    using Element = typename Kind::Element;
    const int64_t blocks = ceil_div(pixels, int64_t(kDepth<Kind>)), tiles = tiles_of(height) * tiles_of(width);
    const int64_t each = ceil_div(blocks, split(tiles * batch, blocks / 4, programs, kSplits));
    const int64_t splits = ceil_div(blocks, each);
    parts = allocate({splits, batch, height, width}, a);
    LAUNCH((cross_gram_fwd_kernel<Kind, kLast>), dim3(tiles, splits, batch), kProductThreads,
           2 * shared_bytes<Element>(MapTile<Kind, kTile, kDepth<Kind>, kLast>::kElements),
           a, matrix_of<Element>(lefts, last), matrix_of<Element>(rights, last), global<float>(parts), height, width,
           pixels, static_cast<int>(tiles_of(width)), each);
  });
  return *parts;
}

// grad (B, C, D) float32 of any strides, other (B, D, N) -> grad other / N: (B, C, N) in the dtype of other.
Tensor cross_gram_backward(const Tensor& grad, const Tensor& other, bool tf32) {
  return times_features(grad, other, {}, false, tf32);
}

}  // namespace

SCSCO_OPERATIONS(m) {
  m.impl("cross_gram_forward", TORCH_BOX(&cross_gram_forward));
  m.impl("cross_gram_backward", TORCH_BOX(&cross_gram_backward));
}

}  // namespace scsco
