"""Folders: which mask belongs to which picture, what is skipped, what fails, processes, the report."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.folders import Entry, FolderReport, find_pairs, harmonize_folder
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import save_model

SIZE = (40, 50)  # height, width


def save_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(30, 220, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = np.zeros(SIZE, dtype=np.uint8)
    inside[10:30, 10:40] = 255
    Image.fromarray(inside).convert("RGB").save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/a.png, images/x-1_1_2.jpg and their masks, the second named as iHarmony4 does."""
    save_picture(tmp_path / "images/a.png")
    save_picture(tmp_path / "images/x-1_1_2.jpg")
    save_mask(tmp_path / "masks/a.png")
    save_mask(tmp_path / "masks/x-1_1.png")
    return tmp_path


def run(folder: Path, model: HarmonizationUNet, **options) -> FolderReport:
    return harmonize_folder(folder / "images", folder / "masks", folder / "out", model, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder(folder: Path, small_model: HarmonizationUNet) -> None:
    told: list[tuple[Entry, int, int]] = []
    report = run(folder, small_model, progress=lambda *what: told.append(what))
    assert report.failed == {}
    assert [path.name for path in report.written] == ["a.png", "x-1_1_2.jpg"]
    assert told == [(entry, index + 1, 2) for index, entry in enumerate(report.entries)]
    assert names(folder / "out") == ["a.png", "report.json", "x-1_1_2.jpg"]
    written = json.loads((folder / "out/report.json").read_text())
    assert {key: written[key] for key in ("pictures", "done", "skipped", "failed", "not_reached")} == {
        **{"pictures": 2, "done": 2, "skipped": 0, "failed": 0, "not_reached": 0}
    }
    first = written["files"][0]
    assert (first["width"], first["height"], first["status"], first["message"]) == (50, 40, "done", "")
    assert first["image"] == str(folder / "images/a.png")
    assert first["mask"] == str(folder / "masks/a.png")
    assert first["seconds"] > 0


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["images/a.jpg", "masks/a.png"], {"a.jpg": "masks/a.png"}),
        (
            ["images/a.jpg", "masks/a_mask.png", "images/b.png", "masks/b-mask.jpg"],
            {"a.jpg": "masks/a_mask.png", "b.png": "masks/b-mask.jpg"},
        ),
        (["composite_images/c1_2_3.jpg", "masks/c1_2.png", "real_images/c1.jpg"], {"c1_2_3.jpg": "masks/c1_2.png"}),
        (["composite/a.jpg", "mask/a.png", "real/a.jpg"], {"a.jpg": "mask/a.png"}),
        (
            ["a.jpg", "a_mask.png", "b.png", "b-mask.png", "c.tif", "c.mask.png", "d.png", "d_m.png"],
            {"a.jpg": "a_mask.png", "b.png": "b-mask.png", "c.tif": "c.mask.png", "d.png": "d_m.png"},
        ),
        (["cat_m.jpg", "cat_m_mask.png"], {"cat_m.jpg": "cat_m_mask.png"}),
        (["a.jpg", ".a.12.tmp.jpg", "a_mask.png", "dog_mask.png", "notes.txt"], {"a.jpg": "a_mask.png"}),
        (["a.jpg", "b.jpg", "b_mask.png"], {"a.jpg": None, "b.jpg": "b_mask.png"}),
        (["images/a.jpg", "masks/a.png", "masks/a_mask.png"], {"a.jpg": "masks/a.png"}),
        (["images/a.jpg", "masks/a.png", "masks/a.jpg"], {"a.jpg": None}),
    ],
)
def test_layouts(files: list[str], wanted: dict[str, str | None], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pairs = find_pairs(tmp_path)
    found = {p.image.name: None if p.mask is None else str(p.mask.relative_to(tmp_path)) for p in pairs}
    assert found == wanted
    assert all(bool(pair.reason) == (pair.mask is None) for pair in pairs)


def test_a_picture_is_never_its_own_mask(tmp_path: Path) -> None:
    for name in ("a.jpg", "a_mask.png"):
        (tmp_path / name).touch()
    assert [(p.image.name, p.mask and p.mask.name) for p in find_pairs(tmp_path, tmp_path)] == [("a.jpg", "a_mask.png")]


def test_alpha_masks(tmp_path: Path, small_model: HarmonizationUNet) -> None:
    save_picture(tmp_path / "images/a.png")
    save_mask(tmp_path / "mask.png")
    with Image.open(tmp_path / "images/a.png") as image, Image.open(tmp_path / "mask.png") as mask:
        image.putalpha(mask.convert("L"))
        image.save(tmp_path / "images/a.png")
    report = harmonize_folder(tmp_path / "images", None, tmp_path / "out", small_model, alpha_mask=True)
    assert [path.name for path in report.written] == ["a.png"]
    assert Image.open(tmp_path / "out/a.png").mode == "RGBA"


def test_another_format(folder: Path, small_model: HarmonizationUNet) -> None:
    report = run(folder, small_model, suffix=".png")
    assert [path.name for path in report.written] == ["a.png", "x-1_1_2.png"]
    save_picture(folder / "images/a.tif")
    report = run(folder, small_model, suffix=".png", overwrite=True)
    assert [path.name for path in report.failed] == ["a.tif"]
    assert "is taken by a.png" in report.failed[folder / "images/a.tif"]


def test_what_is_there_is_skipped(folder: Path, small_model: HarmonizationUNet) -> None:
    (folder / "out").mkdir()
    (folder / "out/a.png").write_bytes(b"complete")
    (folder / "out/x-1_1_2.jpg").write_bytes(b"")  # what a power cut may leave
    report = run(folder, small_model)
    assert [path.name for path in report.skipped] == ["a.png"]
    assert [path.name for path in report.written] == ["x-1_1_2.jpg"]
    assert (folder / "out/a.png").read_bytes() == b"complete"
    report = run(folder, small_model, overwrite=True)
    assert len(report.written) == 2
    assert Image.open(folder / "out/a.png").size == (50, 40)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_do_not_stop_the_others(workers: int, folder: Path, small_model: HarmonizationUNet) -> None:
    (folder / "images/broken.png").write_bytes((folder / "images/a.png").read_bytes()[:300])
    save_mask(folder / "masks/broken.png")
    (folder / "images/text.jpg").write_text("not a picture")
    save_mask(folder / "masks/text.png")
    for name in ("alone", "two"):
        save_picture(folder / f"images/{name}.png")
    for suffix in (".png", ".jpg"):
        save_mask(folder / f"masks/two{suffix}")
    (folder / "images/notes.txt").write_text("not a picture")
    small_model.eval()
    report = run(folder, small_model, workers=workers)
    assert sorted(path.name for path in report.written) == ["a.png", "x-1_1_2.jpg"]
    reasons = {path.name: reason for path, reason in report.failed.items()}
    assert reasons.keys() == {"broken.png", "text.jpg", "alone.png", "two.png"}
    assert "no mask; wanted a file named alone.png or alone_mask.png" in reasons["alone.png"]
    assert "more than one mask (two.jpg, two.png)" in reasons["two.png"]
    assert "broken.png: cannot be decoded" in reasons["broken.png"]
    assert "text.jpg: not a picture" in reasons["text.jpg"]
    assert names(folder / "out") == ["a.png", "report.json", "x-1_1_2.jpg"]
    here = harmonize_folder(folder / "images", folder / "masks", folder / "here", small_model)
    assert len(here.written) == 2
    assert (folder / "here/a.png").read_bytes() == (folder / "out/a.png").read_bytes()


def test_an_unexpected_error_costs_one_picture(
    folder: Path, small_model: HarmonizationUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> tuple[int, int]:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("scsco_fast.harmonizing.folders.harmonize_file", fails)
    report = run(folder, small_model)
    assert [reason.split(": ", 1)[1] for reason in report.failed.values()] == ["ZeroDivisionError: of all things"] * 2


def test_interrupted_run_goes_on(folder: Path, small_model: HarmonizationUNet) -> None:
    def interrupt(entry: Entry, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, small_model, progress=interrupt)
    written = json.loads((folder / "out/report.json").read_text())
    assert (written["done"], written["not_reached"]) == (1, 1)
    report = run(folder, small_model)
    assert (len(report.skipped), len(report.written)) == (1, 1)


def test_what_a_killed_run_leaves_is_swept(folder: Path, small_model: HarmonizationUNet) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / "out").mkdir()
    left, alive = folder / f"out/.a.{gone.pid}.tmp.png", folder / f"out/.a.{os.getppid()}.tmp.png"
    for path in (left, alive, folder / "out/.a.tmp.png"):
        path.touch()
    run(folder, small_model)
    assert names(folder / "out") == [alive.name, ".a.tmp.png", "a.png", "report.json", "x-1_1_2.jpg"]


def test_ctrl_c_with_processes(folder: Path, small_model: HarmonizationUNet) -> None:
    """The first of many pictures is done, then the run is interrupted: it ends, no half file is left, it resumes."""
    for index in range(30):
        save_picture(folder / f"images/p{index:02d}.png", index)
        save_mask(folder / f"masks/p{index:02d}.png")
    save_model(small_model, folder / "model.safetensors", {"working_size": 48})
    command = [sys.executable, "-m", "scsco_fast", "harmonize", "--model", str(folder / "model.safetensors")]
    command += ["--images", str(folder / "images"), "--masks", str(folder / "masks"), "--output", str(folder / "out")]
    command += ["--workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("wrote ")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "scsco: interrupted\n"
    outputs = [name for name in names(folder / "out") if name != "report.json"]
    assert 0 < len(outputs) < 32
    assert not any(".tmp" in name for name in outputs)
    for name in outputs:
        Image.open(folder / "out" / name).load()
    assert json.loads((folder / "out/report.json").read_text())["not_reached"] > 0
    report = run(folder, small_model)
    assert len(report.skipped) == len(outputs)
    assert len(report.written) == 32 - len(outputs)


@pytest.mark.parametrize("output", ["images", "masks", "out/../images"])
def test_output_folder_of_the_inputs(output: str, folder: Path, small_model: HarmonizationUNet) -> None:
    before = (folder / "images/a.png").read_bytes()
    with pytest.raises(ScscoError, match="holds the inputs"):
        harmonize_folder(folder / "images", folder / "masks", folder / output, small_model)
    assert (folder / "images/a.png").read_bytes() == before


def test_refused(folder: Path, small_model: HarmonizationUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScscoError, match=r"nowhere: no such folder"):
        harmonize_folder(folder / "nowhere", folder / "masks", folder / "out", small_model)
    (folder / "none").mkdir()
    with pytest.raises(ScscoError, match=r"none: holds no picture"):
        harmonize_folder(folder / "none", folder / "masks", folder / "out", small_model)
    with pytest.raises(ScscoError, match=r"name a \.json file"):
        run(folder, small_model, report=folder / "images/a.png")
    (folder / "out").write_text("a file")
    with pytest.raises(ScscoError, match=r"out: cannot be written \(.*out is not a folder\)"):
        run(folder, small_model)
    if Path("/proc/self").exists():  # where not even root may make a folder
        with pytest.raises(ScscoError, match="out: cannot be written"):
            harmonize_folder(folder / "images", folder / "masks", Path("/proc/out"), small_model)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write to any folder
    with pytest.raises(ScscoError, match="is read-only"):
        harmonize_folder(folder / "images", folder / "masks", folder / "new", small_model)
    assert not (folder / "new").exists()


def test_settings_reach_each_picture(folder: Path, small_model: HarmonizationUNet) -> None:
    Image.new("L", (20, 20), 255).save(folder / "masks/a.png")
    Image.new("L", (50, 40)).save(folder / "masks/x-1_1.png")
    report = run(folder, small_model, settings=Settings(fit_mask=True, invert_mask=True))
    reasons = {path.name: reason for path, reason in report.failed.items()}
    assert "the mask is empty" in reasons["a.png"]
    assert "the mask is full" in reasons["x-1_1_2.jpg"]
