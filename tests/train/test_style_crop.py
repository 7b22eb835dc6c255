"""Training with the style encoder on windows is training with it on whole pictures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import make_mask

import scsco_fast as sf
from scsco_fast.data.samples import collate
from scsco_fast.style.vgg import VGG16Features
from scsco_fast.train import step as step_module
from scsco_fast.train.build import build_loss
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.step import TrainingStep

pytestmark = pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")
Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_windows_and_whole_pictures_train_alike(
    tiny: Tiny, pictures: Any, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = VGG16Features.forward_mosaic

    def counted(self: VGG16Features, images: torch.Tensor, *others: Any) -> dict[str, torch.Tensor]:
        calls.append(len(images))
        return original(self, images, *others)

    monkeypatch.setattr(VGG16Features, "forward_mosaic", counted)
    results = []
    for crop in (True, False):
        options = {"style_weight": 0.5, "negatives": 2, "vgg_layers": ("relu1_2",), "vgg_weights": "random"}
        config = tiny(**options, norm="rain", style_crop=crop, accumulate=accumulate)
        torch.manual_seed(0)
        model = sf.HarmonizationUNet(**config.architecture()).double().train()
        loss, _ = build_loss(config)
        assert loss is not None
        step, samples = TrainingStep(model, loss.double(), config), pictures()
        for index in range(3):
            data = collate([samples[index * 2], samples[index * 2 + 1]])
            step(*(tensor.double() for tensor in data[:3]), index=index, boxes=sf.foreground_boxes(data.mask))
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert sum(calls) == 3 * 2 * 2  # of each step both pictures, in one or two parts, known and moving
    assert torch.linalg.norm(results[0] - results[1]) <= 1e-9 * torch.linalg.norm(results[1])


def test_a_captured_step_is_given_the_canvases(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a capture that computes at once, as there is no GPU: what it is given must be all that the step uses."""

    class Computed:
        def __init__(self, compute: Any, _: Any, __: Any, weight: float) -> None:
            self.compute, self.weight = compute, weight

        def __call__(self, inputs: tuple[torch.Tensor | None, ...]) -> dict[str, torch.Tensor]:
            seen.append(len(inputs))
            return self.compute(inputs, self.weight)

    seen: list[int] = []
    monkeypatch.setattr(step_module, "CapturedPass", Computed)
    options = {"style_weight": 0.5, "negatives": 1, "vgg_layers": ("relu2_1",), "vgg_weights": "random", "size": 96}
    mask, real = torch.zeros(2, 1, 96, 96), torch.rand(2, 3, 96, 96)
    mask[..., 20:30, 20:30] = 1
    norms = []
    for captured in (True, False):
        config = tiny(**options, norm="rain", dropout=False, cuda_graph=captured)
        torch.manual_seed(0)
        loss, _ = build_loss(config)
        step = TrainingStep(sf.HarmonizationUNet(**config.architecture()).train(), loss, config)
        step(real * (1 - 0.5 * mask), real, mask, 0, boxes=sf.foreground_boxes(mask))
        norms.append(step.read()["means"]["grad_norm"])
    assert seen == [4 + 2 * 6 + 2 + 3]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_configuration_reaches_the_encoder(tiny: Tiny) -> None:
    options = {"style_weight": 0.1, "vgg_weights": "random", "vgg_layers": ("relu1_2",)}
    loss, _ = build_loss(tiny(**options))
    plain, _ = build_loss(tiny(**options, style_crop=False, channels_last=False, precision="bfloat16"))
    assert loss is not None
    assert plain is not None
    assert (loss.crop, plain.crop) == (True, False)
    weights = [next(each.encoder.features.parameters()) for each in (loss, plain)]  # type: ignore[union-attr]
    assert weights[1].is_contiguous()
    second = [each.encoder.features["2"].weight for each in (loss, plain)]  # type: ignore[union-attr]
    assert second[0].is_contiguous(memory_format=torch.channels_last)
    assert second[1].is_contiguous()
    assert [weight.dtype for weight in weights] == [torch.float32, torch.bfloat16]


def test_bfloat16_step_with_windows_learns(tiny: Tiny) -> None:
    config = tiny(
        style_weight=0.1, vgg_weights="random", vgg_layers=("relu1_2",), precision="bfloat16", size=64, negatives=1
    )
    loss, _ = build_loss(config)
    step = TrainingStep(sf.HarmonizationUNet(**config.architecture()).train(), loss, config)
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 20:30, 20:30] = 1
    real = torch.rand(2, 3, 64, 64)
    for index in range(2):
        step(real * (1 - 0.5 * mask), real, mask, index, boxes=sf.foreground_boxes(mask))
    means = step.read()["means"]
    assert 0 < means["self_style"] < 1
    assert 0 < means["consistency"] < 1


def test_boxes_of_the_random_masks_hold_them() -> None:
    for kind in ("random", "one pixel", "ragged", "soft", "empty"):
        mask = make_mask(kind, 3, 9, 14)
        boxes = sf.foreground_boxes(mask)
        assert boxes is not None
        for image, (top, left, bottom, right) in zip(mask, boxes.tolist(), strict=True):
            inside = torch.zeros_like(image)
            inside[:, top:bottom, left:right] = 1
            assert not (image * (1 - inside)).any()
