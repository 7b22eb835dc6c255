// The schemas of every operation; the files of the operations register their implementations.
#include "portable.cuh"

STABLE_TORCH_LIBRARY(scsco_fast_cuda, m) {
  m.def(
      "region_norm_forward(Tensor x, Tensor foreground, Tensor? valid, Tensor fg_weight, Tensor fg_bias, "
      "Tensor bg_weight, Tensor bg_bias, float eps, bool adapt) -> (Tensor, Tensor, Tensor)");
  m.def(
      "region_norm_backward(Tensor grad, Tensor x, Tensor foreground, Tensor? valid, Tensor fg_weight, "
      "Tensor bg_weight, Tensor mean, Tensor std, bool adapt) -> (Tensor, Tensor)");
  m.def("feature_distances_forward(Tensor anchor, Tensor others) -> Tensor");
  m.def("feature_distances_backward(Tensor grad, Tensor anchor, Tensor others) -> (Tensor, Tensor)");
  m.def("masked_gram_forward(Tensor features, Tensor? foreground, bool tf32) -> Tensor");
  m.def("masked_gram_backward(Tensor grad, Tensor features, Tensor? foreground, bool tf32) -> Tensor");
  m.def("cross_gram_forward(Tensor a, Tensor b, bool tf32) -> Tensor");
  m.def("cross_gram_backward(Tensor grad, Tensor other, bool tf32) -> Tensor");
  m.def("gram_distances_forward(Tensor anchor, Tensor background, Tensor others, bool tf32) -> Tensor");
  m.def(
      "gram_distances_backward(Tensor grad, Tensor anchor, Tensor background, Tensor others, bool tf32) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "bain_attention_forward(Tensor query, Tensor key, Tensor value, Tensor order, Tensor counts, float scale, "
      "float eps, bool tf32) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "bain_attention_backward(Tensor grad_mean, Tensor grad_std, Tensor query, Tensor key, Tensor value, "
      "Tensor order, Tensor counts, Tensor first, Tensor variance, Tensor lse, float scale, float eps, "
      "bool tf32) -> (Tensor, Tensor, Tensor)");
}
