"""A disk that is full: one line, nothing half-written, and the same command goes on when there is room."""

from pathlib import Path

import pytest
from full_disk import full_disk
from malformed import noise
from PIL import Image
from small_dataset import write_dataset

from scsco_fast.cli import main
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.journal import add_to_log


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("full") / "data", 30)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "masks").mkdir()
    for number in range(3):
        noise(number, (24, 24)).resize((96, 96)).save(folder / f"{number}.png")
        mask = Image.new("L", (96, 96))
        mask.paste(255, (20, 20, 60, 60))
        mask.save(folder / "masks" / f"{number}.png")
    return folder


COMMANDS = {
    "check": "prepare {data} --check --report {out}/report.json --workers 0",
    "pack": "prepare {data} --output {out} --size 32 --workers 0",
    "synthesize": "synthesize {photos} --output {out} --count 3 --workers 0",
    "csv": "evaluate --identity --dataset {data} --split train --csv {out}/rows.csv",
    "json": "evaluate --identity --dataset {data} --split train --json {out}/means.json",
    "strip": "evaluate --identity --dataset {data} --split train --strip {out}/strip.png",
    "save": "evaluate --identity --dataset {data} --split train --save {out}/first",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    data: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command = [part.format(data=data, photos=photos, out=tmp_path / "out") for part in COMMANDS[name].split()]
    with full_disk(1500):
        assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scsco: error: ")]
    assert len(errors) == 1
    assert "cannot be written (File too large)" in errors[0]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if ".tmp" in path.name or path.name.endswith("lock")]
    assert not {"report.json", "index.json", "synthesis.json", "rows.csv", "means.json", "strip.png"} & {
        path.name for path in left
    }
    assert main(command) in (0, 1)  # 1: something of the data is named as bad
    assert "error" not in capsys.readouterr().err


def test_the_log_of_composites_says_what_to_do(tmp_path: Path) -> None:
    with (
        full_disk(10),
        pytest.raises(ScscoError, match=r"log: cannot be written \(.*\); make room, and run the same"),
    ):
        add_to_log(tmp_path / "log", "a line of more than that\n")
