"""A gate on counts that no machine changes: launches, operations, bytes, memory, waits and compiled resources.

    python -m scsco_fast.benchmarks.counts              # exit code 1 if a count is larger than in counts.csv
    python -m scsco_fast.benchmarks.counts --update     # write counts.csv
    python -m scsco_fast.benchmarks.counts --show CASE  # what a case consists of, by name

No GPU is needed: launches and memory are counted on meta tensors (`scsco_fast.benchmarks.counting`), what kernels load
and store in Triton's interpreter (`scsco_fast.benchmarks.traffic`). docs/regression-gate.md says what counts.
"""

import argparse
import csv
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast.benchmarks import traffic
from scsco_fast.benchmarks.counting import META, Account, accounting
from scsco_fast.errors import ScscoError
from scsco_fast.kernels import gate as gate_of_kernels
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.system.files import replacing
from scsco_fast.train.build import build_model
from scsco_fast.train.presets import PRESETS
from scsco_fast.train.step import TrainingStep

FILE = Path(__file__).with_name("counts.csv")
TABLE = Path(__file__).with_name("kernel_resources.csv")
COLUMNS = ("case", "quantity", "value")
ATTENTION_SIZES = (32, 64)
CHANNELS, SIZE = 64, 32  # of the maps that the operations are given

Counts = dict[tuple[str, str], int]  # by case and quantity


class Change(NamedTuple):
    """A count that is not the committed one; None where one of the two has none."""

    case: str
    quantity: str
    before: int | None
    after: int | None

    @property
    def grew(self) -> bool:
        return self.before is not None and self.after is not None and self.after > self.before

    def __str__(self) -> str:
        name = f"{self.case}: {self.quantity}"
        if self.before is None:
            return f"{name} is new: {self.after}"
        if self.after is None:
            return f"{name} is gone, was {self.before}"
        return f"{name} {'grew' if self.grew else 'shrank'} from {self.before} to {self.after}"


# --- what is counted --------------------------------------------------------------------------------------------------


def cases() -> dict[str, Callable[[], Account]]:
    """Every case by name, to be run one at a time."""
    found: dict[str, Callable[[], Account]] = {}
    # The eager backend's attention at the 256x256 of `paper` is 30,000 operations, and 17 s to count.
    for preset, backend in (("paper", "triton"), ("demo", "triton"), ("demo", "eager")):
        found[f"step {preset} {backend}"] = partial(step, preset, backend)
    for backend in ("triton", "eager", "reference"):
        for size in ATTENTION_SIZES:
            found[f"bain_attention {size} {backend}"] = partial(attention, size, backend)
    for backend in ("triton", "eager"):
        for name, operation in operations().items():
            found[f"{name} {backend}"] = partial(both_ways, operation, backend)
    return found


