"""One training step: forward, loss, backward, clipping, update, averaging; nothing is read back from the device."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.style.loss import SCSCoLoss
from scsco_fast.style.mosaic import Mosaic
from scsco_fast.style.negatives import WholeBatch, make_negatives
from scsco_fast.train.build import AUTOCAST, Objective, build_optimizer, parameter_groups
from scsco_fast.train.checkpoint import load_strictly
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.cuda_graph import CapturedPass, Tensors
from scsco_fast.train.means import RunningMeans
from scsco_fast.train.parts import Part, Pictures, cut
from scsco_fast.train.processes import Processes
from scsco_fast.train.schedules import ema_decay, learning_rate, step_seed
from scsco_fast.train.timer import StepTimer

# What torch.amp.GradScaler does by default, whose own code asks the device which steps were skipped.
FIRST_SCALE, SCALE_STEPS = 65536.0, 2000


class TrainingStep:
    """Model, averaged model, loss and optimizer, and the step that moves them.

    A step with a non-finite loss or gradient, on whichever process, changes neither weights, moments nor averages on
    any. The decision stays on the device: the fused Adam takes a flag (`found_inf`) and skips its update exactly,
    without the host reading anything.

    A step's batch is shared by the processes in order of rank, and by each in `config.accumulate` parts. Each part's
    losses weigh as many images as it has; the negatives are drawn for the whole batch. So however the batch is cut, the
    sums are those of one process with all of it.

    Args:
        model: in training mode, on its device; its dtype is the dtype of the update.
        loss: SCSCoLoss, or None where `config.style_weight` is 0: then only its reconstruction term is computed.
        config: learning rate, clipping, averaging, precision, compilation, negatives, seed, parts.
        processes: those of the run; None: this one alone.

    Examples:
        >>> config = TrainConfig(style_weight=0.0, base_channels=4, levels=5, size=32)
        >>> step = TrainingStep(HarmonizationUNet(**config.architecture()), None, config)
        >>> picture, mask = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
        >>> step(picture, picture * 0.9, mask, index=0)
        >>> sorted(step.read()["means"])
        ['grad_norm', 'reconstruction', 'total']
    """

    def __init__(
        self,
        model: HarmonizationUNet,
        loss: SCSCoLoss | None,
        config: TrainConfig,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.loss, self.config = model, loss, config
        self.processes = Processes() if processes is None else processes
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = build_optimizer(model, config)
        self.generator = torch.Generator()
        self.means, self.timer = RunningMeans(), StepTimer(self.device)
        # Steps skipped in all, steps skipped in a row, and the last one that was skipped (-1: none).
        self.skips = torch.tensor([0, 0, -1], device=self.device)
        # Of the last skipped step: 1 for each process whose own loss was not finite.
        self.culprits = torch.zeros(self.processes.world_size, device=self.device)
        # Float16's gradients are computed times `scale`, which halves at an overflow and doubles after steps without.
        self.scale = torch.tensor(FIRST_SCALE if config.precision == "float16" else 1.0, device=self.device)
        self.scaled_steps = torch.tensor(0, device=self.device)
        objective: Any = Objective(model, loss, config.reconstruction)
        if config.compile:
            objective = torch.compile(objective, fullgraph=True)
        self.objective = self.processes.wrap(objective, config.deterministic)
        self._captured: dict[tuple[Any, ...], CapturedPass] = {}

    def __call__(
        self,
        composite: Tensor,
        real: Tensor,
        mask: Tensor,
        index: int,
        boxes: Tensor | None = None,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Do step `index` (0-based) on pictures (B, 3, H, W) in [0, 1] and masks (B, 1, H, W) on the model's device.

        With `boxes`, the masks' `foreground_boxes` taken on the CPU, the style encoder leaves out what no mask reaches.
        `counts` holds the number of images that each process gives to this step, this one's B among them; B may be 0
        where another's is not. None: this process is alone.
        """
        self.timer.start()
        counts = [len(composite)] if counts is None else counts
        first, total = sum(counts[: self.processes.rank]), sum(counts)
        whole = None
        if self.loss is not None and index % self.config.style_every == 0:
            reals, masks = (self.processes.gather_rows(rows, counts) for rows in (real, mask))
            whole = WholeBatch(reals, masks, first)
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        parts = cut(len(composite), self.config.accumulate)
        for rows in parts:
            share = (rows.stop - rows.start) / total
            pictures = (composite[rows], real[rows], mask[rows], None if boxes is None else boxes[rows])
            # Only the last part's backward exchanges gradients with the other processes.
            with nullcontext() if rows is parts[-1] else self.processes.no_sync(self.objective):
                # Backward averages over the processes; the sum is wanted.
                weight = share * self.processes.world_size
                terms = self._pass(self._prepare(pictures, whole, first + rows.start, index), weight)
            losses = {name: share * term.detach() + losses.get(name, 0) for name, term in terms.items()}
        self._update(losses, index)
        self.timer.mark("optimizer")
        self.timer.end_step()

    def _prepare(self, pictures: Pictures, whole: WholeBatch | None, first: int, index: int) -> Part:
        """A part with its negatives and canvases, which are made outside the compiled or captured pass.

        `whole` is the batch of all processes, or None in a step without the style loss; `first` is the part's place in
        it. A process without images takes its place in the others' sums with one of zeros, whose weight is 0.
        """
        composite, real, mask, boxes = pictures
        if not len(composite):
            side = self.config.size
            composite, real, mask = (composite.new_zeros(1, channels, side, side) for channels in (3, 3, 1))
            boxes, whole = None, None if whole is None else WholeBatch(real, mask, 0)
            first = 0
        if whole is None:
            return Part(composite, real, mask, None, None)
        self.generator.manual_seed(step_seed(self.config.seed, index))
        negatives = self._negatives(composite, real, mask, whole._replace(first=first))
        with self._autocast():
            return Part(composite, real, mask, negatives, self._mosaic(mask, boxes))

    def _pass(self, part: Part, weight: float) -> dict[str, Tensor]:
        """Forward and backward, by a CUDA graph where the configuration wants one and the batch is whole; the terms."""
        if self.config.cuda_graph and len(part.composite) == self.config.batch_size:
            losses = self._replay(part, weight)
            self.timer.mark("forward")  # and backward: a graph is launched as a whole
            return losses
        losses = self._forward_backward(part, weight)
        self.timer.mark("backward")
        return losses

    def _forward_backward(self, part: Part, weight: float) -> dict[str, Tensor]:
        """Add the gradient of `weight` times the part's loss; its terms. Run at once, or captured in a CUDA graph."""
        with self._autocast():
            losses: dict[str, Tensor] = self.objective(*part)
        self.timer.mark("forward")
        (losses["total"] * weight * self.scale).backward()
        return losses

    def _replay(self, part: Part, weight: float) -> dict[str, Tensor]:
        """`_forward_backward` by a CUDA graph, captured at the first batch of these inputs' shapes."""
        inputs = part.tensors()
        key = tuple(None if tensor is None else tensor.shape for tensor in inputs)
        if key not in self._captured:

            def compute(tensors: Tensors, weight: float) -> dict[str, Tensor]:
                return self._forward_backward(part.with_tensors(tensors), weight)

            with self.timer.paused():
                self._captured[key] = CapturedPass(compute, self.parameters, inputs, weight)
        return self._captured[key](inputs)

    def _autocast(self) -> Any:
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _negatives(self, composite: Tensor, real: Tensor, mask: Tensor, whole: WholeBatch) -> Tensor:
        return make_negatives(real, composite, mask, self.config.negatives, self.generator, whole)

    def _mosaic(self, mask: Tensor, boxes: Tensor | None) -> Mosaic | None:
        """Where the style encoder computes; a compiled or captured step sees few sizes of canvases."""
        compiled = self.config.compile or self.config.cuda_graph
        parts = self.processes.world_size * self.config.accumulate
        if self.loss is None or (compiled and len(mask) * parts != self.config.batch_size):
            return None  # a batch that lost bad samples would have canvases of its own to compile for
        mosaic = self.loss.mosaic(boxes, mask.shape[-2], mask.shape[-1], fixed=compiled)
        if self.config.compile and mosaic is not None:
            mosaic.mark_static()
        return mosaic

    @torch.no_grad()
    def _update(self, losses: dict[str, Tensor], index: int) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.config.precision == "float16":
            torch._foreach_mul_(gradients, 1 / self.scale)
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        losses, culprits, finite = self._agree(losses, torch.isfinite(norm))
        applied = finite.float()

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, index) * group["share"]
        optimizer: Any = self.optimizer  # the two attributes are those that torch.amp.GradScaler sets
        optimizer.found_inf, optimizer.grad_scale = 1 - applied, None
        optimizer.step()

        self._average(1 - ema_decay(self.config, index), applied)
        self.means.add({**losses, "grad_norm": norm}, applied)
        all_skips, in_a_row, last = self.skips.unbind()
        skipped = (~finite).long()
        self.skips = torch.stack([all_skips + skipped, (in_a_row + 1) * skipped, torch.where(finite, last, index)])
        self.culprits = torch.where(finite, self.culprits, culprits)
        if self.config.precision == "float16":
            self._rescale(finite)

    def _agree(self, losses: dict[str, Tensor], finite: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The losses of the whole batch, which processes had one that is not finite, and whether all is finite."""
        own = torch.isfinite(losses["total"])
        if self.processes.world_size == 1:
            return losses, (~own).float().reshape(1), finite & own
        culprits = torch.zeros_like(self.culprits)
        culprits[self.processes.rank] = (~own).float()
        shared = torch.cat([torch.stack([*losses.values(), (~finite).to(losses["total"].dtype)]), culprits])
        shared = self.processes.all_reduce(shared)
        *terms, wrong = shared[: len(losses) + 1].unbind()
        finite = (wrong == 0) & torch.isfinite(terms[0])
        return dict(zip(losses, terms, strict=True)), shared[len(losses) + 1 :], finite

    def _rescale(self, finite: Tensor) -> None:
        """In place: a captured backward reads `scale`."""
        streak = torch.where(finite, self.scaled_steps + 1, 0)
        grown = torch.where(streak == SCALE_STEPS, 2 * self.scale, self.scale)
        self.scale.copy_(torch.where(finite, grown, 0.5 * self.scale))
        self.scaled_steps = streak % SCALE_STEPS

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
        precede; "last_skipped": the last skipped step, -1 if none; "culprits": the processes whose loss was not finite
        there; "scale": of float16's gradients; "milliseconds": of each phase, per step.
        """
        skipped, in_a_row, last = self.skips.tolist()
        return {
            "means": self.means.read(),
            "skipped": skipped,
            "in_a_row": in_a_row,
            "last_skipped": last,
            "culprits": [rank for rank, flag in enumerate(self.culprits.tolist()) if flag],
            "scale": self.scale.item(),
            "milliseconds": self.timer.read(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skips": self.skips,
            "scaler": {"scale": self.scale, "steps": self.scaled_steps} if self.config.precision == "float16" else None,
        }

    def load_state_dict(self, state: dict[str, Any], source: Path | str) -> None:
        """Restore everything from `state`; the configuration's optimizer settings win over the saved ones."""
        load_strictly(self.model, state["model"], source)
        load_strictly(self.ema, state["ema"], source)
        self.optimizer.load_state_dict(state["optimizer"])
        for group, wanted in zip(self.optimizer.param_groups, parameter_groups(self.model, self.config), strict=True):
            share = wanted["share"]
            group.update(betas=self.config.betas, weight_decay=self.config.weight_decay, share=share)
        self.skips = state["skips"].to(self.device)
        if self.config.precision == "float16" and state["scaler"] is not None:
            self.scale.copy_(state["scaler"]["scale"])
            self.scaled_steps = state["scaler"]["steps"].to(self.device)
