"""Whole runs of a few steps: what they write, how they stop, and that a resumed run is the same run."""

import errno
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_dataset import write_dataset
from tiny_runs import differing

from scsco_fast.errors import ScscoError
from scsco_fast.nn.weights import load_model, read_metadata
from scsco_fast.system.locks import LOCK
from scsco_fast.train import checkpoint, engine
from scsco_fast.train.config import TrainConfig, load_config
from scsco_fast.train.engine import train
from scsco_fast.train.loader import StepOrder, build_loader
from scsco_fast.train.processes import Processes
from scsco_fast.train.report import read_rows
from scsco_fast.train.samples import build_dataset, build_preview, build_validation
from scsco_fast.train.signals import StopSignals

Tiny = Callable[..., TrainConfig]


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(folder / "checkpoints" / "last.pt")


def test_run_writes_everything(tiny: Tiny, pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(checkpoint_every=2, picture_every=3)
    folder = train(config, pictures())
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "loss.png",
        "metrics.csv",
        "model.safetensors",
        "tensorboard",
    ]
    names = ["last.pt", "step_0000002.pt", "step_0000004.pt", "step_0000006.pt"]
    assert sorted(os.listdir(folder / "checkpoints")) == names
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(folder / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(row["total"] == row["reconstruction"] > 0 and row["learning_rate"] > 0 for row in rows)
    output = capsys.readouterr().out
    for name in ("model.safetensors", "last.pt", "metrics.csv", "loss.png", "VGG-16 weights: none"):
        assert name in output


def test_saved_model_is_the_averaged_one_at_its_size(tiny: Tiny, pictures: Any) -> None:
    folder = train(tiny(), pictures())
    state = last(folder)["training"]
    saved = load_model(folder / "model.safetensors").state_dict()
    assert differing(saved, dict(state["ema"])) == []
    assert differing(saved, dict(state["model"])) != []
    assert read_metadata(folder / "model.safetensors")["working_size"] == 32


def test_config_is_saved_as_given_and_as_resolved(tiny: Tiny, pictures: Any) -> None:
    config = tiny(device="auto", precision="auto")
    folder = train(config, pictures())
    assert load_config(folder / "config.json") == config
    saved = json.loads((folder / "config.json").read_text())
    device, precision = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    assert saved["resolved"] == {"device": device, "precision": precision}
    assert saved["versions"]["torch"] == importlib.metadata.version("torch")
    assert saved["parameters"] > 0


def test_tensorboard_holds_scalars_and_pictures(tiny: Tiny, pictures: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(tiny(steps=4), pictures())
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("total")] == [2, 4]
    strips = events.Images("composite | output | real | mask")
    assert [strip.step for strip in strips] == [1, 4]
    assert (strips[0].width, strips[0].height) == (4 * 32, 2 * 32)
    maps = events.Images("attention of the marked point")
    assert (maps[0].width, maps[0].height) == (6 * 32, 2 * 32)  # the composite, and five BAINs


STYLE = {
    "style_weight": 0.01,
    "style_every": 2,
    "negatives": 2,
    "vgg_weights": "random",
    "vgg_layers": ("relu1_2",),
}


@pytest.mark.parametrize("options", [{}, {**STYLE, "accumulate": 2}], ids=["plain", "style in two parts"])
def test_resumed_run_is_the_same_run(tiny: Tiny, pictures: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    """6 steps = 3 steps, SIGTERM, resume, 3 steps, bit for bit: weights, averages, moments, counters, random state."""
    whole = train(tiny(output=str(tmp_path / "whole"), **options), pictures(not_finite={3}, bad={8}))
    # Step 2 reads the samples 4 and 5; the signal comes while it does.
    parts = tiny(output=str(tmp_path / "parts"), **options)
    folder = train(parts, pictures(not_finite={3}, bad={8}, stop_at=5))
    assert last(folder)["step"] == 3
    assert differing(last(folder)["training"], last(whole)["training"]) != []
    train(tiny(output=str(tmp_path / "parts"), resume=True, **options), pictures(not_finite={3}, bad={8}))

    one, other = last(whole), last(folder)
    for name in ("step", "training", "rng", "bad_samples"):
        assert differing(one[name], other[name]) == [], name
    assert one["training"]["skips"].tolist() == [1, 0, 1]
    assert one["bad_samples"] == {"picture8.jpg": "picture8.jpg: truncated"}
    rows, resumed = (read_rows(path / "metrics.csv") for path in (whole, folder))
    assert [row["step"] for row in resumed] == [2, 3, 4, 6]
    assert [row["total"] for row in rows][2] == resumed[3]["total"]


def test_dropout_and_ema_matter_in_the_exactness_test(tiny: Tiny, pictures: Any, tmp_path: Path) -> None:
    """The test above would not see a lost random state if nothing random happened in a step."""
    first = train(tiny(output=str(tmp_path / "a"), steps=2), pictures())
    state = last(first)
    without = train(tiny(output=str(tmp_path / "b"), steps=2, dropout=False), pictures())
    assert differing(state["training"]["model"], last(without)["training"]["model"]) != []
    assert differing(state["rng"], last(without)["rng"]) != []
    assert differing(dict(state["training"]["model"]), dict(state["training"]["ema"])) != []


def test_existing_run_is_never_overwritten(tiny: Tiny, pictures: Any) -> None:
    folder = train(tiny(steps=1), pictures())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ScscoError, match=r"exists already.*scsco train resume"):
        train(tiny(steps=2), pictures())
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_output_that_is_a_file_is_refused(tiny: Tiny, pictures: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in ("file", "file/run"):
        with pytest.raises(ScscoError, match="another output folder"):
            train(tiny(output=str(tmp_path / output)), pictures())
    assert (tmp_path / "file").read_text() == "mine"


def test_resume_needs_a_run(tiny: Tiny, pictures: Any) -> None:
    with pytest.raises(ScscoError, match="no such run"):
        train(tiny(resume=True), pictures())


def test_resume_before_the_first_checkpoint_starts_anew(tiny: Tiny, pictures: Any) -> None:
    folder = Path(tiny().output)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / ".last.123.tmp.pt").write_text("half")
    train(tiny(steps=2, resume=True), pictures())
    assert last(folder)["step"] == 2
    assert os.listdir(folder / "checkpoints") == ["last.pt"]


def test_resume_falls_back_to_an_older_checkpoint(
    tiny: Tiny, pictures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny(steps=5, checkpoint_every=2), pictures())
    broken = folder / "checkpoints" / "last.pt"
    broken.write_bytes(broken.read_bytes()[:1000])
    train(tiny(steps=6, checkpoint_every=2, resume=True), pictures())
    output = capsys.readouterr().out
    assert "warning: skipped: " in output
    assert "step_0000004.pt at step 4" in output
    assert "warning: steps was 5, goes on with 6" in output
    assert [row["step"] for row in read_rows(folder / "metrics.csv")] == [2, 4, 6]
    assert last(folder)["step"] == 6


def test_resume_of_another_architecture_names_the_fields(tiny: Tiny, pictures: Any) -> None:
    folder = train(tiny(steps=1), pictures())
    before = (folder / "config.json").read_bytes()
    with pytest.raises(
        ScscoError, match=r"last\.pt: trained with base_channels 4 \(now 8\), norm bain \(now rain\)"
    ) as error:
        train(tiny(steps=1, base_channels=8, norm="rain", resume=True), pictures())
    assert "\n" not in str(error.value)
    assert (folder / "config.json").read_bytes() == before


def test_resume_of_a_finished_run_does_nothing_more(tiny: Tiny, pictures: Any) -> None:
    folder = train(tiny(steps=2), pictures())
    before = last(folder)
    train(tiny(steps=2, resume=True), pictures())
    assert differing(before["training"], last(folder)["training"]) == []


def test_bad_samples_are_named_once_and_counted(tiny: Tiny, pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # Step 1 has no good sample at all; sample 9 leaves step 4 with one.
    folder = train(tiny(), pictures(bad={2, 3, 9}))
    assert last(folder)["step"] == 6
    assert [row["bad_samples"] for row in read_rows(folder / "metrics.csv")] == [2, 2, 3]
    assert capsys.readouterr().out.count("warning: skipped picture9.jpg: picture9.jpg: truncated") == 1


def test_too_many_bad_samples_stop_the_run(tiny: Tiny, pictures: Any) -> None:
    with pytest.raises(ScscoError, match=r"3 samples cannot be used \(bad_sample_limit 2\).*picture7\.jpg") as error:
        train(tiny(bad_sample_limit=2), pictures(bad={1, 4, 7, 8}))
    assert "\n" not in str(error.value)


def test_a_run_of_bad_samples_alone_stops(tiny: Tiny, pictures: Any) -> None:
    with pytest.raises(ScscoError, match=r"none of the 4 samples can be used, the last is picture\d\.jpg: .*truncated"):
        train(tiny(steps=100_000), pictures(bad=set(range(4)), length=4))


@pytest.mark.parametrize("text", [None, "\n"])
def test_preview_without_a_list_of_test_pictures_is_of_the_others(tiny: Tiny, tmp_path: Path, text: str | None) -> None:
    root = write_dataset(tmp_path / "data", 4)
    if text is not None:
        (root / "IHD_test.txt").write_text(text)
    assert len(build_preview(tiny(dataset="iharmony4", root=str(root))).names) == 4


def test_non_finite_steps_are_counted_and_have_a_limit(tiny: Tiny, pictures: Any, tmp_path: Path) -> None:
    folder = train(tiny(non_finite_limit=2), pictures(not_finite={2, 7}))
    assert [row["skipped_steps"] for row in read_rows(folder / "metrics.csv")] == [1, 2, 2]
    config = tiny(output=str(tmp_path / "other"), non_finite_limit=2)
    with pytest.raises(ScscoError, match=r"step 4: .* not finite for 2 steps in a row"):
        train(config, pictures(not_finite={4, 6}))


def test_workers_read_the_same_samples(tiny: Tiny, pictures: Any, tmp_path: Path) -> None:
    alone = train(tiny(output=str(tmp_path / "alone"), steps=3), pictures())
    helped = train(tiny(output=str(tmp_path / "helped"), steps=3, workers=2), pictures())
    assert differing(last(alone)["training"], last(helped)["training"]) == []


def test_rows_tell_where_the_time_goes(tiny: Tiny, pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tiny(steps=2), pictures())
    (row,) = read_rows(folder / "metrics.csv")
    assert all(row[f"{phase}_ms"] > 0 for phase in ("data", "forward", "backward", "optimizer"))
    spent = sum(row[f"{phase}_ms"] for phase in ("data", "forward", "backward", "optimizer"))
    assert spent <= 1000 * 2 / row["images_per_second"]  # a step has two images
    assert row["memory_mib"] > 10
    output = capsys.readouterr().out
    assert "step 2/2: loss" in output
    assert "MiB, 0:00:00 left" in output
    assert "0 steps skipped in all, 0 bad samples" in output


def test_best_model_is_kept(tiny: Tiny, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fMSE 5, 3 and 4 after steps 2, 4 and 6 the second; a resumed run knows it."""
    values = iter([5.0, 3.0, 4.0, 3.5, 3.2])
    monkeypatch.setattr(engine, "validation_means", lambda *_: {"fmse": next(values), "psnr": 30.0})
    folder = train(tiny(validate_every=2), pictures(), pictures())
    best = checkpoint.load_checkpoint(folder / "checkpoints" / "best.pt")
    assert (best["step"], best["best"]) == (4, {"step": 4, "fmse": 3.0, "psnr": 30.0})
    assert last(folder)["best"] == best["best"]
    assert read_metadata(folder / "best.safetensors")["working_size"] == 32
    saved = load_model(folder / "best.safetensors").state_dict()
    assert differing(saved, dict(best["training"]["ema"])) == []
    assert [row["validation_fmse"] for row in read_rows(folder / "metrics.csv")] == [5.0, 3.0, 4.0]
    train(tiny(validate_every=2, steps=10, resume=True), pictures(), pictures())
    assert checkpoint.load_checkpoint(folder / "checkpoints" / "best.pt")["step"] == 4
    rows = read_rows(folder / "metrics.csv")
    assert [row["validation_fmse"] for row in rows] == [5.0, 3.0, 4.0, 3.5, 3.2]


def test_a_validation_without_a_number_is_never_the_best(
    tiny: Tiny, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([math.nan, 5.0, math.nan])
    monkeypatch.setattr(engine, "validation_means", lambda *_: {"fmse": next(values), "psnr": 30.0})
    folder = train(tiny(validate_every=2), pictures(), pictures())
    assert last(folder)["best"] == {"step": 4, "fmse": 5.0, "psnr": 30.0}
    assert checkpoint.load_checkpoint(folder / "checkpoints" / "best.pt")["step"] == 4


def test_validation_changes_nothing_in_the_training(tiny: Tiny, pictures: Any, tmp_path: Path) -> None:
    without = train(tiny(output=str(tmp_path / "a"), steps=4), pictures())
    held = [pictures()[index] for index in range(900, 903)]
    measured = train(tiny(output=str(tmp_path / "b"), steps=4, validate_every=1), pictures(), held)  # type: ignore[arg-type]
    for name in ("training", "rng"):
        assert differing(last(without)[name], last(measured)[name]) == []
    values = [row["validation_fmse"] for row in read_rows(measured / "metrics.csv")]
    assert len(set(values)) == 4
    assert last(measured)["best"]["fmse"] == min(values)


def test_held_out_photographs_are_not_trained_on(tiny: Tiny) -> None:
    held = build_validation(tiny(validate_every=2, validation_count=5, photos="builtin"))
    assert len(held) == 5  # type: ignore[arg-type]
    seen = {photo.name for photo in build_dataset(tiny(photos="builtin")).photos}  # type: ignore[attr-defined]
    assert not seen & {photo.name for photo in held.photos}  # type: ignore[union-attr]
    assert build_validation(tiny()) is None


def test_profile_writes_a_trace_and_ten_operations(tiny: Tiny, pictures: Any) -> None:
    for steps, name in ((5, "long"), (1, "short")):
        folder = train(tiny(output=str(Path(tiny().output).parent / name), steps=steps), pictures(), profile=True)
        trace = json.loads((folder / "profile" / "trace.json").read_text())
        assert any(event.get("name") == "aten::convolution" for event in trace["traceEvents"])
        heading, *operations = (folder / "profile" / "operations.txt").read_text().splitlines()
        assert heading.endswith("operation, by its own time on the cpu")
        assert len(operations) == 10
        shares = [float(line.split("%")[0]) for line in operations]
        assert shares == sorted(shares, reverse=True)
        assert 30 < sum(shares) <= 100.1
        assert not any("ProfilerStep" in line for line in operations)


def test_deterministic_mode_holds_for_the_run_alone(tiny: Tiny, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    right = engine.TrainingStep.__call__

    def step(self: Any, *arguments: Any) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        right(self, *arguments)

    monkeypatch.setattr(engine.TrainingStep, "__call__", step)
    train(tiny(steps=1, deterministic=True), pictures())
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()

    def refuse(*_: Any) -> None:
        raise RuntimeError("histc_cuda does not have a deterministic implementation, but you set this")

    monkeypatch.setattr(engine.TrainingStep, "__call__", refuse)
    config = tiny(output=f"{tiny().output}2", steps=1, deterministic=True)
    with pytest.raises(ScscoError, match="deterministic is set, but histc_cuda"):
        train(config, pictures())


def test_skipped_steps_and_their_samples_are_named(
    tiny: Tiny, pictures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(steps=4), pictures(not_finite={3}))
    line = "warning: step 2: the loss or gradient was not finite with the samples picture2.jpg, picture3.jpg; skipped"
    assert capsys.readouterr().out.count(line) == 1


def test_a_resumed_run_does_not_name_earlier_skipped_steps_again(
    tiny: Tiny, pictures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(steps=4), pictures(not_finite={3}))
    capsys.readouterr()
    folder = train(tiny(steps=6, resume=True), pictures(not_finite={3}))
    output = capsys.readouterr().out
    assert "not finite" not in output
    assert "1 steps skipped in all" in output
    assert read_rows(folder / "metrics.csv")[-1]["skipped_steps"] == 1


@pytest.mark.parametrize(
    ("after", "wanted"), [("checkpoints/step_0000002.pt", r"loss\.png"), ("loss.png", r"last\.pt")]
)
def test_full_disk_says_what_to_do(
    tiny: Tiny, pictures: Any, monkeypatch: pytest.MonkeyPatch, after: str, wanted: str
) -> None:
    original = os.fsync
    config = tiny(steps=4, checkpoint_every=2)

    def full(descriptor: int) -> None:
        if os.path.exists(f"{config.output}/{after}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ScscoError, match=f"{wanted}.*No space left.*intact: make room, then scsco train resume"):
        train(config, pictures())
    monkeypatch.undo()
    assert last(Path(config.output))["step"] == 2
    train(tiny(steps=4, checkpoint_every=2, resume=True), pictures())
    assert last(Path(config.output))["step"] == 4


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"batch_size": 3, "accumulate": 2}, "accumulate is 2; wanted a divisor of batch_size 3"),
        ({"cuda_graph": True, "accumulate": 2}, "wanted accumulate 1"),
        ({"cuda_graph": True}, "cuda_graph is set for 1 processes on cpu"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(
    tiny: Tiny, pictures: Any, changes: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ScscoError, match=wanted):
        train(tiny(**changes), pictures())
    assert not Path(tiny().output).exists()


SIGNALLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_runs import Pictures
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.engine import train
config = TrainConfig.from_json(sys.argv[2])
folder = train(config, Pictures())
print("ended", folder)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_saves_and_exits_0(tiny: Tiny, number: signal.Signals) -> None:
    config = tiny(steps=100_000, log_every=1, workers=1)
    command = [sys.executable, "-c", SIGNALLED, str(Path(__file__).parent.parent), config.to_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            os.killpg(process.pid, number)  # as a terminal's Ctrl-C or a scheduler does: its workers get it too
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0, rest
    assert "stopped by a signal" in rest
    assert "ended" in rest
    steps = last(Path(config.output))["step"]
    assert 3 <= steps < 100_000
    assert read_rows(Path(config.output) / "metrics.csv")[-1]["step"] == steps


def test_a_folder_has_one_run_until_it_is_killed(tiny: Tiny, pictures: Any) -> None:
    config = tiny(steps=100_000, log_every=1, checkpoint_every=1, workers=1)
    command = [sys.executable, "-c", SIGNALLED, str(Path(__file__).parent.parent), config.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("step 3/"))
        before = (Path(config.output) / "config.json").read_bytes()
        with pytest.raises(ScscoError, match="another run is writing to this folder"):
            train(tiny(steps=4, resume=True), pictures())
        assert (Path(config.output) / "config.json").read_bytes() == before
        process.kill()
        process.wait()
        steps = last(Path(config.output))["step"]  # its worker may still be alive
        train(tiny(steps=steps + 1, resume=True), pictures())
    assert last(Path(config.output))["step"] == steps + 1
    assert not (Path(config.output) / LOCK).exists()


def test_what_a_killed_run_left_of_its_lock_is_no_run(tiny: Tiny, pictures: Any) -> None:
    Path(tiny().output).mkdir()
    (Path(tiny().output) / LOCK).touch()
    train(tiny(steps=1), pictures())
    assert last(Path(tiny().output))["step"] == 1


def test_second_interrupt_is_immediate_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals(print) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({"levels": 3}, "levels must be 5 to 10"), ({**STYLE, "vgg_layers": ("relu9_9",)}, "relu9_9")],
)
def test_options_that_the_model_refuses_leave_no_folder(
    tiny: Tiny, pictures: Any, changes: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ScscoError, match=wanted):
        train(tiny(**changes), pictures())
    assert not Path(tiny().output).exists()


def test_unusable_device_is_one_line(tiny: Tiny, pictures: Any) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ScscoError, match=device):
            train(tiny(device=device), pictures())
    assert not Path(tiny().output).exists()


def test_order_of_samples_is_a_function_of_seed_and_step() -> None:
    whole = list(StepOrder(10, 4, 0, 20, shuffle=True, seed=3))
    assert list(StepOrder(10, 4, 7, 20, shuffle=True, seed=3)) == whole[7:]
    flat = [index for step in whole for index in step]
    for epoch in range(8):  # each epoch holds every sample once, and not in the order of the one before
        assert sorted(flat[epoch * 10 : epoch * 10 + 10]) == list(range(epoch * 10, epoch * 10 + 10))
    assert [index % 10 for index in flat[:10]] != [index % 10 for index in flat[10:20]]
    assert list(StepOrder(10, 4, 0, 20, shuffle=True, seed=4)) != whole
    assert [step[0] for step in StepOrder(10, 4, 0, 3, shuffle=False, seed=0)] == [0, 4, 8]


def test_same_seed_same_run_and_another_seed_another(tiny: Tiny, pictures: Any, tmp_path: Path) -> None:
    folders = [
        train(tiny(output=str(tmp_path / str(number)), steps=2, seed=seed), pictures())
        for number, seed in enumerate((0, 0, 1))
    ]
    one, same, other = (last(folder)["training"]["model"] for folder in folders)
    assert differing(dict(one), dict(same)) == []
    assert differing(dict(one), dict(other)) != []


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six photographs with a rectangle as their object, four to train on."""
    rng = np.random.default_rng(0)
    for number in range(6):
        name = f"{'train' if number < 4 else 'test'}/{number}"
        ramp = np.linspace(40, 200, 80)[:, None, None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 10, (80, 100, 3))
        mask = np.zeros((80, 100), np.uint8)
        mask[20:60, 30:70] = 255
        for path, values in ((f"{name}.png", ramp.clip(0, 255).astype(np.uint8)), (f"masks/{name}.png", mask)):
            file = tmp_path / "photographs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    return tmp_path / "photographs"


def test_a_composed_run_that_is_resumed_is_the_same_run(tiny: Tiny, photographs: Path, tmp_path: Path) -> None:
    options = {"dataset": "composed", "photos": str(photographs), "workers": 1, "reconstruction": "foreground"}
    options |= {"head": "affine", "upsampling": "resize", "batch_size": 18}
    whole = train(tiny(output=str(tmp_path / "whole"), steps=4, **options))
    parts = train(tiny(output=str(tmp_path / "parts"), steps=4, checkpoint_every=2, **options))
    for file in ("last.pt", "step_0000004.pt"):
        (parts / "checkpoints" / file).unlink()
    train(tiny(output=str(tmp_path / "parts"), steps=4, resume=True, **{**options, "workers": 0}))
    for name in ("training", "rng"):
        assert differing(last(whole)[name], last(parts)[name]) == []


def test_processes_make_the_rows_of_one_batch(tiny: Tiny, photographs: Path) -> None:
    config = tiny(dataset="composed", photos=str(photographs), batch_size=40)
    samples = build_dataset(config)
    cpu = torch.device("cpu")
    whole = next(iter(build_loader(samples, config, 3, cpu, Processes())))
    shares = []
    for rank in range(2):
        processes = Processes()
        processes.rank, processes.world_size = rank, 2
        shares.append(next(iter(build_loader(samples, config, 3, cpu, processes))))
    assert [len(share.names) for share in shares] == [20, 20]
    assert torch.equal(torch.cat([share.composite for share in shares]), whole.composite)
    assert shares[0].names + shares[1].names == whole.names
