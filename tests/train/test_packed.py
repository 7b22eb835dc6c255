"""Training on a packed store: the same run as on its pictures, and the same after a stop."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_dataset import write_dataset

from scsco_fast.data.packing import pack
from scsco_fast.errors import ScscoError
from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.engine import train

Tiny = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("train") / "data", 10)


@pytest.fixture(scope="module")
def store(root: Path) -> Path:
    (root / "IHD_test.txt").write_text((root / "IHD_train.txt").read_text())
    for split in ("train", "test"):
        pack(root, root.parent / "store", split, 32, records_per_shard=4)
    return root.parent / "store"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoint.load_checkpoint(folder / "checkpoints" / "last.pt")["training"]["model"]
    return state


def same(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_on_the_store_is_the_run_on_its_pictures(tiny: Tiny, root: Path, store: Path, tmp_path: Path) -> None:
    config = tiny(dataset="iharmony4", root=str(root), augment=False, steps=3, output=str(tmp_path / "raw"))
    raw = train(config)
    packed = train(dataclasses.replace(config, dataset="packed", root=str(store), output=str(tmp_path / "packed")))
    assert same(raw, packed)


def test_a_resumed_run_sees_the_same_crops(tiny: Tiny, store: Path, tmp_path: Path) -> None:
    """Five steps of four samples cross the end of an epoch of ten."""
    config = tiny(dataset="packed", root=str(store), steps=5, batch_size=4, output=str(tmp_path / "whole"))
    whole = train(dataclasses.replace(config, checkpoint_every=2))
    folder = Path(shutil.copytree(whole, tmp_path / "parts"))
    for file in ("last.pt", "step_0000004.pt"):
        (folder / "checkpoints" / file).unlink()
    train(dataclasses.replace(config, output=str(folder), resume=True))
    assert same(whole, folder)
    other = train(dataclasses.replace(config, augment=False, output=str(tmp_path / "other")))
    assert not same(whole, other)


def test_a_store_of_another_size_is_refused(tiny: Tiny, store: Path) -> None:
    with pytest.raises(ScscoError, match=r"32x32 but size is 64; train with size 32, or .*--size 64"):
        train(tiny(dataset="packed", root=str(store), size=64))
    with pytest.raises(ScscoError, match="root is None"):
        tiny(dataset="packed")
