"""Every way in which a data set lies on disk is found and named; what its lists get wrong is reported."""

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from scsco_fast.data.check import check_dataset
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.layouts import Layout, find_layout, listed_splits
from scsco_fast.data.packing import pack
from scsco_fast.errors import ScscoError

NAMES = ("c10_1396052_1.jpg", "c11_2_1.jpg", "d90000005-2_1_10.jpg")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def add(folder: Path, name: str, parts: tuple[str, str, str] = ("composite_images", "masks", "real_images")) -> None:
    identity, number, _ = name.removesuffix(".jpg").rsplit("_", 2)
    files = (name, f"{identity}_{number}.png", f"{identity}.jpg")
    touch(*(folder / part / file for part, file in zip(parts, files, strict=True)))


def official(root: Path) -> None:
    for name in NAMES:
        add(root / ("HCOCO" if name[0] == "c" else "Hday2night"), name)


def merged(root: Path) -> None:
    for name in NAMES:
        add(root, name)


def one_folder(root: Path) -> None:
    for name in NAMES:
        add(root, name, (".", ".", "."))


def equal_names(root: Path) -> None:
    for name in NAMES:
        touch(root / "composite" / name, root / "mask" / name.replace(".jpg", ".png"), root / "real" / name)


def full_lines() -> list[str]:
    return [f"{'HCOCO' if name[0] == 'c' else 'Hday2night'}/composite_images/{name}" for name in NAMES]


def ihd_list(root: Path) -> None:
    (root / "IHD_test.txt").write_text("\n".join(full_lines()))


def bare_list(root: Path) -> None:
    (root / "test.txt").write_text("\n".join(NAMES))


def full_list(root: Path) -> None:
    (root / "test.txt").write_text("\n".join(full_lines()))


def jsonl(root: Path) -> None:
    (root / "test.jsonl").write_text("\n".join(json.dumps({"file_name": line, "text": ""}) for line in full_lines()))


def subset_lists(root: Path) -> None:
    (root / "HCOCO" / "HCOCO_test.txt").write_text("\n".join(NAMES[:2]))
    (root / "Hday2night" / "Hday2night_test.txt").write_text(NAMES[2])


def no_list(root: Path) -> None:
    pass


def names_of(layout: Layout) -> list[str]:
    return [member.composite.name for member in layout.members]


@pytest.mark.parametrize(
    ("files", "lists", "dialect"),
    [
        (official, ihd_list, "IHD_test.txt; composite_images, masks, real_images"),
        (official, full_list, "test.txt; composite_images, masks, real_images"),
        (official, bare_list, "test.txt; composite_images, masks, real_images"),
        (official, jsonl, "test.jsonl; composite_images, masks, real_images"),
        (
            official,
            subset_lists,
            "lists of the subsets (HCOCO_test.txt, Hday2night_test.txt); composite_images, masks, real_images",
        ),
        (official, no_list, "no list; composite_images, masks, real_images"),
        (merged, ihd_list, "IHD_test.txt; composite_images, masks, real_images"),
        (merged, bare_list, "test.txt; composite_images, masks, real_images"),
        (merged, no_list, "no list; composite_images, masks, real_images"),
        (one_folder, bare_list, "test.txt; all files in one folder"),
        (equal_names, bare_list, "test.txt; composite, mask, real with equal names"),
        (equal_names, no_list, "no list; composite, mask, real with equal names"),
    ],
)
def test_each_dialect_is_read_and_said(
    tmp_path: Path,
    files: Callable[[Path], None],
    lists: Callable[[Path], None],
    dialect: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files(tmp_path)
    lists(tmp_path)
    layout = find_layout(tmp_path, "test")
    assert names_of(layout) == list(NAMES)
    assert layout.dialect == dialect
    assert (layout.missing, layout.malformed, layout.repeated, layout.shared) == ([], [], [], [])
    for member in layout.members:
        assert member.real is not None
        assert all(path.is_file() for path in (member.composite, member.mask, member.real))
    if files is not equal_names:
        assert [member.subset for member in layout.members] == ["HCOCO", "HCOCO", "Hday2night"]
    assert layout.listed == (lists is not no_list)
    with caplog.at_level(logging.INFO, "scsco_fast"):
        layout.log()
    assert f"{dialect}: 3 test samples" in caplog.text
    assert ("train and test are the same" in caplog.text) == (lists is no_list)


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    merged(tmp_path / "train")
    equal_names(tmp_path / "test")
    assert find_layout(tmp_path, "train").dialect == "the folder train; composite_images, masks, real_images"
    assert find_layout(tmp_path, "test").dialect == "the folder test; composite, mask, real with equal names"
    assert listed_splits(tmp_path) == ["train", "test"]


def test_real_pictures_may_be_absent_only_where_none_are_needed(tmp_path: Path) -> None:
    equal_names(tmp_path)
    for path in (tmp_path / "real").iterdir():
        path.unlink()
    layout = find_layout(tmp_path, "test", real_required=False)
    assert [member.real for member in layout.members] == [None, None, None]
    assert len(find_layout(tmp_path, "test").missing) == 3
    with pytest.raises(ScscoError, match=r"none of the test .* is complete.*real"):
        IHarmony4(tmp_path, "test")


def test_the_official_list_goes_before_the_others(tmp_path: Path) -> None:
    official(tmp_path)
    for lists in (jsonl, bare_list, subset_lists):
        lists(tmp_path)
    (tmp_path / "IHD_test.txt").write_text(full_lines()[1])
    assert names_of(find_layout(tmp_path, "test")) == [NAMES[1]]


def test_entries_listed_twice_are_used_once_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    official(tmp_path)
    (tmp_path / "IHD_train.txt").write_text("\n".join([*full_lines(), full_lines()[1]]))
    with caplog.at_level(logging.WARNING, "scsco_fast"):
        layout = find_layout(tmp_path, "train")
        layout.log()
    assert names_of(layout) == list(NAMES)
    assert layout.repeated == [str(tmp_path / full_lines()[1])]
    assert "1 train entries are listed more than once and used once" in caplog.text


def test_entries_of_both_lists_are_reported_from_either_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    official(tmp_path)
    (tmp_path / "IHD_train.txt").write_text("\n".join(full_lines()[:2]))
    (tmp_path / "IHD_test.txt").write_text("\n".join(full_lines()[1:]))
    for split in ("train", "test"):
        layout = find_layout(tmp_path, split)
        assert layout.shared == [str(tmp_path / full_lines()[1])]
    layout.log()
    assert f"1 entries are in the list of train and of test: {layout.shared[0]}" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        "HCOCO/c1_1_1.jpg",
        "/etc/composite_images/c1_1_1.jpg",
        "../composite_images/c1_1_1.jpg",
        "a/b/c/composite_images/c1_1_1.jpg",
        "composite_images/",
        "c1_1.jpg",
        "c1_1_1",
        "..",
        '{"text": "no name"}',
        "c1_1_1\0.jpg",
        "composite_images",
    ],
)
def test_lines_that_name_no_composite_are_listed_with_their_place(tmp_path: Path, line: str) -> None:
    official(tmp_path)
    good = full_lines()[0]
    for file, first in (("IHD_test.txt", good), ("test.jsonl", json.dumps({"file_name": good}))):
        (tmp_path / file).write_text(f"{first}\n{line}\n")
        layout = find_layout(tmp_path, "test")
        assert names_of(layout) == [NAMES[0]]
        assert [text.split(": ")[0] for text in layout.malformed] == [f"{tmp_path / file}:2"]
        with pytest.raises(ScscoError, match=rf"{file}:2: "):
            IHarmony4(tmp_path, "test")
        (tmp_path / file).unlink()


