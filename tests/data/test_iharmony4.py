"""The official layout, its lists, and what is wrong with a sample, on small files made here."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.samples import BadSample, Sample, collate
from scsco_fast.errors import ScscoError

WIDE, HIGH = 40, 30


def square_mask() -> np.ndarray:
    mask = np.zeros((HIGH, WIDE), np.uint8)
    mask[10:20, 12:28] = 255
    return mask


def add(folder: Path, name: str, mask: np.ndarray | None = None, seed: int = 0, mask_mode: str = "RGB") -> str:
    """One triplet in a subset's folder; returns the composite's file name."""
    identity, number, _ = Path(name).stem.rsplit("_", 2)
    real = np.random.default_rng(seed).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)
    mask = square_mask() if mask is None else mask
    composite = np.where(square_mask()[:, :, None] > 127, real // 2, real)
    for part in ("composite_images", "masks", "real_images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    suffix = Path(name).suffix
    Image.fromarray(composite).save(folder / "composite_images" / name, quality=100)
    Image.fromarray(mask).convert(mask_mode).save(folder / "masks" / f"{identity}_{number}.png")
    Image.fromarray(real).save(folder / "real_images" / f"{identity}{suffix}", quality=100)
    return name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two subsets, three samples, the lists at the root; a folder name with underscores must not matter."""
    root = tmp_path / "my_i_harmony_4"
    names = ["HCOCO/composite_images/" + add(root / "HCOCO", name) for name in ("c10_1396052_1.png", "c11_2_1.png")]
    names.append("Hday2night/composite_images/" + add(root / "Hday2night", "d90000005-2_1_10.png"))
    (root / "IHD_train.txt").write_text("\n".join(names) + "\n\n")
    (root / "IHD_test.txt").write_bytes(b"\xef\xbb\xbf" + names[0].replace("/", "\\").encode() + b"\r\n")
    return root


def good(item: Sample | BadSample) -> Sample:
    assert isinstance(item, Sample), item
    return item


def bad(item: Sample | BadSample) -> BadSample:
    assert isinstance(item, BadSample)
    assert "\n" not in item.reason
    return item


def test_official_lists(root: Path) -> None:
    dataset = IHarmony4(root, "train", size=None)
    items = [good(item) for item in dataset]
    assert [item.name for item in items] == ["c10_1396052_1.png", "c11_2_1.png", "d90000005-2_1_10.png"]
    assert [item.subset for item in items] == ["HCOCO", "HCOCO", "Hday2night"]
    assert dataset.missing == []
    first = items[0]
    assert first.composite.shape == first.real.shape == (3, HIGH, WIDE)
    real = np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.rint(first.real.numpy() * 255), real.transpose(2, 0, 1))
    np.testing.assert_array_equal(first.mask[0].numpy() * 255, square_mask())
    background = first.mask == 0
    torch.testing.assert_close(first.composite * background, first.real * background)


def test_list_with_windows_line_ends(root: Path) -> None:
    assert [item.name for item in map(good, IHarmony4(root, "test"))] == ["c10_1396052_1.png"]


def test_lists_in_the_subset_folders(root: Path) -> None:
    (root / "IHD_train.txt").unlink()
    (root / "HCOCO" / "HCOCO_train.txt").write_text("c11_2_1.png\n")
    (root / "Hday2night" / "Hday2night_train.txt").write_text("d90000005-2_1_10.png\n")
    names = [(good(item).name, good(item).subset) for item in IHarmony4(root, "train")]
    assert names == [("c11_2_1.png", "HCOCO"), ("d90000005-2_1_10.png", "Hday2night")]


def test_root_may_be_one_subset(root: Path) -> None:
    (root / "HCOCO" / "HCOCO_test.txt").write_text("c11_2_1.png\n")
    moved = (root / "HCOCO").rename(root / "renamed")
    item = good(IHarmony4(moved, "test")[0])
    assert (item.name, item.subset) == ("c11_2_1.png", "HCOCO")


def test_subsets_are_chosen(root: Path) -> None:
    assert [good(item).subset for item in IHarmony4(root, subsets=["Hday2night"])] == ["Hday2night"]
    with pytest.raises(ScscoError, match="'HFlickr' is not in the list; it has HCOCO, Hday2night"):
        IHarmony4(root, subsets=["HFlickr"])


