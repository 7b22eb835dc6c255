"""Is the fast training the same training? Each step beside an exact one from the same state, against derived bounds."""

import csv
import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import scsco_fast
from scsco_fast.data.samples import Batch, PackedBatch
from scsco_fast.errors import ScscoError
from scsco_fast.style.negatives import WholeBatch
from scsco_fast.system.extras import require
from scsco_fast.system.files import write_durably
from scsco_fast.train.build import AUTOCAST, build_model, resolve
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.loader import boxes_of, build_loader
from scsco_fast.train.processes import Processes
from scsco_fast.train.samples import Samples, build_dataset
from scsco_fast.train.step import TrainingStep

STEPS = 20
FLOAT32 = torch.finfo(torch.float32).eps
# What differs between the configuration as it is and the one it is held against.
SWITCHES = ("compile", "cuda_graph", "style_crop", "channels_last")
PLAIN: dict[str, Any] = {"backend": "reference", **dict.fromkeys(SWITCHES, False)}
WEIGHTS, WEIGHT_NORM = "weights", "weight_norm"
Curves = dict[str, list[float]]  # a value for each step


class Check(NamedTuple):
    """One curve: how far the candidate and the reference are from the exact run, and how far the candidate may be."""

    name: str
    candidate: float
    reference: float
    allowed: float
    resolution: float

    @property
    def passed(self) -> bool:
        return self.candidate <= self.allowed <= self.resolution

    def line(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        bounds = f"(allowed {self.allowed:.1e}, reference {self.reference:.1e})"
        text = f"{verdict}  {self.name:22} {self.candidate:.1e} {bounds}"
        if self.allowed > self.resolution:
            text += f": the reference alone is so far off that {self.resolution:.0e} cannot be told"
        return text


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        checks: one for each loss term, the norm of the weights, and the weights.
        folder: differences.csv and differences.png, the curves behind them.
    """

    checks: list[Check]
    folder: Path

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def text(self) -> str:
        """A line for each check."""
        return "\n".join(check.line() for check in self.checks)


class _Side(TrainingStep):
    """A run that takes its negatives from the eager backend in float32 whatever its own are.

    Histogram matching moves pixels to other bins after other rounding, which says nothing about the training.
    """

    def _negatives(self, composite: Tensor, real: Tensor, mask: Tensor, whole: WholeBatch) -> Tensor:
        with scsco_fast.use_backend("eager"):
            whole = WholeBatch(whole.real.float(), whole.mask.float(), whole.first)
            return super()._negatives(composite.float(), real.float(), mask.float(), whole).to(real.dtype)


def verify(config: TrainConfig, steps: int = STEPS, dataset: Samples | None = None) -> Verification:
    """Do each step of a training in three ways from the same state, and compare every loss term and the weights.

    The exact run is float64 with the dense operations, whole pictures in the style encoder, no compilation. The
    reference has these and `config`'s precision; the candidate is `config` as it is. Before each step both take over
    the exact run's weights and moments: left alone, two runs that differ by rounding drift apart in whatever direction,
    as Adam makes whole steps of gradients that are nothing but rounding, and no bound could tell that from a mistake. A
    curve's error is ||curve - exact|| / ||exact|| over the steps, and the candidate passes where

        error <= 2 * (error of the reference, for a loss term the largest among the loss terms) + band
        band  = eps(precision) + log2(pixels) * eps(float32)                      for a loss term, as for an operation
        band  = eps(precision) * (largest relative step) + 2 * eps(float32)       for the weights, read and written

    and only where that bound is below sqrt(eps(precision)), half the digits: in a wider one a wrong result could hide,
    and the check fails and says so. Dropout is left out.

    Args:
        config: of a training run; its output folder's name with "-verify" added gets the curves.
        steps: how many.
        dataset: samples instead of those that `config` names.

    Raises:
        ScscoError: `steps` below 1, or what `train` refuses.
    """
    if steps < 1:
        raise ScscoError(f"{steps} steps cannot be compared; wanted at least 1")
    require("the plot of a comparison", "train", "matplotlib")
    candidate = dataclasses.replace(resolve(config, Processes()), dropout=False)
    reference = dataclasses.replace(candidate, **PLAIN)
    exact = dataclasses.replace(reference, precision="float32")
    configs = {"candidate": candidate, "reference": reference, "exact": exact}
    sides = {name: _build(side, torch.float64 if name == "exact" else torch.float32) for name, side in configs.items()}
    samples = build_dataset(candidate) if dataset is None else dataset
    batches = build_loader(samples, candidate, 0, torch.device(candidate.device), Processes())
    curves: dict[str, Curves] = {name: {} for name in sides}
    steps = min(steps, candidate.steps)
    moved = [_step(sides, batch, index, curves) for index, batch in zip(range(steps), batches, strict=False)]
    eps = torch.finfo(AUTOCAST.get(candidate.precision, torch.float32)).eps
    term_band = eps + 2 * math.log2(candidate.size) * FLOAT32
    checks = _checks(curves, term_band, eps * max(moved, default=0.0) + 2 * FLOAT32, math.sqrt(eps))
    folder = Path(f"{config.output}-verify")
    _write(folder, curves, checks)
    return Verification(checks, folder)


def _build(config: TrainConfig, dtype: torch.dtype) -> TrainingStep:
    model, loss, _ = build_model(config)
    return _Side(model.to(dtype), loss if dtype == torch.float32 or loss is None else loss.to(dtype), config)


def _step(sides: dict[str, TrainingStep], batch: Batch | PackedBatch, index: int, curves: dict[str, Curves]) -> float:
    """One step of every side from the exact one's state, added to the curves; how far the exact weights moved."""
    if not batch.names:
        return 0.0
    start = _vector(sides["exact"])
    for name in ("candidate", "reference"):
        _take_over(sides[name], sides["exact"])
    for name, side in sides.items():
        composite, real, mask = (x.to(side.parameters[0].dtype) for x in batch.to(side.device)[:3])
        with scsco_fast.use_backend(side.config.backend):
            side(composite, real, mask, index, boxes_of(batch))
        _note(curves[name], {term: value for term, value in side.read()["means"].items() if term != "grad_norm"})
    truth = _vector(sides["exact"])
    for name, side in sides.items():
        weights = _vector(side)
        _note(curves[name], {WEIGHT_NORM: _norm(weights), WEIGHTS: _norm(weights - truth) / _norm(truth)})
    return _norm(truth - start) / _norm(start)


@torch.no_grad()
def _take_over(run: TrainingStep, other: TrainingStep) -> None:
    """The other's weights and moments, rounded to the run's dtype."""
    for own, weight in zip(run.parameters, other.parameters, strict=True):
        own.copy_(weight)
        for name, moment in other.optimizer.state[weight].items():
            run.optimizer.state[own].setdefault(name, torch.empty_like(moment, dtype=own.dtype)).copy_(moment)


def _vector(run: TrainingStep) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in run.model.parameters()])


