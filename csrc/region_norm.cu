// Region normalisation: one read gives both regions' moments, one read and write apply them; likewise backward.
//
// Images are cut into splits of pixels so that small batches fill the device; each split's partial sums go to a small
// float32 buffer, and whoever needs them merges the splits in the same order.
#include "region_norm_backward.cuh"
#include "region_norm_forward.cuh"

namespace scsco {
namespace {

// The strides of a map (B, C, N) let V elements be read at once.
bool holds_vectors(const Tensor& map, int v, bool channels_last) {
  const int fast = channels_last ? 1 : 2, slow = channels_last ? 2 : 1;
  const auto address = reinterpret_cast<uintptr_t>(map.const_data_ptr());
  const size_t element = map.scalar_type() == ScalarType::Float ? 4 : 2;
  return map.size(fast) % v == 0 && map.stride(fast) == 1 && map.stride(slow) % v == 0 && map.stride(0) % v == 0 &&
         address % (v * element) == 0;
}

bool holds_mask_vectors(const Tensor& mask, int v) {
  return mask.stride(1) == 1 && mask.stride(0) % v == 0 && reinterpret_cast<uintptr_t>(mask.const_data_ptr()) % v == 0;
}

// Calls function(NormItem<V, CHANNELS_LAST>()) with the widest items that the maps and masks allow.
template <class Function>
void dispatch_item(std::initializer_list<Tensor> maps, std::initializer_list<Tensor> masks, const Function& function) {
  constexpr int V = 4;
  bool planes = true, channels_last = true;
  for (const Tensor& map : maps) {
    planes = planes && holds_vectors(map, V, false);
    channels_last = channels_last && holds_vectors(map, V, true);
  }
  for (const Tensor& mask : masks) planes = planes && holds_mask_vectors(mask, V);
  if (planes) return function(NormItem<V, false>());
  if (channels_last) return function(NormItem<V, true>());
  function(NormItem<1, false>());
}

struct NormPlan {
  NormShape shape;
  dim3 grid;
  int channels;  // of a block
};

template <class Item>
NormPlan plan_of(const Tensor& x) {
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2);
  const int64_t channel_items = ceil_div(channels, Item::kChannels);
  int pixel_bits = kThreadBits;
  if (Item::kPixels > 1 || Item::kChannels == 1) {  // a block takes few channels, unless there are few pixels
    while (1 << pixel_bits > kWarp && pixels <= kItems * Item::kPixels << (pixel_bits - 1)) --pixel_bits;
  } else {  // a block takes as many channels as a warp has lanes
    while (1 << pixel_bits > kThreads / kWarp && kThreads >> pixel_bits < channel_items) --pixel_bits;
  }
  const int64_t channel_groups = kThreads >> pixel_bits, tile = int64_t(kItems) * Item::kPixels << pixel_bits;
  const int64_t columns = ceil_div(channel_items, channel_groups), tiles = ceil_div(pixels, tile);
  const int64_t each = ceil_div(tiles, split(batch * columns, tiles, kWantedBlocks, kMaxSplits));
  const int64_t splits = ceil_div(tiles, each);
  const NormShape shape{channels, pixels, static_cast<int>(splits), each * tile, pixel_bits};
  return {shape, dim3(splits, columns, batch), static_cast<int>(channel_groups * Item::kChannels)};
}

template <class T>
NormMap<T> map_of(const Tensor& x) {
  return {global<const T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

NormMasks masks_of(const Tensor& foreground, const std::optional<Tensor>& valid) {
  const Tensor& second = valid ? *valid : foreground;
  return {global<const byte>(foreground), global<const byte>(valid), foreground.stride(0), foreground.stride(1),
          second.stride(0), second.stride(1)};
}

void check_inputs(const Tensor& x, const Tensor& foreground, const std::optional<Tensor>& valid,
                  const Tensor& affine) {
  check(x.dim() == 3, "x must have shape (B, C, N), got ", shape_text(x));
  check_shape("foreground", foreground, {x.size(0), x.size(2)});
  check_device("foreground", foreground, x);
  if (valid) {
    check_shape("valid", *valid, {x.size(0), x.size(2)});
    check_device("valid", *valid, x);
  }
  check_shape("affine", affine, {4, x.size(1)});
  check(affine.is_contiguous(), "affine must be contiguous");
  check_device("affine", affine, x);
}

// x (B, C, N), masks (B, N) bytes, affine (4, C) float32: gain and offset of the foreground, of the background
// -> y (B, C, N), mean and deviation (B, C, 2).
std::tuple<Tensor, Tensor, Tensor> region_norm_forward(const Tensor& x, const Tensor& foreground,
                                                       const std::optional<Tensor>& valid, const Tensor& affine,
                                                       double eps, bool adapt) {
  check_inputs(x, foreground, valid, affine);
  const int64_t batch = x.size(0), channels = x.size(1);
  const Tensor y = allocate_like(x);
  const Tensor mean = allocate({batch, channels, 2}, x), deviations = allocate({batch, channels, 2}, x);
  if (batch == 0) return {y, mean, deviations};
  dispatch_item({x}, {foreground, valid.value_or(foreground)}, [&](auto item) {
    using Item = decltype(item);
    constexpr int V = Item::kChannels * Item::kPixels;
    constexpr bool kLast = Item::kChannels > 1;
    const NormPlan plan = plan_of<Item>(x);
    Workspace space;
    const auto counts = space.add<float>(batch * plan.shape.splits * 2);
    const auto moments = space.add<float>(batch * plan.shape.splits * 4 * channels);
    space.allocate(x);
    dispatch(x.scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      LAUNCH((region_norm_fwd_moments_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>(NormMoments<Item::kChannels>::kFloats * kThreads), x, map_of<T>(x),
             masks_of(foreground, valid), space[counts], space[moments], plan.shape);
      LAUNCH((region_norm_fwd_apply_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>(6 * plan.channels) +
                 shared_bytes<float>(stage_size<V, kLast>(plan.shape.pixel_bits)),
             x, map_of<T>(x), masks_of(foreground, valid), space[counts], space[moments],
             global<const float>(affine), global<T>(y), global<float>(mean), global<float>(deviations), plan.shape,
             static_cast<float>(eps), adapt);
    });
  });
  return {y, mean, deviations};
}

// -> dx (B, C, N), and every image's gradient of affine (B, 4, C), float32.
std::tuple<Tensor, Tensor> region_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& foreground,
                                                const std::optional<Tensor>& valid, const Tensor& affine,
                                                const Tensor& mean, const Tensor& deviations, bool adapt) {
  check_inputs(x, foreground, valid, affine);
  const int64_t batch = x.size(0), channels = x.size(1);
  check_shape("grad", grad, {batch, channels, x.size(2)});
  check_device("grad", grad, x);
  for (const Tensor& statistic : {mean, deviations}) {
    check_shape("mean and std", statistic, {batch, channels, 2});
    check_device("mean and std", statistic, x);
    check(statistic.is_contiguous(), "mean and std must be contiguous");
  }
  const Tensor dx = allocate_like(x), d_affine = allocate({batch, 4, channels}, x);
  if (batch == 0) return {dx, d_affine};
  dispatch_item({grad, x}, {foreground, valid.value_or(foreground)}, [&](auto item) {
    using Item = decltype(item);
    constexpr int V = Item::kChannels * Item::kPixels;
    constexpr bool kLast = Item::kChannels > 1;
    const NormPlan plan = plan_of<Item>(x);
    Workspace space;
    const auto counts = space.add<float>(batch * plan.shape.splits * 2);
    const auto sums = space.add<float>(batch * plan.shape.splits * 4 * channels);
    space.allocate(x);
    dispatch(x.scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      LAUNCH((region_norm_bwd_sums_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>((2 + 4 * Item::kChannels) * kThreads), x, map_of<T>(grad), map_of<T>(x),
             masks_of(foreground, valid), global<const float>(mean), global<const float>(deviations), space[counts],
             space[sums], plan.shape);
      LAUNCH((region_norm_bwd_dx_kernel<T, V, kLast>), plan.grid, kThreads,
             shared_bytes<float>(kBackwardFactors * plan.channels) +
                 shared_bytes<float>(stage_size<V, kLast>(plan.shape.pixel_bits)),
             x, map_of<T>(grad), map_of<T>(x), masks_of(foreground, valid), global<const float>(mean),
             global<const float>(deviations), space[counts], space[sums],
             global<const float>(affine), global<T>(dx), global<float>(d_affine), plan.shape, adapt);
    });
  });
  return {dx, d_affine};
}

}  // namespace

SCSCO_SCHEMAS(m) {
  m.def(
      "region_norm_forward(Tensor x, Tensor foreground, Tensor? valid, Tensor affine, float eps, bool adapt) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "region_norm_backward(Tensor grad, Tensor x, Tensor foreground, Tensor? valid, Tensor affine, Tensor mean, "
      "Tensor std, bool adapt) -> (Tensor, Tensor)");
}

SCSCO_OPERATIONS(m) {
  m.impl("region_norm_forward", TORCH_BOX(&region_norm_forward));
  m.impl("region_norm_backward", TORCH_BOX(&region_norm_backward));
}

}  // namespace scsco
