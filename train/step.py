"""One training step: forward, loss, backward, clipping, update, averaging; nothing is read back from the device."""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scsco_fast.loss import SCSCoLoss
from scsco_fast.negatives import make_negatives
from scsco_fast.nn.mosaic import Mosaic
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.train.checkpoint import load_strictly
from scsco_fast.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step `step` (0-based): linear warm-up, then the schedule over all of `config.steps`."""
    progress = step / config.steps
    factors: dict[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear-decay": lambda: min(1.0, 2 * (1 - progress)),
        "step": lambda: 0.1 ** ((12 * step >= 10 * config.steps) + (12 * step >= 11 * config.steps)),
    }
    warmup = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.lr * warmup * factors[config.schedule]()


def ema_decay(config: TrainConfig, step: int) -> float:
    """Decay of the averaged weights at step `step` (0-based): (1 + t) / (10 + t) until that reaches `ema_decay`.

    Without the ramp the first average of a short run would still hold the random start.
    """
    return min(config.ema_decay, (1 + step) / (10 + step))


def step_seed(seed: int, step: int) -> int:
    """Seed of the negatives of one step, a pure function of both numbers."""
    return (seed * 1_000_003 + step * 7_919 + 1) % 2**63


class RunningMeans:
    """Means of named 0-d tensors since the last read, kept on the device.

    Values with weight 0 do not count, even when they are NaN. Names that are absent in some steps (the style terms
    when `style_every` > 1) are averaged over the steps that had them.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor], weight: Tensor) -> None:
        """Add one step; `weight` is a 0-d tensor, 1 to count the step and 0 to leave it out."""
        dtype = functools.reduce(torch.promote_types, (value.dtype for value in values.values()), weight.dtype)
        row = torch.stack([value.detach().to(dtype) for value in (*values.values(), torch.ones_like(weight))])
        row = torch.where(weight > 0, row, 0.0)
        names = tuple(values)
        self._sums[names] = self._sums[names] + row if names in self._sums else row

    def read(self) -> dict[str, float]:
        """Mean of each name, and forget them all. This waits for the device; a name without a counted step is NaN."""
        totals: dict[str, tuple[float, float]] = {}
        for names, sums in self._sums.items():
            *values, count = sums.tolist()
            for name, value in zip(names, values, strict=True):
                total, number = totals.get(name, (0.0, 0.0))
                totals[name] = total + value, number + count
        self._sums.clear()
        return {name: total / number if number else math.nan for name, (total, number) in totals.items()}