def test_the_other_splits_list_is_not_taken_for_no_list(tmp_path: Path) -> None:
    official(tmp_path)
    ihd_list(tmp_path)
    with pytest.raises(ScscoError, match=r"IHD_train\.txt is wanted there \(the other split has one\)"):
        find_layout(tmp_path, "train")


def lists_of(root: Path) -> list[Path]:
    files = ("IHD_train.txt", "train.txt", "train.jsonl", "HCOCO/HCOCO_train.txt")
    return [root / file for file in files]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("text", ["", "\n \n\t\r\n"])
def test_an_empty_list_is_refused_by_whoever_reads_it(tmp_path: Path, number: int, text: str) -> None:
    official(tmp_path)
    lists_of(tmp_path)[number].write_text(text)
    layout = find_layout(tmp_path, "train")
    assert (layout.members, layout.listed) == ([], True)
    told = rf"list of train pictures is empty \(.*{lists_of(tmp_path)[number].name}.*\); a line for each composite"
    for read in (IHarmony4, partial(pack, store=tmp_path / "store")):
        with pytest.raises(ScscoError, match=told):
            read(tmp_path, split="train")
    problems = check_dataset(tmp_path, tmp_path / "journal.jsonl").problems
    assert [problem.reason for problem in problems if problem.kind == "list"] == [layout.no_sample()]


def test_an_empty_folder_of_a_split_is_an_empty_list(tmp_path: Path) -> None:
    merged(tmp_path / "test")
    (tmp_path / "train/composite_images").mkdir(parents=True)
    with pytest.raises(ScscoError, match=r"list of train pictures is empty \(the folder train\)"):
        IHarmony4(tmp_path, "train")


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("link", [False, True])
def test_a_folder_or_a_dead_link_is_no_list_and_nothing_stands_in_for_it(
    tmp_path: Path, number: int, link: bool
) -> None:
    official(tmp_path)
    path = lists_of(tmp_path)[number]
    if link:
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    told = f"{path}: is {'no file' if link else 'a folder'}; a list of file names is wanted"
    for read in (IHarmony4, partial(pack, store=tmp_path / "store")):
        with pytest.raises(ScscoError) as caught:
            read(tmp_path, split="train")
        assert str(caught.value) == told
    problems = check_dataset(tmp_path, tmp_path / "journal.jsonl").problems
    assert [problem.reason for problem in problems if problem.kind == "list"] == [told]


def test_a_loop_of_links_is_missing_not_followed(tmp_path: Path) -> None:
    (tmp_path / "composite").mkdir()
    os.symlink("mask", tmp_path / "mask")
    touch(tmp_path / "composite" / "a.jpg")
    assert find_layout(tmp_path, "test").missing == [f"{tmp_path / 'mask' / 'a.png'}: no such file"]


def test_real_triplets() -> None:
    root = os.environ.get("SCSCO_REAL_DATA")
    if root is None:
        pytest.skip("needs real triplets in the folder that SCSCO_REAL_DATA names")
    layout = find_layout(root, "test")
    assert layout.members
    assert layout.missing == []
