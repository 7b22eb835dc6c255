"""The plug-in inside of GIMP 3, without a window. Skipped where there is none.

SCSCO_GIMP names its console program if it is not `gimp-console-3.0` in PATH.
"""

import enum
import inspect
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from threading import Thread
from typing import Any

import fake_gimp
import gimp_cases
import numpy as np
import pytest
from gimp_expected import SIZE, TREES, check_sent, write_pictures
from PIL import Image

from scsco_fast import serve
from scsco_fast.cli import serve as serve_command

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = shlex.split(os.environ.get("SCSCO_GIMP", "gimp-console-3.0"))
PATIENCE = 300  # seconds; a first start of GIMP reads all its plug-ins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(PROGRAM[0]) is None, reason=f"needs GIMP 3 ({PROGRAM[0]}; or set SCSCO_GIMP)"),
]


def api() -> dict[str, list[str]]:
    """Every name of the fake that is GIMP's own, with the names of its arguments."""
    found: dict[str, list[str]] = {}
    modules = inspect.getmembers(fake_gimp.repository()["gi.repository"], inspect.ismodule)
    for part, name, member in ((part, *item) for part, module in modules for item in vars(module).items()):
        if inspect.isfunction(member):
            found[f"{part}.{name}"] = list(inspect.signature(member).parameters)
        elif inspect.isclass(member) and issubclass(member, enum.Enum):
            found.update({f"{part}.{name}.{value}": [] for value in member.__members__})
        elif inspect.isclass(member):
            found.update(_methods(f"{part}.{name}", member))
    return found


def _methods(prefix: str, member: type) -> dict[str, list[str]]:
    return {
        f"{prefix}.{name}": [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
        for name, function in inspect.getmembers(member, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of the cases, and a home of GIMP in which the plug-in is installed."""
    folder = tmp_path_factory.mktemp("gimp")
    write_pictures(folder)
    (folder / "api.json").write_text(json.dumps(list(api())))
    plug_in = folder / "home" / "plug-ins" / "scsco-harmonize"
    shutil.copytree(ROOT / "integrations" / "gimp" / "scsco-harmonize", plug_in)
    (folder / "temporary").mkdir()
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What became of each case in GIMP, with scsco's own answers; what was asked and made is in `sent`, in order."""
    sent = []

    def run(arguments: list[str]) -> tuple[int, str, str]:
        given = {name: arguments[arguments.index(f"--{name}") + 1] for name in ("image", "mask", "output")}
        picture, mask = (np.array(Image.open(given[name])) for name in ("image", "mask"))
        answer = serve_command._run(arguments, None)
        sent.append((arguments[6:], picture, mask, np.array(Image.open(given["output"]))))
        return answer

    server = serve.listen(folder / "serve.sock", {})
    Thread(target=serve.work, args=(server, run), daemon=True).start()
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import gimp_cases; gimp_cases.run_in_gimp()"
    environment = {
        "GIMP3_DIRECTORY": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "SCSCO_SOCKET": str(folder / "serve.sock"),
        "SCSCO_GIMP_CASES": str(folder),
    }
    command = [*PROGRAM, "-idf", "--quit", "--batch-interpreter", "python-fu-eval", "-b", code]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    server.end()
    assert (folder / "found.json").exists(), done.stdout + done.stderr
    return {**json.loads((folder / "found.json").read_text()), "sent": sent}


def test_the_picture_and_the_mask_are_what_is_seen(folder: Path, found: dict[str, Any]) -> None:
    assert len(found["sent"]) == len(gimp_cases.DONE)
    for case, (arguments, picture, mask, _) in zip(gimp_cases.DONE, found["sent"], strict=True):
        assert arguments == ["--layer", "--strength", "0.5", "--grow-mask", "-2", "--keep", "luma"]
        check_sent(case.__name__, folder, picture, mask)


def test_the_layer_comes_above_the_active_one(folder: Path, found: dict[str, Any]) -> None:
    for case, (_, _, mask, layer) in zip(gimp_cases.DONE, found["sent"], strict=True):
        of = found[case.__name__]
        assert (of["status"], of["layers"]) == ("success", TREES[case.__name__]), of
        if case in (gimp_cases.in_groups, gimp_cases.linear):
            continue  # it is shown alone only where it is in no group, and written exactly only at the usual precision
        made = np.array(Image.open(folder / f"{case.__name__}.layer.png").convert("RGBA"))
        assert made.shape == layer.shape == (*SIZE, 4)
        np.testing.assert_array_equal(made[..., 3], layer[..., 3])
        opaque = layer[..., 3] == 255
        np.testing.assert_array_equal(made[opaque], layer[opaque])
        assert 0 < opaque.sum() < (mask == 255).sum()  # shrunk by two pixels


def test_what_cannot_be_harmonized_is_said_in_one_line(found: dict[str, Any]) -> None:
    for case, reason in gimp_cases.REFUSED.items():
        of = found[case.__name__]
        assert of["status"] == "execution-error"
        assert reason in of["error"]
        assert "harmonized" not in str(of["layers"])


def test_nothing_is_left_in_the_temporary_folder(folder: Path, found: dict[str, Any]) -> None:
    assert list((folder / "temporary").glob("scsco*")) == []


def test_the_fake_has_nothing_that_gimp_has_not(found: dict[str, Any]) -> None:
    wanted = api()
    assert len(wanted) > 60
    for name, arguments in wanted.items():
        documentation = found["api"][name]
        assert documentation is not None, f"GIMP has no {name}"
        if arguments and documentation != "None":  # GObject's own methods say nothing
            given = documentation.partition("(")[2].rpartition(") ->")[0] or documentation.partition("(")[2]
            names = [argument.split(":")[0].strip(" )") for argument in given.split(",")]
            expected = [name for name in arguments if name != "run_data"]  # a callback's data is not introspected
            assert [name for name in names if name != "self"] == expected, documentation
