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
#include "bain_attention_backward.cuh"

namespace scsco {
namespace {

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

SCSCO_SCHEMAS(m) {
  m.def(
      "bain_attention_backward(Tensor grad_mean, Tensor grad_std, Tensor query, Tensor key, Tensor value, "
      "Tensor order, Tensor counts, Tensor first, Tensor variance, Tensor lse, float scale, float eps, "
      "bool tf32) -> (Tensor, Tensor, Tensor)");
}

SCSCO_OPERATIONS(m) { m.impl("bain_attention_backward", TORCH_BOX(&bain_attention_backward)); }

}  // namespace scsco