class TrainingStep:
    """Model, averaged model, loss and optimizer, and the step that moves them.

    A step with a non-finite loss or gradient changes neither weights, moments nor averages. The decision stays on the
    device: the fused Adam takes a flag (`found_inf`) and skips its update exactly, without the host reading anything.

    Args:
        model: in training mode, on its device; its dtype is the dtype of the update.
        loss: SCSCoLoss, or None where `config.style_weight` is 0: then only its reconstruction term is computed.
        config: learning rate, clipping, averaging, precision, compilation, negatives, seed.

    Example:
        >>> config = TrainConfig(style_weight=0.0, base_channels=4, levels=5, size=32)
        >>> step = TrainingStep(HarmonizationUNet(**config.architecture()), None, config)
        >>> picture, mask = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
        >>> step(picture, picture * 0.9, mask, index=0)
        >>> sorted(step.read()["means"])
        ['grad_norm', 'reconstruction', 'total']
    """

    def __init__(self, model: HarmonizationUNet, loss: SCSCoLoss | None, config: TrainConfig) -> None:
        self.model, self.loss, self.config = model, loss, config
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.generator = torch.Generator()
        self.reconstruction = SCSCoLoss(None, style_weight=0.0)
        self.means = RunningMeans()
        # Steps skipped in all, steps skipped in a row, and the last one that was skipped (-1: none).
        self.skips = torch.tensor([0, 0, -1], device=self.device)
        self._losses = torch.compile(self._forward, fullgraph=True) if config.compile else self._forward

    def __call__(
        self, composite: Tensor, real: Tensor, mask: Tensor, index: int, boxes: Tensor | None = None
    ) -> None:
        """Do step `index` (0-based) on pictures (B, 3, H, W) in [0, 1] and masks (B, 1, H, W) on the model's device.

        With `boxes`, the masks' `foreground_boxes` taken on the CPU, the style encoder leaves out what no mask reaches.
        """
        with_style = self.loss is not None and index % self.config.style_every == 0
        negatives = self._negatives(composite, real, mask, index) if with_style else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            mosaic = self._mosaic(mask, boxes) if with_style else None
            losses = self._losses(composite, real, mask, negatives, mosaic)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        self._update(losses, index)

    def _negatives(self, composite: Tensor, real: Tensor, mask: Tensor, index: int) -> Tensor:
        self.generator.manual_seed(step_seed(self.config.seed, index))
        return make_negatives(real, composite, mask, self.config.negatives, generator=self.generator)

    def _mosaic(self, mask: Tensor, boxes: Tensor | None) -> Mosaic | None:
        """Where the style encoder computes; made outside the compiled step, which sees few canvas sizes."""
        compiled = self.config.compile
        if self.loss is None or (compiled and len(mask) != self.config.batch_size):
            return None  # a batch that lost bad samples would have canvases of its own to compile for
        mosaic = self.loss.mosaic(boxes, *mask.shape[-2:], fixed=compiled)
        if compiled and mosaic is not None:
            mosaic.mark_static()
        return mosaic

    def _forward(
        self, composite: Tensor, real: Tensor, mask: Tensor, negatives: Tensor | None, mosaic: Mosaic | None
    ) -> dict[str, Tensor]:
        output = self.model(composite, mask)
        if negatives is None or self.loss is None:
            terms = self.reconstruction(output, real, composite, mask)
            return {"total": terms.total, "reconstruction": terms.reconstruction}
        return self.loss(output, real, composite, mask, negatives=negatives, boxes=mosaic).named()

    @torch.no_grad()
    def _update(self, losses: dict[str, Tensor], index: int) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        finite = torch.isfinite(norm) & torch.isfinite(losses["total"])
        applied = finite.float()

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, index)
        optimizer: Any = self.optimizer  # the two attributes are those that torch.amp.GradScaler sets
        optimizer.found_inf, optimizer.grad_scale = 1 - applied, None
        optimizer.step()

        self._average(1 - ema_decay(self.config, index), applied)
        self.means.add({**losses, "grad_norm": norm}, applied)
        all_skips, in_a_row, last = self.skips.unbind()
        skipped = (~finite).long()
        self.skips = torch.stack([all_skips + skipped, (in_a_row + 1) * skipped, torch.where(finite, last, index)])

    def _average(self, share: float, applied: Tensor) -> None:
        """ema += share * (weights - ema), or nothing where the update was not applied."""
        averages: list[Tensor] = list(self.ema.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        changes = list(torch._foreach_sub(weights, averages))
        torch._foreach_mul_(changes, applied * share)
        torch._foreach_add_(averages, changes)

    def read(self) -> dict[str, Any]:
        """What happened since the last read; the only place that waits for the device.

        "means": name -> mean over the applied steps; "skipped": skipped steps in all; "in_a_row": those that directly
        precede; "last_skipped": the last skipped step, -1 if none.
        """
        skipped, in_a_row, last = self.skips.tolist()
        return {"means": self.means.read(), "skipped": skipped, "in_a_row": in_a_row, "last_skipped": last}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skips": self.skips,
        }

    def load_state_dict(self, state: dict[str, Any], source: Path | str) -> None:
        """Restore everything from `state`; the configuration's optimizer settings win over the saved ones."""
        load_strictly(self.model, state["model"], source)
        load_strictly(self.ema, state["ema"], source)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(betas=self.config.betas, weight_decay=self.config.weight_decay)
        self.skips = state["skips"].to(self.device)
