"""The training step: schedules, averages, exact skipping of non-finite steps, and no waiting for the device."""

import copy
import functools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from oracle import NoReading, NoWaiting
from torch import Tensor

from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.style.loss import SCSCoLoss
from scsco_fast.style.negatives import WholeBatch
from scsco_fast.style.vgg import VGG16Features
from scsco_fast.train import step as step_module
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.means import RunningMeans
from scsco_fast.train.schedules import ema_decay, learning_rate, step_seed
from scsco_fast.train.step import TrainingStep

Tiny = Callable[..., TrainConfig]


def build(config: TrainConfig) -> TrainingStep:
    torch.manual_seed(config.seed)
    return TrainingStep(HarmonizationUNet(**config.architecture()).train(), None, config)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    composite, real = torch.rand(2, 2, 3, 32, 32, generator=generator)
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:24, 8:20] = 1
    return composite, real, mask


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, None]),
        ("linear-decay", [1, 1, 1, 0.5, None]),
        ("step", [1, 1, 1, 1, 0.1]),
    ],
)
def test_learning_rate(schedule: str, expected: list[float | None]) -> None:
    config = TrainConfig(schedule=schedule, steps=1200, lr=0.3)  # type: ignore[arg-type]
    rates = [learning_rate(config, step) for step in (0, 300, 600, 900, 1000)]
    for rate, factor in zip(rates, expected, strict=True):
        assert factor is None or rate == pytest.approx(0.3 * factor)
    if schedule == "step":
        assert learning_rate(config, 1100) == pytest.approx(0.003)
    elif schedule != "constant":
        assert 0 < learning_rate(config, 1199) < 0.003


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    config = TrainConfig(schedule="constant", warmup=4, lr=1.0)
    assert [learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_ema_is_the_average_with_the_ramped_decay(tiny: Tiny) -> None:
    config = tiny(ema_decay=0.5, clip_norm=None)
    step = build(config)
    assert [ema_decay(config, index) for index in (0, 1, 7, 8, 100)] == [0.1, 2 / 11, 8 / 17, 0.5, 0.5]
    expected = [parameter.detach().clone() for parameter in step.model.parameters()]
    for index in range(3):
        step(*batch(index), index)
        decay = ema_decay(config, index)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, step.model.parameters(), strict=True)]
    for average, value in zip(step.ema.parameters(), expected, strict=True):
        torch.testing.assert_close(average, value, rtol=1e-5, atol=1e-7)