def step(preset: str, backend: str) -> Account:
    """One eager float32 training step of a preset with its style loss, after a first one.

    The host does what it does in training; the masks' boxes are fixed. Autocast is left out: meta tensors have none.
    """
    config = dataclasses.replace(PRESETS[preset], vgg_weights="random", device=str(META), precision="float32")
    batch, size = config.batch_size, config.size
    # A corner each, of a share of the side that goes from an eighth to a half over the batch.
    sides = [size * (batch + 3 * image) // (8 * batch) for image in range(batch)]
    boxes = torch.tensor([[0, 0, side, side] for side in sides])
    with warnings.catch_warnings(), accounting() as account, sf.use_backend(backend):
        warnings.filterwarnings("ignore", message="VGG-16 has RANDOM weights")
        model, loss, _ = build_model(config)
        training = TrainingStep(model, loss, config)
        training.__dict__["_autocast"] = nullcontext
        composite, real, mask = (torch.empty(batch, c, size, size, device=META) for c in (3, 3, 1))
        for index in (0, config.style_every):
            account.restart()
            training(composite, real, mask, index=index, boxes=boxes)
    return account


def attention(size: int, backend: str) -> Account:
    """`bain_attention` on (1, 64, size, size) maps, forward and backward."""
    mask = torch.empty(1, 1, size, size, device=META)
    maps = [leaf(1, CHANNELS, size, size) for _ in range(3)]
    return both_ways(lambda: sf.ops.bain_attention(maps[0], maps[1], maps[2], mask), backend)


def both_ways(operation: Callable[[], Tensor | tuple[Tensor, ...]], backend: str) -> Account:
    """Forward, and backward where there is a gradient. A tensor is in the peak from where it is made or first used."""
    with accounting() as account, sf.use_backend(backend):
        out = operation()
        outputs = [tensor for tensor in (out if isinstance(out, tuple) else (out,)) if tensor.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return account


def leaf(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, requires_grad=True)


def operations() -> dict[str, Callable[[], Tensor]]:
    """One call of every other operation on (2, 64, 32, 32) maps or (2, 3, 32, 32) pictures, with four others."""
    ops, mask = sf.ops, torch.empty(2, 1, SIZE, SIZE, device=META)

    def features() -> Tensor:
        return leaf(2, CHANNELS, SIZE, SIZE)

    def others() -> Tensor:
        return leaf(2, 4, CHANNELS, SIZE, SIZE)

    def gain() -> Tensor:
        return leaf(CHANNELS)

    def recoloured(method: str) -> Tensor:
        picture, reference = (torch.empty(2, 3, SIZE, SIZE, device=META) for _ in range(2))
        return ops.transfer_color(picture, reference, method, mask)

    def bain_norm() -> Tensor:
        gains = (gain(), gain(), gain(), gain())
        return ops.bain_norm(features(), features(), features(), features(), mask, *gains)

    found: dict[str, Callable[[], Tensor]] = {
        "region_norm": lambda: ops.region_norm(features(), mask, gain(), gain(), gain(), gain()),
        "bain_norm": bain_norm,
        "masked_gram": lambda: ops.masked_gram(features(), mask),
        "cross_gram": lambda: ops.cross_gram(features(), features()),
        "feature_distances": lambda: ops.feature_distances(features(), others()),
        "gram_distances": lambda: ops.gram_distances(features(), features(), others()),
    }
    return found | {f"transfer_color {method}": partial(recoloured, method) for method in TRANSFERS}


def compiled() -> Counts:
    """Of the committed table of compiled kernels: most registers and shared memory, and all spilled bytes.

    Raises:
        ScscoError: the table cannot be read.
    """
    try:
        rows = gate_of_kernels.read(TABLE)
    except ValueError as error:
        raise ScscoError(f"{error}; the gate runs in a checkout") from error
    counts: Counts = {}
    for row in rows:
        case = f"compiled {row.kernel} sm_{row.sm}"
        for quantity, value in (("registers", row.registers), ("shared_bytes", row.shared_bytes)):
            counts[case, quantity] = max(value, counts.get((case, quantity), 0))
        counts[case, "spilled_bytes"] = counts.get((case, "spilled_bytes"), 0) + row.spilled
    return counts


def count() -> Counts:
    """Every count of this checkout; about a minute on one core.

    Raises:
        ScscoError: Triton is not there or interprets, or a case cannot be counted.
    """
    counts: Counts = {}
    for case, run in cases().items():
        counts |= {(case, quantity): value for quantity, value in run().counts().items()}
    for case, quantities in traffic.count().items():
        counts |= {(case, quantity): value for quantity, value in quantities.items()}
    return counts | compiled()


# --- the file and the verdict -----------------------------------------------------------------------------------------


def version() -> str:
    """Of torch, as far as counts depend on it."""
    return ".".join(torch.__version__.split(".")[:2])


def write(counts: Counts, path: Path = FILE) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerow(("torch", "version", version()))
        writer.writerows((*name, value) for name, value in counts.items())


def read(path: Path = FILE) -> tuple[str, Counts]:
    """The version of torch, and the counts.

    Raises:
        ScscoError: the file cannot be read, or is none of `write`.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, first, *rest = list(csv.reader(file))
        if tuple(header) != COLUMNS or first[:2] != ["torch", "version"]:
            raise ValueError(f"wanted the columns {', '.join(COLUMNS)}")
        return first[2], {(case, quantity): int(value) for case, quantity, value in rest}
    except OSError as error:
        raise ScscoError(
            f"{path}: cannot be read ({error.strerror}); the gate runs in a checkout, --update writes it"
        ) from error
    except (ValueError, IndexError) as error:
        raise ScscoError(f"{path}: no file of counts ({error}); --update writes it anew") from error


def changes(before: Counts, after: Counts) -> list[Change]:
    """In the order of `after`, and what is gone last."""
    names = [*after, *(name for name in before if name not in after)]
    found = [Change(*name, before.get(name), after.get(name)) for name in names]
    return [change for change in found if change.before != change.after]


def other_torch(committed: str) -> str | None:
    """Why counts cannot be compared with those of another torch, or None."""
    if committed == version():
        return None
    return f"the counts are torch {committed}'s, this is {torch.__version__}: nothing is compared"


def gate(path: Path = FILE) -> int:
    """Print what changed and the verdict; the exit code: 1 if something grew, or is not in the file."""
    committed, before = read(path)
    reason = other_torch(committed)
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    found = changes(before, count())
    for change in found:
        print(change)
    worse = sum(change.grew or change.before is None for change in found)
    print(f"{len(before)} counts, {worse} grew or are new, {len(found) - worse} shrank or are gone")
    if found:
        print(f"where this is meant: python -m scsco_fast.benchmarks.counts --update, and commit {path.name}")
    return 1 if worse else 0


def show(case: str) -> Iterator[str]:
    """What a case consists of, the most frequent first.

    Raises:
        ScscoError: no such case.
    """
    known = cases()
    if case not in known:
        raise ScscoError(f"no case {case!r}; there are {', '.join(known)}")
    account = known[case]()
    for quantity, value in account.counts().items():
        yield f"{quantity:<12} {value:>18,}"
    for title, counter in (("kernel", account.launches), ("wait", account.waits), ("operation", account.operations)):
        for name, number in counter.most_common():
            yield f"{number:6} {title} {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--show", metavar="CASE", help="print what a case consists of")
    options = parser.parse_args()
    try:
        if options.show:
            print("\n".join(show(options.show)))
            return 0
        if options.update:
            write(count())
            return 0
        return gate()
    except ScscoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
