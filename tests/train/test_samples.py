"""Batches as worker processes hand them over, and how many of these there are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_dataset import write_dataset

from scsco_fast.data import iharmony4, layouts
from scsco_fast.data.photos import Photo
from scsco_fast.data.samples import BadSample, Batch, Sample, collate
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.synthetic import SyntheticComposites
from scsco_fast.train import loader as loader_module
from scsco_fast.train import samples as samples_module
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.loader import build_loader
from scsco_fast.train.processes import Processes
from scsco_fast.train.samples import build_preview

CPU = torch.device("cpu")


def item(name: str, size: int = 6) -> Sample:
    values = np.random.default_rng(len(name)).random((7, size, size), np.float32)
    composite, real, mask = torch.from_numpy(values).split([3, 3, 1])
    return Sample(composite, real, mask.round(), name, "part")


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(*pair) for pair in zip(one[:3], other[:3], strict=True)) and one[3:] == other[3:]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_is_stacked_in_shared_memory_is_the_same_batch(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [*[BadSample("x", "gone"), BadSample("y", "empty")][:bad], item("a"), item("bb")]
    here, none_here = collate(items), collate([BadSample("x", "gone")])
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)
    assert same(collate(items), here)
    assert same(collate([BadSample("x", "gone")]), none_here)
    assert torch.equal(here.composite, torch.stack([item("a").composite, item("bb").composite]))


def test_a_worker_process_stacks_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)
    batch = collate([item("a"), item("bb")])
    assert all(tensor.is_shared() for tensor in batch[:3])


def test_samples_of_different_sizes_are_refused_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)
    with pytest.raises(ScscoError, match=r"bb is 8x8 but a in the same batch is 6x6"):
        collate([item("a"), item("bb", 8)])


@pytest.mark.parametrize("workers", [None, 2])
def test_workers_make_the_batches_that_the_training_process_makes(
    workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(loader_module, "loader_workers", lambda device, sharing: asked.append((device, sharing)) or 2)
    labels = np.pad(np.ones((12, 12), np.uint16), 12)
    photos = [
        Photo(
            f"noise{seed}", np.random.default_rng(seed).integers(0, 256, (72, 72, 3), dtype=np.uint8), labels, ((1,),)
        )
        for seed in range(3)
    ]
    dataset = SyntheticComposites(photos, size=32, length=24, seed=0, augment=True)
    config = TrainConfig(steps=6, batch_size=4, workers=0)
    alone = list(build_loader(dataset, config, 2, CPU, Processes()))
    helped = list(build_loader(dataset, dataclasses.replace(config, workers=workers), 2, CPU, Processes()))
    assert len(alone) == len(helped) == 4
    assert all(same(*pair) for pair in zip(alone, helped, strict=True))
    assert asked == ([("cpu", 1)] if workers is None else [])


def test_the_preview_lists_the_test_part_once(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing the folders of iHarmony4 takes minutes on a network drive."""
    root = write_dataset(tmp_path / "data", 4)
    lines = (root / "IHD_train.txt").read_text().splitlines()
    (root / "IHD_test.txt").write_text("\n".join(lines[:3]))
    seen: list[str] = []

    def counted(folder: Path, split: str, **options: Any) -> layouts.Layout:
        seen.append(split)
        return layouts.find_layout(folder, split, **options)

    for module in (iharmony4, samples_module):
        monkeypatch.setattr(module, "find_layout", counted)
    assert len(build_preview(tiny(dataset="iharmony4", root=str(root))).names) == 3
    assert seen == ["test"]


def test_a_wrong_test_list_is_not_passed_over(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", 4)
    lines = (root / "IHD_train.txt").read_text().splitlines()
    (root / "IHD_test.txt").write_text(f"{lines[0]}\nHCOCO/elsewhere/c0_0_1.jpg\n")
    with pytest.raises(ScscoError, match="not in the layout"):
        build_preview(tiny(dataset="iharmony4", root=str(root)))