def _norm(values: Any) -> float:
    return float(torch.linalg.vector_norm(torch.as_tensor(values, dtype=torch.float64)))


def _note(curves: Curves, values: dict[str, float]) -> None:
    for name, value in values.items():
        curves.setdefault(name, []).append(value)


def _checks(curves: dict[str, Curves], term_band: float, weight_band: float, resolution: float) -> list[Check]:
    exact = curves["exact"]
    errors = {
        side: {name: _error(name, curves[side][name], truth) for name, truth in exact.items()}
        for side in ("candidate", "reference")
    }
    terms = [name for name in exact if name not in (WEIGHTS, WEIGHT_NORM)]
    # The reference is one draw of rounding errors: a term in which it is lucky says little about the term.
    shared = max(errors["reference"][name] for name in terms)
    checks = []
    for name in exact:
        candidate, reference = errors["candidate"][name], errors["reference"][name]
        allowed = 2 * shared + term_band if name in terms else 2 * reference + weight_band
        checks.append(Check(name, candidate, reference, allowed, math.inf if name == WEIGHTS else resolution))
    return checks


def _error(name: str, curve: list[float], truth: list[float]) -> float:
    """Relative; of the weights, the largest distance. NaN, which passes no check, where a value is not finite."""
    if name == WEIGHTS:
        return max(curve)
    difference = _norm([a - b for a, b in zip(curve, truth, strict=True)])
    return difference / _norm(truth) if _norm(truth) > 0 else difference


def _write(folder: Path, curves: dict[str, Curves], checks: list[Check]) -> None:
    """|value - exact| of every curve, step by step; the weights' is relative."""
    differences = {
        f"{side}_{name}": [abs(a - (0 if name == WEIGHTS else b)) for a, b in zip(curve, truth, strict=True)]
        for side in ("candidate", "reference")
        for name, truth in curves["exact"].items()
        for curve in [curves[side][name]]
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *(f"exact_{name}" for name in curves["exact"]), *differences])
    columns = [*curves["exact"].values(), *differences.values()]
    longest = max(len(column) for column in columns)
    for row in range(longest):  # the style terms have fewer values where `style_every` leaves steps out
        writer.writerow([row + 1, *(column[row] if row < len(column) else "" for column in columns)])
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "differences.csv", lambda file: file.write(text.getvalue().encode()))
    write_durably(folder / "differences.png", lambda file: _draw(differences, checks, file))


def _draw(differences: dict[str, list[float]], checks: list[Check], file: Any) -> None:
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(checks) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, check in zip(axes, checks, strict=False):
        for side in ("candidate", "reference"):
            values = [max(value, 1e-18) for value in differences[f"{side}_{check.name}"]]
            axis.semilogy(range(1, len(values) + 1), values, label=side)
        axis.set(title=f"{check.name}: {'pass' if check.passed else 'FAIL'}", xlabel="step")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("|value - exact|")
    figure.axes[0].legend()
    for axis in figure.axes[len(checks) :]:
        axis.set_visible(False)
    figure.savefig(file, format="png", dpi=100)
