"""SCSCoLoss against its formula written out, its options, and its gradients."""

import pytest
import torch
from oracle import make_mask

import scsco_fast as sf


@pytest.fixture
def encoder() -> sf.VGG16Features:
    with pytest.warns(UserWarning, match="RANDOM"):
        return sf.VGG16Features("random", layers=("relu1_2", "relu2_1")).double()


def pictures(size: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real, output, noise = torch.rand(3, 2, 3, size, size, generator=generator, dtype=torch.float64)
    mask = make_mask("block", 2, size, size)
    return output, real, torch.where(mask > 0.5, noise, real), mask


def written_out(encoder, output, real, mask, negatives, gram, self_style, layer):
    """L_self and L_cons of one layer, image by image and negative by negative."""
    ratios = []
    for i in range(output.shape[0]):

        def feature(image, m):
            return encoder(image[None], m[None])[layer][0].flatten(1)  # (C, N)

        m = mask[i]
        f, positive = feature(output[i], m), feature(real[i], m)
        others = [feature(negative, m) for negative in negatives[i]]
        b = feature(real[i], 1 - m)

        def correlate(x, b=b):
            return x @ b.T / x.shape[1] if gram == "channel" else x.T @ b

        def style(x):
            return x if self_style == "feature" else x @ x.T

        def distance(x, y):
            return (x - y).abs().mean()

        for view in (style, correlate):
            near = distance(view(f), view(positive))
            far = sum(distance(view(f), view(other)) for other in others)
            ratios.append(near / (near + far))
    return sum(ratios[0::2]) / output.shape[0], sum(ratios[1::2]) / output.shape[0]


@pytest.mark.parametrize("gram", ["channel", "position"])
@pytest.mark.parametrize("self_style", ["feature", "gram"])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_terms_equal_the_formula(encoder: sf.VGG16Features, gram: str, self_style: str, backend: str) -> None:
    output, real, composite, mask = pictures()
    negatives = sf.make_negatives(real, composite, mask, 3, torch.Generator().manual_seed(0))
    weights = {"relu1_2": 0.25, "relu2_1": 2.0}
    loss = sf.SCSCoLoss(encoder, style_weight=0.3, gram=gram, self_style=self_style, layer_weights=weights)
    with sf.use_backend(backend):
        terms = loss(output, real, composite, mask, negatives)
    wanted = [0.0, 0.0]
    for layer, weight in weights.items():
        parts = written_out(encoder, output, real, mask, negatives, gram, self_style, layer)
        wanted = [w + weight * part for w, part in zip(wanted, parts, strict=True)]
    torch.testing.assert_close(terms.self_style, wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(terms.consistency, wanted[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(terms.reconstruction, (output - real).abs().mean())
    torch.testing.assert_close(terms.total, terms.reconstruction + 0.3 * (wanted[0] + wanted[1]), rtol=1e-6, atol=0)


def test_backends_give_the_same_gradient(encoder: sf.VGG16Features) -> None:
    output, real, composite, mask = pictures()
    negatives = sf.make_negatives(real, composite, mask, 2, torch.Generator().manual_seed(0))
    grads = []
    for backend in ("reference", "eager"):
        leaf = output.clone().requires_grad_()
        with sf.use_backend(backend):
            sf.SCSCoLoss(encoder, style_weight=1.0)(leaf, real, composite, mask, negatives).total.backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_the_output_is_pushed_away_from_negatives(encoder: sf.VGG16Features) -> None:
    """The gradient of the ratio reaches the output through the negative distances too."""
    output, real, composite, mask = pictures()
    loss = sf.SCSCoLoss(encoder, style_weight=1.0, negatives=1)
    leaf = output.clone().requires_grad_()
    terms = loss(leaf, real, composite, mask)
    (grad,) = torch.autograd.grad(terms.total - (leaf - real).abs().mean(), leaf)
    step = 1e-3 * grad.sign() * mask
    closer = loss(output - step, real, composite, mask)
    assert closer.self_style + closer.consistency < terms.self_style + terms.consistency
    fixed = loss(output, real, composite.roll(1, 0) * 0 + real, mask)  # a negative that is the positive
    assert float(fixed.self_style) == pytest.approx(0.5)


def test_a_perfect_output_costs_nothing(encoder: sf.VGG16Features) -> None:
    _, real, composite, mask = pictures()
    terms = sf.SCSCoLoss(encoder)(real.clone().requires_grad_(), real, composite, mask)
    assert terms.total.item() == 0
    terms.total.backward()


@pytest.mark.parametrize("mask", ["empty", "full", "one pixel"])
def test_every_mask_has_a_finite_gradient(encoder: sf.VGG16Features, mask: str) -> None:
    output, real, composite, _ = pictures()
    leaf = output.clone().requires_grad_()
    sf.SCSCoLoss(encoder, negatives=3)(leaf, real, composite, make_mask(mask, 2, 24, 24)).total.backward()
    assert torch.isfinite(leaf.grad).all()


def test_style_weight_zero_needs_no_encoder() -> None:
    output, real, composite, mask = pictures()
    terms = sf.SCSCoLoss(None, style_weight=0.0)(output.requires_grad_(), real, composite, mask)
    terms.total.backward()
    assert terms.total.item() == terms.reconstruction.item()
    assert float(terms.self_style) == 0


def test_style_size_shrinks_what_the_encoder_sees(encoder: sf.VGG16Features, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda images, mask: seen.append(images.shape) or original(images, mask))
    output, real, composite, mask = pictures()
    sf.SCSCoLoss(encoder, negatives=2, style_size=12)(output, real, composite, mask)
    assert seen == [(8, 3, 12, 12), (2, 3, 12, 12)]


def test_named_terms_and_their_graph(encoder: sf.VGG16Features) -> None:
    output, real, composite, mask = pictures()
    terms = sf.SCSCoLoss(encoder, negatives=2)(output.requires_grad_(), real, composite, mask)
    assert list(terms.named()) == [
        "total",
        "reconstruction",
        "self_style",
        "consistency",
        "self_positive",
        "self_negative",
        "consistency_positive",
        "consistency_negative",
    ]
    assert [name for name, term in terms.named().items() if term.requires_grad] == ["total"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gram": "both"}, "gram must be one of channel, position"),
        ({"self_style": "mean"}, "self_style must be one of feature, gram"),
        ({"style_weight": -1.0}, "style_weight must be 0, or positive with an encoder"),
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"layer_weights": {"relu4_3": 1.0}}, "layer_weights must name the encoder's layers"),
    ],
)
def test_bad_options_are_named(encoder: sf.VGG16Features, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.SCSCoLoss(encoder, **options)


def test_foreground_error_is_written_out() -> None:
    output, real, _, mask = pictures()
    mask[1] = 0
    mask[1, :, :2, :3] = 1  # 6 of 576 pixels: less than a 64th, so it counts as 9
    wanted = []
    for i in range(2):
        squares = sum(((output - real)[i, channel] ** 2)[mask[i, 0] > 0].sum() for channel in range(3))
        wanted.append((squares / (3 * max(float(mask[i].sum()), 24 * 24 / 64)) + 1e-4) ** 0.75)
    loss = sf.SCSCoLoss(None, style_weight=0.0, reconstruction="foreground")
    terms = loss(output, real, real, mask)
    torch.testing.assert_close(terms.total, sum(wanted) / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.reconstruction, terms.total, rtol=0, atol=0)


def test_foreground_error_has_finite_gradients_where_nothing_is_wrong_and_without_a_foreground() -> None:
    _, real, _, mask = pictures()
    mask[1] = 0
    output = real.clone().requires_grad_()
    sf.SCSCoLoss(None, style_weight=0.0, reconstruction="foreground")(output, real, real, mask).total.backward()
    assert torch.equal(output.grad, torch.zeros_like(real))


def test_an_unknown_reconstruction_is_named() -> None:
    with pytest.raises(ValueError, match="reconstruction must be one of l1, foreground, got 'l2'"):
        sf.SCSCoLoss(None, style_weight=0.0, reconstruction="l2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize(
    "options", [{}, {"reconstruction": "foreground"}, {"self_style": "gram"}, {"gram": "position"}, {"style_size": 12}]
)
def test_pictures_of_16_bits_cost_what_they_cost_in_float32(
    encoder: sf.VGG16Features, options: dict, backend: str, dtype: torch.dtype
) -> None:
    """Nothing is computed in 16 bits; only the gradient is rounded to them."""
    encoder = encoder.float()
    tensors = [tensor.to(dtype) for tensor in pictures(16)]
    results = []
    for cast in (dtype, torch.float32):
        output, real, composite, mask = (tensor.to(cast) for tensor in tensors)
        output = output.clone().requires_grad_()
        loss = sf.SCSCoLoss(encoder, style_weight=1.0, negatives=5, **options)  # every family of negatives
        with sf.use_backend(backend):
            terms = loss(output, real, composite, mask, generator=torch.Generator().manual_seed(0))
            terms.total.backward()
        assert {term.dtype for term in terms} == {torch.float32}
        assert output.grad.dtype == cast
        results.append([*terms, output.grad.to(dtype)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("options", [{}, {"reconstruction": "foreground"}, {"style_weight": 0.0}])
def test_no_images_cost_nothing(encoder: sf.VGG16Features, options: dict) -> None:
    """A process whose share of a batch is empty takes part in the step: all is 0, and so is the network's gradient."""
    network = torch.nn.Conv2d(3, 3, 1).double()
    nothing, mask = torch.zeros(0, 3, 24, 24, dtype=torch.float64), torch.zeros(0, 1, 24, 24)
    for boxes in (None, sf.foreground_boxes(mask)):
        terms = sf.SCSCoLoss(encoder, **options)(network(nothing), nothing, nothing, mask, boxes=boxes)
        assert all(term.shape == () and term == 0 for term in terms)
        assert [name for name, term in terms.named().items() if term.requires_grad] == ["total"]
        network.zero_grad()
        terms.total.backward()
        assert all((parameter.grad == 0).all() for parameter in network.parameters())


@pytest.mark.parametrize("options", [{}, {"reconstruction": "foreground"}, {"self_style": "gram"}])
@pytest.mark.parametrize("crop", [True, False])
def test_a_nan_image_leaves_its_neighbours_gradients_alone(
    encoder: sf.VGG16Features, options: dict, crop: bool
) -> None:
    output, real, composite, mask = pictures()
    negatives = sf.make_negatives(real, composite, mask, 3, torch.Generator().manual_seed(0))
    grads = []
    for poison in (0.0, torch.nan):
        leaf = output.clone()
        leaf[0, 1, 3, 4] += poison
        leaf.requires_grad_()
        loss = sf.SCSCoLoss(encoder, style_weight=1.0, crop=crop, **options)
        loss(leaf, real, composite, mask, negatives, boxes=sf.foreground_boxes(mask)).total.backward()
        grads.append(leaf.grad[1])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-15)


def test_foreground_error_does_not_read_the_background() -> None:
    output, real, _, mask = pictures()
    outside = torch.where(mask > 0, output, torch.nan).requires_grad_()
    terms = sf.SCSCoLoss(None, style_weight=0.0, reconstruction="foreground")(outside, real, real, mask)
    wanted = sf.SCSCoLoss(None, style_weight=0.0, reconstruction="foreground")(output, real, real, mask)
    assert terms.total == wanted.total
    terms.total.backward()
    assert outside.grad.isfinite().all()