def test_clipping_bounds_the_gradient(tiny: Tiny) -> None:
    free, clipped = build(tiny(clip_norm=None, dropout=False)), build(tiny(clip_norm=1e-3, dropout=False))
    for step in (free, clipped):
        step(*batch(), 0)
    norm = free.read()["means"]["grad_norm"]
    assert norm > 1e-2
    assert clipped.read()["means"]["grad_norm"] == pytest.approx(norm)  # the norm before clipping is what is shown
    left = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in clipped.parameters if parameter.grad is not None]
    )
    assert left.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("where", ["composite", "real"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_non_finite_step_changes_nothing(tiny: Tiny, where: str, value: float, first: bool) -> None:
    step = build(tiny(weight_decay=0.1))
    if not first:
        step(*batch(), 0)
    state = copy.deepcopy(step.state_dict())
    composite, real, mask = batch(1)
    (composite if where == "composite" else real)[0, 0, 10, 10] = value
    step(composite, real, mask, 1)

    after = step.state_dict()
    for name in ("model", "ema"):
        assert all(torch.equal(after[name][key], old) for key, old in state[name].items())
    for key, moments in state["optimizer"]["state"].items():
        assert all(torch.equal(after["optimizer"]["state"][key][name], old) for name, old in moments.items())
    report = step.read()
    assert (report["skipped"], report["in_a_row"], report["last_skipped"]) == (1, 1, 1)
    assert math.isnan(report["means"]["total"]) == first

    step(*batch(2), 2)
    report = step.read()
    assert (report["skipped"], report["in_a_row"], report["last_skipped"]) == (1, 0, 1)
    assert math.isfinite(report["means"]["total"])
    assert any(not torch.equal(value, state["model"][key]) for key, value in step.model.state_dict().items())


def test_a_skipped_step_leaves_the_following_ones_as_they_were(tiny: Tiny) -> None:
    plain, skipping = build(tiny(dropout=False)), build(tiny(dropout=False))
    composite, real, mask = batch(5)
    for index in range(3):
        plain(*batch(index), index)
        skipping(composite * math.nan, real, mask, index)
        skipping(*batch(index), index)
    for one, other in zip(plain.model.parameters(), skipping.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm", ["rain", "instance"])
def test_step_does_not_wait_for_the_device(tiny: Tiny, norm: str) -> None:
    # BAIN's eager backend packs pixels by counting them when it runs on a CPU; on a GPU it does not.
    step = build(tiny(norm=norm))
    step(*batch(), 0)  # the optimizer makes its state at the first step
    with NoReading(), NoWaiting():
        step(*batch(1), 1)
        step(*batch(2), 2)
    for guard in (NoReading(), NoWaiting()):
        with guard, pytest.raises(AssertionError, match="waits"):
            torch.ones(()).item()
    with NoReading(), pytest.raises(AssertionError, match="waits"):
        step.read()


def test_running_means_skip_what_has_no_weight_and_what_is_absent() -> None:
    means, one, zero = RunningMeans(), torch.tensor(1.0), torch.tensor(0.0)
    means.add({"total": torch.tensor(2.0), "style": torch.tensor(5.0)}, one)
    means.add({"total": torch.tensor(4.0)}, one)
    means.add({"total": torch.tensor(math.nan), "style": torch.tensor(math.inf)}, zero)
    assert means.read() == {"total": 3.0, "style": 5.0}
    means.add({"total": torch.tensor(math.nan)}, zero)
    assert math.isnan(means.read()["total"])
    assert means.read() == {}


def test_running_means_keep_float64() -> None:
    means = RunningMeans()
    means.add({"total": torch.tensor(1 + 1e-12, dtype=torch.float64), "norm": torch.tensor(1.0)}, torch.tensor(1.0))
    assert means.read()["total"] == 1 + 1e-12


def test_seeds_of_steps_differ() -> None:
    seeds = {step_seed(seed, step) for seed in range(5) for step in range(1000)}
    assert len(seeds) == 5000


def test_optimizer_settings_of_the_configuration_win_on_resume(tiny: Tiny) -> None:
    step = build(tiny())
    step(*batch(), 0)
    other = build(tiny(betas=(0.8, 0.9), weight_decay=0.2))
    other.load_state_dict(step.state_dict(), "last.pt")
    assert other.optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert other.optimizer.param_groups[0]["weight_decay"] == 0.2


def test_bfloat16_keeps_float32_weights_and_learns(tiny: Tiny) -> None:
    step = build(tiny(precision="bfloat16", schedule="constant"))
    composite, _, mask = batch()
    real = composite * (1 - mask) + composite.mul(0.5) * mask
    losses = []
    for index in range(12):
        step(composite, real, mask, index)
        losses.append(step.read()["means"]["total"])
    assert all(parameter.dtype == torch.float32 for parameter in step.model.parameters())
    assert losses[-1] < 0.9 * losses[0]


def test_compiled_step_equals_the_plain_one(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build(tiny(dropout=False))
    # The graph is captured whole; no machine code is made of it, which would need a C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = build(tiny(dropout=False, compile=True))
    for index in range(2):
        plain(*batch(index), index)
        compiled(*batch(index), index)
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny: Tiny, parts: int) -> None:
    """In float64, with shares of unlike size, the style loss and negatives from other images of the batch."""
    results = []
    for accumulate in (1, parts):
        config = tiny(accumulate=accumulate, batch_size=6, levels=5, dropout=False, style_weight=0.5, clip_norm=None)
        torch.manual_seed(0)
        model = HarmonizationUNet(**config.architecture()).double().train()
        with warnings.catch_warnings(action="ignore"):
            encoder = VGG16Features(weights="random", layers=("relu1_2",)).double()
        step = TrainingStep(model, SCSCoLoss(encoder, style_weight=0.5, negatives=4), config)
        composite, real, mask = (tensor.double() for tensor in batch(3))
        pictures = (torch.cat([tensor, tensor.flip(-1), tensor.flip(-2)])[:5] for tensor in (composite, real, mask))
        step(*pictures, 0)
        gradient = torch.cat([parameter.grad.flatten() for parameter in step.parameters if parameter.grad is not None])
        results.append((step.read()["means"], gradient))
    (means, whole), (parts_means, summed) = results
    assert parts_means == pytest.approx(means, rel=1e-9)
    torch.testing.assert_close(summed, whole, rtol=1e-9, atol=1e-12)


def test_float16_scales_gradients_and_halves_the_scale_at_an_overflow(tiny: Tiny) -> None:
    plain, scaled = build(tiny(dropout=False)), build(tiny(dropout=False, precision="float16"))
    for step in (plain, scaled):
        step(*batch(), 0)
    one, other = plain.read(), scaled.read()
    assert other["scale"] == 65536
    assert other["means"]["grad_norm"] == pytest.approx(one["means"]["grad_norm"], rel=0.02)
    scaled.scale.fill_(2.0**40)
    before = [parameter.clone() for parameter in scaled.parameters]
    scaled(*batch(1), 1)
    state = scaled.read()
    assert (state["skipped"], state["scale"]) == (1, 2.0**39)
    assert all(torch.equal(old, new) for old, new in zip(before, scaled.parameters, strict=True))


def test_float16_doubles_the_scale_after_many_good_steps_and_resumes_with_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "SCALE_STEPS", 2)
    step = build(tiny(precision="float16"))
    scales = []
    for index in range(4):
        step(*batch(index), index)
        scales.append(step.read()["scale"])
    assert scales == [65536, 131072, 131072, 262144]
    other = build(tiny(precision="float16"))
    other.load_state_dict(step.state_dict(), "last.pt")
    assert other.read()["scale"] == 262144


def test_a_process_without_images_adds_nothing(tiny: Tiny) -> None:
    """Its place in the others' sums: gradients of zero, none of them NaN, with the style loss too."""
    config = tiny(style_weight=0.5, precision="float32")
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        encoder = VGG16Features(weights="random", layers=("relu1_2",))
    step = TrainingStep(HarmonizationUNet(**config.architecture()).train(), SCSCoLoss(encoder, negatives=4), config)
    composite, real, mask = batch()
    for index in range(8):  # every family of negatives comes up
        part = step._prepare((composite[:0], real[:0], mask[:0], None), WholeBatch(real, mask, 0), 0, index)
        step._pass(part, 0.0)
    assert all((parameter.grad == 0).all() for parameter in step.parameters)
