"""Training on a packed store: the same run as on its pictures, and the same after a stop."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from malformed import noise
from PIL import Image, ImageDraw, ImageOps
from small_dataset import write_dataset
from tiny_runs import Pictures

from scsco_fast.data.packing import pack
from scsco_fast.errors import ScscoError
from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.engine import train
from scsco_fast.train.samples import build_dataset, fingerprint
from scsco_fast.train.verify import verify

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


def test_a_packed_training_can_be_verified(tiny: Tiny, store: Path) -> None:
    result = verify(tiny(dataset="packed", root=str(store), levels=5, lr=2e-4), 2)
    assert result.passed, result.text()


def test_a_resume_says_that_another_store_lies_at_its_place(
    tiny: Tiny, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(store, tmp_path / "store"))
    config = tiny(dataset="packed", root=str(place), steps=1)
    data = json.loads((train(config) / "config.json").read_text())["data"]
    assert data.startswith("10 packed composites, digest ")
    moved = dataclasses.replace(config, steps=2, resume=True, root=str(store))
    train(moved)  # the same store elsewhere
    assert "training data" not in capsys.readouterr().out
    shutil.rmtree(place)
    pack(other_pictures(tmp_path / "other"), place, "train", 32)
    train(dataclasses.replace(config, steps=3, resume=True))
    said = capsys.readouterr().out
    assert f"there were {data}, here are 10 packed composites, digest " in said
    assert said.count(data) == 1
    path = tmp_path / "run/checkpoints/last.pt"
    state = checkpoint.load_checkpoint(path)
    checkpoint.save_checkpoint(path, {name: value for name, value in state.items() if name not in ("format", "data")})
    train(dataclasses.replace(config, steps=4, resume=True))  # as an earlier version wrote it
    assert "training data" not in capsys.readouterr().out


def other_pictures(root: Path) -> Path:
    write_dataset(root, 10)
    for path in (root / "HCOCO/real_images").iterdir():
        ImageOps.invert(Image.open(path)).save(path)
    return root


def test_what_the_data_hold_decides_not_where_they_lie(tiny: Tiny, root: Path, tmp_path: Path) -> None:
    """For each kind: the same at another place, another where a picture, a mask or a name is another."""
    photos = tmp_path / "photos"
    (photos / "masks").mkdir(parents=True)
    for number in range(3):
        noise(number, (80, 80)).save(photos / f"{number}.png")
        disc(30).save(photos / "masks" / f"{number}.png")
    mask = "HCOCO/masks/c0_0.png"
    for folder, changed in ((root, mask), (photos, "masks/1.png")):
        copy = Path(shutil.copytree(folder, tmp_path / "copy" / folder.name))
        kinds = ("iharmony4",) if folder == root else ("synthetic", "composed")
        before = [
            fingerprint(build_dataset(tiny(dataset=kind, root=str(folder), photos=str(folder)))) for kind in kinds
        ]
        copied = [tiny(dataset=kind, root=str(copy), photos=str(copy)) for kind in kinds]
        assert [fingerprint(build_dataset(config)) for config in copied] == before
        assert len(set(before)) == len(kinds)
        disc(10, Image.open(copy / changed).size).save(copy / changed)
        assert not {fingerprint(build_dataset(config)) for config in copied} & set(before)
    assert fingerprint(Pictures()) is None


def disc(radius: int, size: tuple[int, int] = (80, 80)) -> Image.Image:
    picture = Image.new("L", size)
    ImageDraw.Draw(picture).ellipse((9, 9, 9 + radius, 9 + radius), 255)
    return picture


def test_a_store_of_another_size_is_refused(tiny: Tiny, store: Path) -> None:
    with pytest.raises(ScscoError, match=r"32x32 but size is 64; train with size 32, or .*--size 64"):
        train(tiny(dataset="packed", root=str(store), size=64))
    with pytest.raises(ScscoError, match="root is None"):
        tiny(dataset="packed")