def test_resized_picture_is_pils_antialiased_bilinear_and_mask_is_nearest(root: Path) -> None:
    item = good(IHarmony4(root, "train", size=16)[0])
    path = root / "HCOCO" / "composite_images" / "c10_1396052_1.png"
    wanted = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.rint(item.composite.numpy() * 255), wanted.transpose(2, 0, 1))
    nearest = square_mask()[np.ix_((np.arange(16) * 2 + 1) * HIGH // 32, (np.arange(16) * 2 + 1) * WIDE // 32)]
    np.testing.assert_array_equal(item.mask[0].numpy(), nearest > 127)


def test_soft_mask_is_thresholded_at_127_before_it_is_resized(tmp_path: Path) -> None:
    mask = np.full((HIGH, WIDE), 127, np.uint8)
    mask[10:20, 12:28] = 128
    add(tmp_path, "c1_1_1.png", mask)
    (tmp_path / "HCOCO_train.txt").write_text("c1_1_1.png")
    item = good(IHarmony4(tmp_path, size=None)[0])
    np.testing.assert_array_equal(item.mask[0].numpy(), square_mask() > 127)
    assert set(np.unique(good(IHarmony4(tmp_path, size=16)[0]).mask)) == {0.0, 1.0}


@pytest.mark.parametrize("mode", ["L", "RGBA", "1", "P"])
def test_mask_modes_that_tools_leave_behind(tmp_path: Path, mode: str) -> None:
    add(tmp_path, "c1_1_1.png", mask_mode=mode)
    (tmp_path / "HCOCO_train.txt").write_text("c1_1_1.png")
    np.testing.assert_array_equal(good(IHarmony4(tmp_path, size=None)[0]).mask[0].numpy() * 255, square_mask())


def test_mask_and_real_picture_with_other_suffixes_are_found(tmp_path: Path) -> None:
    add(tmp_path, "c1_1_1.jpg")
    Image.open(tmp_path / "masks" / "c1_1.png").save(tmp_path / "masks" / "c1_1.jpg", quality=100)
    Image.open(tmp_path / "real_images" / "c1.jpg").save(tmp_path / "real_images" / "c1.png")
    (tmp_path / "masks" / "c1_1.png").unlink()
    (tmp_path / "real_images" / "c1.jpg").unlink()
    (tmp_path / "HCOCO_train.txt").write_text("c1_1_1.jpg")
    np.testing.assert_array_equal(good(IHarmony4(tmp_path, size=None)[0]).mask[0].numpy() * 255, square_mask())


def test_missing_members_are_counted_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "HCOCO" / "masks" / "c10_1396052.png").unlink()
    (root / "Hday2night" / "real_images" / "d90000005-2.png").unlink()
    with caplog.at_level(logging.WARNING, "scsco_fast"):
        dataset = IHarmony4(root, "train")
    assert len(dataset) == 1
    assert len(dataset.missing) == 2
    assert "2 of 3" in caplog.text
    assert "c10_1396052.png" in caplog.text
    assert "d90000005-2.png" in caplog.text
    (root / "HCOCO" / "composite_images" / "c11_2_1.png").unlink()
    with pytest.raises(ScscoError, match=r"none of the train list's entries is complete.*c10_1396052.png"):
        IHarmony4(root, "train")


def shrink(path: Path) -> None:
    Image.open(path).resize((20, 20)).save(path)


def fill(value: int, path: Path) -> None:
    Image.new("L", (WIDE, HIGH), value).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("part", "file", "damage", "said"),
    [
        ("masks", "c10_1396052.png", shrink, "20x20.*40x30"),
        ("masks", "c10_1396052.png", lambda path: fill(0, path), "mask is empty"),
        ("masks", "c10_1396052.png", lambda path: fill(100, path), r"mask is empty.*the largest is 100"),
        ("masks", "c10_1396052.png", lambda path: fill(255, path), "mask is full"),
        ("masks", "c10_1396052.png", truncate, "damaged"),
        ("real_images", "c10.png", shrink, "20x20.*40x30"),
        ("real_images", "c10.png", lambda path: path.write_bytes(b""), "0 bytes"),
        ("composite_images", "c10_1396052_1.png", truncate, "damaged"),
        ("composite_images", "c10_1396052_1.png", lambda path: path.write_text("no"), "not a picture"),
    ],
)
def test_bad_sample_names_its_file_and_the_others_go_on(
    root: Path, part: str, file: str, damage: object, said: str
) -> None:
    path = root / "HCOCO" / part / file
    damage(path)
    dataset = IHarmony4(root, "train")
    item = bad(dataset[0])
    assert item.name == "c10_1396052_1.png"
    assert path.name in item.reason
    with pytest.raises(ScscoError, match=said):
        raise ScscoError(item.reason)
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate)))
    assert batch.names == ["c11_2_1.png", "d90000005-2_1_10.png"]
    assert batch.bad == [item]


