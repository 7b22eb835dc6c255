"""How a small output is best carried to full size: error against real pictures, protocol strict, at full resolution.

    python -m benchmarks.full_size DIR --model MODEL [--working-size N]

DIR is a data set kept as iHarmony4 is; only its pictures that are larger than the working size are used. Columns:

    affine     what `scsco harmonize` does: the change as a local affine transform of colours
    additive   the change, enlarged and added
    enlarged   the output itself, enlarged (bicubic)

Rows: the model's output, and a perfect one, the real picture at the working size, whose error is the method's alone.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import scsco_fast as sf
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.layouts import SPLITS
from scsco_fast.data.samples import Sample
from scsco_fast.evaluation.metrics import score
from scsco_fast.evaluation.protocols import protocol_named
from scsco_fast.evaluation.triplets import Triplets
from scsco_fast.nn.local_affine import fit_local_affine
from scsco_fast.nn.weights import load_model

METHODS = ("affine", "additive", "enlarged")


class Recorded(nn.Module):
    """A model, or None for a perfect one that knows the real picture, and what it gave last."""

    output: Tensor

    def __init__(self, model: sf.HarmonizationUNet | None, real: Tensor, working_size: int) -> None:
        super().__init__()
        self.model, self.real, self.working_size = model, real, working_size
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, composite: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        if self.model is not None:
            self.output = self.model(composite, mask, valid)
        else:
            small = F.interpolate(self.real[None], composite.shape[-2:], mode="bilinear", antialias=True)
            self.output = torch.lerp(composite, small, mask)
        return self.output


def outputs(model: sf.HarmonizationUNet | None, sample: Sample, working_size: int) -> dict[str, Tensor]:
    """The full-size output (3, H, W) of each method."""
    recorded = Recorded(model, sample.real, working_size)
    pixels, mask = sample.composite.permute(1, 2, 0).contiguous().numpy(), sample.mask[0].numpy()

    def run(network: nn.Module) -> Tensor:
        return torch.from_numpy(sf.harmonize(pixels, mask, network, working_size)).permute(2, 0, 1)  # type: ignore[arg-type]

    shift_only = partial(fit_local_affine, ridge=1e12)  # the matrix is 0
    # An affine head's own transform is what is used; a recorded network has none, and one is fitted.
    affine = run(model if model is not None and model.head == "affine" else recorded)
    with mock.patch.dict(sf.harmonize.__globals__, {"fit_local_affine": shift_only}):
        additive = run(recorded)
    size = sample.real.shape[1:]
    enlarged = F.interpolate(recorded.output.clamp(0, 1), size, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return {
        "affine": affine,
        "additive": additive,
        "enlarged": torch.lerp(sample.composite, enlarged, sample.mask),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--working-size", type=int, help="if not given, the model's own")
    options = parser.parse_args()
    model = load_model(options.model)
    working_size = options.working_size or model.working_size
    members = {member for split in SPLITS for member in IHarmony4(options.root, split, size=None).members}
    found: dict[tuple[str, str], list[float]] = {}
    triplets = Triplets(sorted(members), protocol_named("strict"), None)
    for sample in (triplets[index] for index in range(len(triplets))):
        if not isinstance(sample, Sample) or max(sample.real.shape) <= working_size:
            continue
        found.setdefault(("composite", ""), []).append(score(sample.composite, sample.real, sample.mask)["mse"])
        for name, network in (("model", model), ("perfect", None)):
            for method, output in outputs(network, sample, working_size).items():
                found.setdefault((name, method), []).append(score(output, sample.real, sample.mask)["mse"])
    if not found:
        raise SystemExit(f"{options.root}: holds no picture larger than {working_size} pixels")
    composite = found.pop(("composite", ""))
    print(f"{len(composite)} pictures, working size {working_size}, mean MSE at full resolution, protocol strict")
    print(f"composite {statistics.mean(composite):.2f}")
    for name in ("model", "perfect"):
        print(f"{name:>9} " + "  ".join(f"{method} {statistics.mean(found[name, method]):.2f}" for method in METHODS))


if __name__ == "__main__":
    main()
