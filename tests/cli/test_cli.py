"""The command line: help for each command, exit codes, errors in one line, and every command end to end."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_triplets import write_random_triplets
from PIL import Image

from scsco_fast import cli
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.metrics import score
from scsco_fast.evaluation.protocols import PROTOCOLS
from scsco_fast.evaluation.triplets import Triplet, Triplets
from scsco_fast.harmonizing.pictures import harmonize
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import load_model, save_model
from scsco_fast.train import PRESETS

HEAVY = ("torch", "triton", "skimage", "matplotlib", "accelerate", "tensorboard", "numpy", "PIL")


@pytest.fixture
def model_file(small_model: HarmonizationUNet, tmp_path: Path) -> str:
    save_model(small_model, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A composite and its mask."""
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[10:40, 20:50] = 255
    Image.fromarray(rng.integers(30, 220, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return str(tmp_path / "image.png"), str(tmp_path / "mask.png")


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that is refused."""
    assert cli.main(arguments) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("scsco: error: ")
    assert written.err.count("\n") == 1
    return written.err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(cli.COMMANDS) >= {"train", "evaluate", "synthesize", "harmonize", "import-rainnet", "export", "demo"}
    for command in cli.COMMANDS:
        assert f"\n  {command} " in text
        assert cli.main([command, "--help"]) == 0
        assert f"usage: scsco {command}" in capsys.readouterr().out


def test_help_of_presets(capsys: pytest.CaptureFixture[str]) -> None:
    for preset in PRESETS:
        assert f"\n  {preset} " in cli.TRAIN_USAGE
        assert cli.main(["train", preset, "--help"]) == 0
        assert f"(default: {PRESETS[preset].steps})" in capsys.readouterr().out


def test_help_and_mistakes_wait_for_no_torch(tmp_path: Path) -> None:
    lines = [
        *([], ["--help"], ["--version"], ["frobnicate"], ["train"], ["train", "huge"], ["train", "resume"]),
        *([command, *rest] for command in cli.COMMANDS for rest in (["--help"], ["--bogus"])),
        *(["train", "demo", *rest] for rest in (["--help"], ["--stepz", "3"], ["--steps", "0"])),
        *(["harmonize", "--image", "x"], ["harmonize", "--image", "x", "--output", "y"]),
        *(["harmonize", "--image", "x", "--mask", "m", "--output", name] for name in ("y", "y.gif", "y/z.xyz")),
        *(["evaluate", "--resolution", side] for side in ("half", "0", "full")),
        ["evaluate", "--dataset", "x", "--resolution", "full", "--save", "y"],
        ["export", "--format", "pt2", "--output", "model.onnx"],
        ["export", "--format", "onnx", "--output", "model.onnx", "--size", "0", "4"],
        *(["demo", "--port", "99999"], ["demo", "--max-megapixels", "0"], ["serve", "--idle-minutes", "-1"]),
        *(["demo", "--host", "no name"], ["import-rainnet", "/"], ["harmonize", "--image", ""]),
        *(["evaluate", "compare"], ["evaluate", "compare", "--help"], ["evaluate", "--repeat", "0"], ["prepare", "x"]),
    ]
    code = (
        "import json, sys\nfrom scsco_fast.cli import main\nfound = {}\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    main(line)\n"
        f"    found[' '.join(line)] = [name for name in {HEAVY} if name in sys.modules]\n"
        "print(json.dumps({line: names for line, names in found.items() if names}))"
    )
    command = [sys.executable, "-c", code, json.dumps(lines)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(result.stdout.splitlines()[-1]) == {}, "the first of these lines imports too much"


@pytest.mark.parametrize("command", [*([name] for name in cli.COMMANDS if name != "train"), ["evaluate", "compare"]])
def test_help_shows_each_option_once_and_by_what_it_takes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: scsco {' '.join(command)} ")
    assert "None}" not in text
    assert "--no-" not in text
    assert "(default: None)" not in text


def test_help_shows_how_to_switch_off_what_is_on(capsys: pytest.CaptureFixture[str]) -> None:
    for name, config in PRESETS.items():
        assert cli.main(["train", name, "--help"]) == 0
        text = capsys.readouterr().out
        for field in dataclasses.fields(config):
            flag = field.name.replace("_", "-")
            assert f"\n  --{flag}" in text
            assert (f"--no-{flag}" in text) == (getattr(config, field.name) is True)


def test_nothing_given_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["train"]):
        assert cli.main(arguments) == 2
        assert "usage: scsco" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import scsco_fast

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == scsco_fast.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "'frobnicate' is no command"),
        (["train", "huge"], "'huge' is no preset"),
        (["train", "demo", "--steps", "many"], "--steps"),
        (["train", "demo", "--steps", "0"], "steps is 0; wanted at least 1"),
        (["train", "demo", "--stepz", "3"], "--stepz"),
        (["train", "resume"], "needs the folder of a run"),
        (["train", "resume", "/nowhere"], "/nowhere/config.json: no such file"),
        (["evaluate", "--model", "/nowhere.safetensors"], "/nowhere.safetensors: no such file"),
        (["evaluate", "--model", "none", "--identity"], "wanted only one of --model FILE"),
        (["evaluate", "--identity", "--resolution", "half"], "--resolution is 'half'"),
        (["evaluate", "--identity", "--resolution", "full"], "no full resolution"),
        (["evaluate", "--identity", "--resolution", "full", "--save", "x"], "leave them out"),
        (["evaluate", "--identity", "--root", "x"], "--root belongs to --dataset iharmony4"),
        (["evaluate", "--identity", "--dataset", "/nowhere"], "/nowhere: no such folder"),
        (["evaluate", "--predictions", "/nowhere"], "--predictions needs --dataset DIR"),
        (["evaluate", "--repeat", "0"], "--repeat is 0; wanted at least 1"),
        (["evaluate", "--identity", "--repeat", "2"], "leave --repeat out, or give --model FILE instead of --identity"),
        (["evaluate", "--model", "none", "--repeat", "2"], "there is no model"),
        (
            ["evaluate", "--predictions", "p", "--dataset", "d", "--repeat", "2"],
            "leave --repeat out, or give --model FILE instead of --predictions",
        ),
        (
            ["evaluate", "--predictions", "p", "--dataset", "d", "--untouched"],
            "leave --untouched out, or give --model FILE instead of --predictions",
        ),
        (["evaluate", "--identity", "--untouched"], "give --model FILE or --baseline NAME"),
        (["evaluate", "--untouched", "--strip", "s.png"], "leave them out with --untouched"),
        (["evaluate", "--baseline", "median"], "invalid choice 'median' for argument '--baseline'"),
        (["evaluate", "--baseline", "mean", "--baseline", "median"], "invalid choice 'median'"),
        (["evaluate", "compare"], "missing an argument"),
        (["evaluate", "compare", "/nowhere.csv", "/nowhere.csv"], "/nowhere.csv: cannot be read"),
        (["evaluate", "--model", "none", "--count", "0"], "--count is 0"),
        (["evaluate", "--model", "none", "--dataset", "iharmony4"], "--root"),
        (["evaluate", "--model", "none", "--photos", "/nowhere"], "/nowhere"),
        (["evaluate", "--model", "none", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["evaluate", "--model", "none", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["harmonize"], "missing --output PATH"),
        (
            ["harmonize", "--model", "m", "--output", "o"],
            "either --image and --mask, --foreground and --background, --before and --after, or --images",
        ),
        (
            ["harmonize", "--model", "m", "--output", "o", "--image", "i"],
            "i: no mask; wanted either --image and --mask",
        ),
        (["harmonize", "--model", "m", "--output", "o", "--image", "i", "--images", "j"], "either --image and --mask"),
        (["harmonize", "--model", "m", "--output", "o", "--images", "i", "--mask", "m"], "--mask is of one picture"),
        (["harmonize", "--model", "m", "--output", "o", "--image", "i", "--mask", "m", "--alpha-mask"], "leave --mask"),
        (["harmonize", "--output", "o", "--image", "i", "--before", "b", "--after", "a"], "either --image and --mask"),
        (["harmonize", "--output", "o", "--foreground", "f"], "--foreground is laid on --background; give both"),
        (["harmonize", "--output", "o", "--before", "f"], "--before and --after are a picture and the same one edited"),
        (
            ["harmonize", "--output", "o", "--image", "i", "--mask", "m", "--at", "1,2"],
            "--at, --scale and --linear-light",
        ),
        (
            ["harmonize", "--output", "o", "--foreground", "f", "--background", "b", "--at", "1x2"],
            "--at is '1x2'; wanted",
        ),
        (
            ["harmonize", "--output", "o.png", "--image", "i", "--mask", "m", "--strength", "2"],
            "the strength is 2; wanted",
        ),
        (["harmonize", "--output", "o.png", "--image", "i", "--mask", "m", "--keep", "hue"], "invalid choice 'hue'"),
        (["harmonize", "--output", "o", "--images", "i", "--layer"], "--layer is for one picture"),
        (["harmonize", "--model", "m", "--output", "o", "--images", "i", "--workers", "-1"], "--workers is -1"),
        (["harmonize", "--model", "m", "--output", "o", "--images", "i", "--max-megapixels", "0"], "--max-megapixels"),
        (["harmonize", "--model", "m", "--output", "o", "--image", "i", "--mask", "m", "--overwrite"], "for a folder"),
        (
            ["harmonize", "--model", "m", "--output", "o", "--images", "i", "--native", "--working-size", "9"],
            "leave --working-size out",
        ),
        (
            ["harmonize", "--model", "m", "--output", "o", "--image", "i", "--mask", "m", "--strip", "i"],
            "the strip would overwrite i",
        ),
        (["harmonize", "--model", "m", "--output", "o", "--image", "i", "--mask", "m", "--real", "r"], "--strip"),
        (["harmonize", "--model", "m", "--output", "o", "--image", "i", "--mask", "m", "--format", "png"], "--format"),
        (["harmonize", "--model", "m", "--output", "o", "--images", "i", "--masks", "m", "--strip", "s"], "--strip"),
        (["doctor", "--xml"], "--xml"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(arguments, capsys)


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SCSCO_BACKEND", "abacus")
    assert "SCSCO_BACKEND is 'abacus'" in error_of(["evaluate", "--model", "none"], capsys)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCSCO_DEBUG", "1")
    with pytest.raises(ScscoError):
        cli.main(["frobnicate"])


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("scsco_fast.cli.doctor.command", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "scsco: interrupted\n"


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "scsco_fast"], [str(Path(sys.executable).parent / "scsco")]]
)
def test_as_a_process(command: list[str]) -> None:
    result = subprocess.run([*command, "train", "huge"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("scsco: error: 'huge' is no preset")
    assert "Traceback" not in result.stderr


def test_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "scsco_fast", "--help"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert result.stderr == ""


def test_train_passes_the_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = []
    monkeypatch.setattr("scsco_fast.train.train", lambda config, profile: given.append(config))
    assert cli.main(["train", "demo", "--output", str(tmp_path), "--steps", "3", "--vgg-layers", "relu1_2"]) == 0
    wanted = dataclasses.replace(PRESETS["demo"], output=str(tmp_path), steps=3, vgg_layers=("relu1_2",))
    assert given == [wanted]


def test_resume_takes_the_runs_own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["demo"], output="moved/since", steps=30)
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    given = []
    monkeypatch.setattr("scsco_fast.train.train", lambda config, profile: given.append(config))
    assert cli.main(["train", "resume", str(tmp_path), "--steps", "50"]) == 0
    assert given == [dataclasses.replace(config, output=str(tmp_path), resume=True, steps=50)]


def test_evaluate_writes_what_it_names(model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = {name: tmp_path / "out" / name for name in ("e.csv", "e.json", "e.png", "unseen")}
    flags = dict(zip(("--csv", "--json", "--strip", "--save"), map(str, targets.values()), strict=True))
    arguments = [text for pair in flags.items() for text in pair]
    assert cli.main(["evaluate", "--model", model_file, "--count", "3", "--strip-count", "2", *arguments]) == 0
    text = capsys.readouterr().out
    assert "mean MSE" in text
    for target in targets.values():
        assert f"wrote {target}" in text
    with targets["e.csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["width"] for row in rows} == {"64"}  # the model's working size
    assert json.loads(targets["e.json"].read_text())["pictures"] == 3
    assert Image.open(targets["e.png"]).width >= 4 * 64
    kinds = ("composite", "mask", "output", "real")
    assert sorted(path.name for path in targets["unseen"].iterdir()) == sorted(
        f"{index:02d}_{kind}.png" for index in range(2) for kind in kinds
    )


def test_evaluate_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "unseen"
    assert cli.main(["evaluate", "--model", "none", "--count", "2", "--resolution", "32", "--save", str(saved)]) == 0
    assert "mean MSE" not in capsys.readouterr().out
    assert not list(saved.glob("*_output.png"))


@pytest.mark.parametrize(
    "given",
    [
        ["--baseline", "half-statistics", "mean"],
        ["--baseline", "half-statistics", "--baseline", "mean"],
        ["--baseline=half-statistics", "--baseline", "mean"],
    ],
)
def test_evaluate_shows_every_baseline_that_is_named(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "e.json"
    arguments = ["evaluate", *given, "--identity", "--count", "2", "--resolution", "32", "--json", str(target)]
    assert cli.main(arguments) == 0
    assert json.loads(target.read_text())["baselines"] == ["half-statistics", "half-mean"]
    text = capsys.readouterr().out
    assert "half-statistics" in text
    assert "half-mean" in text


@pytest.mark.parametrize("resolution", ["32", "full"])
def test_evaluate_real_pictures_again_and_again(
    resolution: str, model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_triplets(tmp_path / "data")
    arguments = ["evaluate", "--model", model_file, "--dataset", str(tmp_path / "data"), "--resolution", resolution]
    target = tmp_path / "rows.csv"
    assert cli.main([*arguments, "--untouched", "--repeat", "2", "--csv", str(target)]) == 0
    text = capsys.readouterr().out
    assert "\ndamage to real pictures" in text
    assert "mean MSE 0.00" not in text
    with target.open() as file:
        row = next(csv.DictReader(file))
    members = IHarmony4(tmp_path / "data", "test").members
    sample = Triplets(members, PROTOCOLS["strict"], None if resolution == "full" else 32)[0]
    assert isinstance(sample, Triplet)
    assert sample.name == row["name"]
    model, output = load_model(model_file), sample.real
    for column in ("mse", "repeat_2_mse"):
        if resolution == "full":
            pixels = output.permute(1, 2, 0).contiguous().numpy()
            output = torch.from_numpy(harmonize(pixels, sample.mask[0].numpy(), model)).permute(2, 0, 1)
        else:
            with torch.inference_mode():
                output = model(output[None], sample.mask[None])[0].clamp(0, 1)
        wanted = score(output, sample.real, sample.mask)["mse"]
        assert float(row[column]) == pytest.approx(wanted, rel=1e-4)
        assert wanted > 0
    assert row["composite_mse"] == "0.0"


def test_harmonize_one(
    model_file: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, strip = tmp_path / "out.png", tmp_path / "strip.png"
    arguments = ["harmonize", "--model", model_file, "--image", pair[0], "--mask", pair[1], "--output", str(output)]
    assert cli.main([*arguments, "--strip", str(strip), "--real", pair[0]]) == 0
    assert capsys.readouterr().out == f"wrote {output}\nwrote {strip}\n"
    before, after = np.asarray(Image.open(pair[0])), np.asarray(Image.open(output))
    foreground = np.asarray(Image.open(pair[1])) > 127
    assert np.array_equal(before[~foreground], after[~foreground])
    assert (before != after).any()
    assert Image.open(strip).width >= 3 * 80


def test_harmonize_fits_a_mask_with_a_notice(
    model_file: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(pair[1]).resize((40, 30)).save(pair[1])
    output = str(tmp_path / "out.png")
    arguments = ["harmonize", "--model", model_file, "--image", pair[0], "--mask", pair[1], "--output", output]
    assert "the mask is 40x30 (width x height) but its picture is 80x60" in error_of(arguments, capsys)
    assert not Path(output).exists()
    assert cli.main([*arguments, "--fit-mask"]) == 0
    warning = f"scsco: warning: {pair[1]}: the mask is 40x30 (width x height); resized to its picture's 80x60\n"
    assert capsys.readouterr().err == warning
    outside = np.s_[45:]
    assert np.array_equal(np.asarray(Image.open(output))[outside], np.asarray(Image.open(pair[0]))[outside])


def test_harmonize_a_cut_out_and_an_edit(
    model_file: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.asarray(Image.open(pair[0]))
    cut = np.dstack([image, np.asarray(Image.open(pair[1]))])[10:40, 20:50]
    cut[:5, :, 3] = 0
    Image.fromarray(cut).save(tmp_path / "cut.png")
    background = np.full((50, 70, 3), 90, np.uint8)
    Image.fromarray(background).save(tmp_path / "background.png")
    output = str(tmp_path / "out.png")
    arguments = ["harmonize", "--model", model_file, "--foreground", str(tmp_path / "cut.png"), "--output", output]
    arguments += ["--background", str(tmp_path / "background.png"), "--at=-4,6", "--scale", "0.5", "--strength", "0.7"]
    model = load_model(model_file)
    for extra, options in (
        (["--layer"], {"layer": True}),
        (["--linear-light", "--keep", "luma"], {"linear_light": True, "keep": "luma"}),
    ):
        assert cli.main([*arguments, *extra]) == 0
        assert capsys.readouterr().out == f"wrote {output}\n"
        wanted = harmonize(cut, None, model, background=background, at=(-4, 6), scale=0.5, strength=0.7, **options)
        assert np.array_equal(np.asarray(Image.open(output)), wanted)
    edited = image.copy()
    edited[10:40, 20:50] //= 2
    Image.fromarray(edited).save(tmp_path / "edited.png")
    edit = ["harmonize", "--model", model_file, "--before", pair[0], "--after", str(tmp_path / "edited.png")]
    assert cli.main([*edit, "--output", output, "--mask", pair[1], "--grow-mask", "-2"]) == 0
    wanted = harmonize(edited, np.asarray(Image.open(pair[1])), model, before=image, grow_mask=-2)
    assert np.array_equal(np.asarray(Image.open(output)), wanted)


def test_harmonize_says_when_nothing_changed(
    model_file: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out.png")
    arguments = ["harmonize", "--model", model_file, "--image", pair[0], "--mask", pair[1], "--output", output]
    assert cli.main([*arguments, "--strength", "0"]) == 0
    written = capsys.readouterr()
    assert written.err.startswith("scsco: warning: no pixel was changed (the strength is 0)")
    assert written.out == f"wrote {output}\n"


def test_harmonize_folder_exits_1_when_some_failed(
    model_file: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, source in (("images", pair[0]), ("masks", pair[1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(Path(source).read_bytes())
    arguments = ["harmonize", "--model", model_file, "--output", str(tmp_path / "out")]
    arguments += ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--workers", "0"]
    assert cli.main([*arguments, "--format", "tif"]) == 0
    assert "1 harmonized, 0 failed" in capsys.readouterr().out
    (tmp_path / "images/b.png").write_bytes(b"broken")
    (tmp_path / "masks/b.png").write_bytes((tmp_path / "masks/a.png").read_bytes())
    assert cli.main([*arguments, "--format", "tif"]) == 1
    written = capsys.readouterr()
    assert "0 harmonized, 1 there already (--overwrite does them again), 1 failed" in written.out
    statuses = {
        Path(e["image"]).name: e["status"] for e in json.loads((tmp_path / "out/report.json").read_text())["files"]
    }
    assert statuses == {"a.png": "skipped", "b.png": "failed"}
    assert written.err.startswith(f"scsco: failed: {tmp_path / 'images/b.png'}: ")
    assert written.err.count("\n") == 1


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "problems: none" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["eager"] == "yes"
    assert report["problems"] == []