def test_mask_that_vanishes_at_the_working_size_is_bad(tmp_path: Path) -> None:
    mask = np.zeros((HIGH, WIDE), np.uint8)
    mask[0, 0] = 255
    add(tmp_path, "c1_1_1.png", mask)
    (tmp_path / "HCOCO_train.txt").write_text("c1_1_1.png")
    assert "empty at 4x4" in bad(IHarmony4(tmp_path, size=4)[0]).reason
    assert good(IHarmony4(tmp_path, size=None)[0]).mask.sum() == 1


def test_augmentation_is_a_function_of_seed_and_index(root: Path) -> None:
    def draw(seed: int, index: int) -> torch.Tensor:
        return good(IHarmony4(root, size=16, augment=True, seed=seed)[index]).composite

    torch.testing.assert_close(draw(0, 4), draw(0, 4), rtol=0, atol=0)
    assert not torch.equal(draw(0, 1), draw(0, 4))  # the same sample one pass later
    assert not torch.equal(draw(0, 1), draw(1, 1))
    plain = IHarmony4(root, size=16)
    assert good(plain[4]).name == good(plain[1]).name
    assert torch.equal(good(plain[4]).composite, good(plain[1]).composite)


def test_crop_keeps_its_share_and_cuts_all_three_alike(root: Path) -> None:
    dataset = IHarmony4(root, size=None, augment=True)
    shapes, flipped = set(), 0
    for index in range(0, 120, 3):
        item = good(dataset[index])
        shapes.add(item.mask.shape)
        assert item.mask[0].numel() >= 0.7 * WIDE * HIGH
        outside = item.mask == 0
        assert torch.equal(item.composite * outside, item.real * outside)
        inside = (item.mask == 1).expand(3, -1, -1)
        halved = torch.floor(item.real[inside] * 255 / 2 + 1e-3)
        torch.testing.assert_close(item.composite[inside] * 255, halved, rtol=0, atol=1e-3)
        # The square is left of the middle by two pixels at most; what flips is the picture beside it.
        full = np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)
        row = np.rint(item.real[0, 0].numpy() * 255)
        flipped += not any(
            np.array_equal(row, full[y, x : x + len(row), 0]) for y in range(HIGH) for x in range(WIDE - len(row) + 1)
        )
    assert len(shapes) > 5
    assert 5 < flipped < 35


@pytest.mark.parametrize(
    ("line", "said"),
    [("HCOCO/composite_images/c1.jpg", "ID_M_K"), ("HCOCO/c1_1_1.jpg", "layout"), ("/a/b/c/c1_1_1.jpg", "layout")],
)
def test_malformed_list_is_refused_with_its_line(root: Path, line: str, said: str) -> None:
    (root / "IHD_train.txt").write_text(f"\n{line}\n")
    with pytest.raises(ScscoError, match=said) as caught:
        IHarmony4(root)
    assert "IHD_train.txt:2" in str(caught.value)


def test_wrong_arguments_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match="no such folder"):
        IHarmony4(tmp_path / "nowhere")
    with pytest.raises(ScscoError, match=r"no list of train pictures; IHD_train\.txt is wanted"):
        IHarmony4(tmp_path)
    with pytest.raises(ScscoError, match="split 'val' is unknown"):
        IHarmony4(root, "val")
    with pytest.raises(ScscoError, match="size 0"):
        IHarmony4(root, size=0)
    with pytest.raises(ScscoError, match="seed -1"):
        IHarmony4(root, seed=-1)
    (root / "IHD_train.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ScscoError, match="cannot be read as a list"):
        IHarmony4(root)
