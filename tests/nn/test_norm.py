"""RAIN against its published formula, BAIN against RAIN, and what holds for any mask."""

import pytest
import torch
from oracle import MASKS, make_mask, random

import scsco_fast as sf

BACKENDS = ["reference", "eager"]


def published_rain(x, mask, gamma_f, beta_f, gamma_b, beta_b, eps=1e-5):
    """RAIN as its paper writes it, with loops instead of masks."""
    y = torch.empty_like(x)
    for image in range(x.shape[0]):
        inside = mask[image, 0] > 0.5
        for c in range(x.shape[1]):
            fore, back = x[image, c][inside], x[image, c][~inside]
            mu_f, sigma_f = fore.mean(), (fore.var(correction=0) + eps).sqrt()
            mu_b, sigma_b = back.mean(), (back.var(correction=0) + eps).sqrt()
            y[image, c][inside] = ((fore - mu_f) / sigma_f * sigma_b + mu_b) * (1 + gamma_f[c]) + beta_f[c]
            y[image, c][~inside] = (back - mu_b) / sigma_b * (1 + gamma_b[c]) + beta_b[c]
    return y


def with_parameters(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
    return module.double()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rain_is_the_published_formula(backend: str) -> None:
    x, mask = random(2, 3, 8, 10, offset=1.5), make_mask("random", 2, 16, 20)
    rain = with_parameters(sf.RAIN(3))
    with sf.use_backend(backend):
        y = rain(x, mask)
    names = ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta")
    wanted = published_rain(x, mask[..., ::2, ::2], *(getattr(rain, name) for name in names))
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
def test_bain_with_uniform_attention_is_rain(mask: str, backend: str) -> None:
    x, regions = random(3, 4, 6, 6, offset=2.0), sf.Regions(make_mask(mask, 3, 6, 6), make_mask("random", 3, 6, 6, 5))
    rain, bain = with_parameters(sf.RAIN(4)), with_parameters(sf.BAIN(4))
    bain.load_state_dict(rain.state_dict(), strict=False)
    torch.nn.init.zeros_(bain.query.weight)
    results = []
    for module in (rain, bain):
        leaf = x.clone().requires_grad_()
        with sf.use_backend(backend):
            y = module(leaf, regions)
        (y * random(*y.shape, seed=3)).sum().backward()
        results.append((y.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
def test_bain_gradients_are_finite_for_every_mask(mask: str, backend: str) -> None:
    torch.manual_seed(0)
    bain = sf.BAIN(4, key_channels=2, project_value=True)
    x = random(3, 4, 6, 6, dtype=torch.float32).requires_grad_()
    with sf.use_backend(backend):
        y = bain(x, make_mask(mask, 3, 6, 6))
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    for parameter in (x, *bain.parameters()):
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("mask", ["empty", "full"])
def test_bain_without_a_region_is_instance_norm_there(mask: str) -> None:
    x = random(2, 4, 6, 6)
    y = sf.BAIN(4).double()(x, make_mask(mask, 2, 6, 6))
    torch.testing.assert_close(y, torch.nn.functional.instance_norm(x, eps=1e-5), rtol=1e-12, atol=1e-12)


def test_bain_looks_at_what_it_resembles() -> None:
    """A foreground of two kinds takes the statistics of the background half of its own kind."""
    x = torch.zeros(1, 2, 4, 8, dtype=torch.float64)
    x[:, 0, :, :4], x[:, 0, :, 4:] = -1, 1  # the kind
    x[:, 1, :, :4], x[:, 1, :, 4:] = 10, 50  # what is taken over
    mask = torch.zeros(1, 1, 4, 8)
    mask[..., :2, :] = 1
    key = x[:, :1]
    mean, std = sf.ops.bain_attention(key, key, x, mask, scale=50.0)
    assert mean[0, 1, 0].tolist() == pytest.approx([10] * 4 + [50] * 4)
    assert std[0, 1, 0].tolist() == pytest.approx([1e-5**0.5] * 8)


def test_gradcheck_of_the_module() -> None:
    bain = with_parameters(sf.BAIN(2, key_channels=2))
    x = random(1, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bain(x, make_mask("random", 1, 3, 3)), x)


def test_cosine_bounds_the_logits() -> None:
    """The scale of q and k does not matter, and no pixel outweighs another by more than exp(2 * COSINE_SCALE)."""
    torch.manual_seed(0)
    x, mask = random(1, 4, 6, 6), make_mask("block", 1, 6, 6)
    bain = sf.BAIN(4, cosine=True).double()
    y = bain(x, mask)
    with torch.no_grad():
        bain.query.weight.mul_(50)
        bain.key.weight.mul_(7)
    torch.testing.assert_close(bain(x, mask), y)
    assert not torch.allclose(sf.RAIN(4).double()(x, mask), y)
    n = sf.ops.region_norm(x, mask, adapt=False)
    q, k = (torch.nn.functional.normalize(conv(n), dim=1) for conv in (bain.query, bain.key))
    mean, std = sf.ops.bain_attention(q, k, x, mask, scale=5.0)
    torch.testing.assert_close(y, std * n + mean)


def test_key_channels_default_to_the_channels_up_to_64() -> None:
    assert (sf.BAIN(16).key_channels, sf.BAIN(512).key_channels, sf.BAIN(512, 32).key_channels) == (16, 64, 32)
