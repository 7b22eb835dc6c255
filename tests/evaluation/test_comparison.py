"""Better, worse or noise: two tables of the same pictures."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scsco_fast import cli
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.comparison import Comparison, compare
from scsco_fast.evaluation.metrics import METRICS
from scsco_fast.evaluation.paired import FEWEST_PICTURES, bootstrap_interval
from scsco_fast.evaluation.rows import COLUMNS


def write_table(
    path: Path,
    values: dict[str, np.ndarray],
    count: int = 200,
    subset: Callable[[int], str] = lambda index: "HCOCO",
    **changed: object,
) -> Path:
    """A CSV file with `values` per metric (1 where none are given), its rows in reversed order every second time."""
    rows = []
    for index in range(count):
        row = dict.fromkeys(COLUMNS, 1.0)
        row |= {"name": f"c{index}_1_1.jpg", "subset": subset(index), "width": 640, "height": 480}
        row |= {"protocol": "idih", "resolution": "256", "composite_mse": 100.0 + index}
        row |= {metric: column[index] for metric, column in values.items()}
        rows.append(row | changed)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows if path.stem == "a" else rows[::-1])
    return path


def verdicts(comparison: Comparison, group: str = "all") -> dict[str, str]:
    return {entry.metric: entry.verdict for entry in comparison.differences if entry.group == group}


@pytest.fixture
def psnr() -> np.ndarray:
    return 35 + 5 * np.random.default_rng(0).standard_normal(200)


def test_a_gain_within_noise_is_noise(tmp_path: Path, psnr: np.ndarray) -> None:
    noise = np.random.default_rng(1).standard_normal(200)
    other = psnr + 0.05 + 1.0 * (noise - noise.mean())
    comparison = compare(
        write_table(tmp_path / "a.csv", {"psnr": psnr}), write_table(tmp_path / "b.csv", {"psnr": other})
    )
    entry = next(entry for entry in comparison.differences if entry.metric == "psnr")
    assert entry.difference == pytest.approx(0.05)
    assert entry.low < 0 < 0.05 < entry.high
    # The mean of 200 values with deviation 1 has a standard error of 0.071.
    assert entry.high - entry.low == pytest.approx(2 * 1.96 * noise.std() / math.sqrt(200), rel=0.1)
    assert entry.verdict == "noise"


def test_the_same_gain_on_every_picture_is_none(tmp_path: Path, psnr: np.ndarray) -> None:
    a = write_table(tmp_path / "a.csv", {"psnr": psnr})
    b = write_table(tmp_path / "b.csv", {"psnr": psnr + 0.05 + np.linspace(-0.1, 0.1, 200)})
    assert verdicts(compare(a, b))["psnr"] == "better"
    assert verdicts(compare(b, a))["psnr"] == "worse"
    assert set(verdicts(compare(a, a)).values()) == {"noise"}


def test_less_error_is_better_and_more_psnr_is_better(tmp_path: Path) -> None:
    low, high = 1 + np.arange(200) / 100, 1.2 + np.arange(200) / 100
    a = write_table(tmp_path / "a.csv", dict.fromkeys(METRICS, low))
    b = write_table(tmp_path / "b.csv", dict.fromkeys(METRICS, high))
    expected = {"mse": "worse", "fmse": "worse", "psnr": "better", "fpsnr": "better", "ssim": "better"}
    assert verdicts(compare(a, b)) == expected


def test_subsets_are_judged_apart(tmp_path: Path, psnr: np.ndarray) -> None:
    def subset(index: int) -> str:
        return "HCOCO" if index % 2 else "HFlickr"

    spread = np.random.default_rng(2).normal(0, 0.1, 200)
    gain = np.where(np.arange(200) % 2, 0.3, -0.3) + spread
    comparison = compare(
        write_table(tmp_path / "a.csv", {"psnr": psnr}, subset=subset),
        write_table(tmp_path / "b.csv", {"psnr": psnr + gain}, subset=subset),
    )
    assert [entry.group for entry in comparison.differences] == ["HCOCO"] * 5 + ["HFlickr"] * 5 + ["all"] * 5
    assert verdicts(comparison, "HCOCO")["psnr"] == "better"
    assert verdicts(comparison, "HFlickr")["psnr"] == "worse"
    assert verdicts(comparison)["psnr"] == "noise"
    means = {entry.group: entry.difference for entry in comparison.differences if entry.metric == "psnr"}
    assert means["HCOCO"] == pytest.approx(gain[1::2].mean())


def test_infinite_values_are_left_out_and_counted(tmp_path: Path, psnr: np.ndarray) -> None:
    perfect, half = psnr.copy(), psnr + 1
    perfect[:3], half[:2] = math.inf, math.inf
    comparison = compare(
        write_table(tmp_path / "a.csv", {"psnr": perfect, "ssim": np.full(200, math.nan)}),
        write_table(tmp_path / "b.csv", {"psnr": half}),
    )
    found = {entry.metric: entry for entry in comparison.differences}
    assert (found["psnr"].pictures, found["psnr"].left_out) == (197, 3)
    assert found["psnr"].difference == pytest.approx(1)
    assert (found["ssim"].pictures, found["ssim"].verdict) == (0, "noise")
    comparison.write_json(tmp_path / "all.json")
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["differences"][4]["difference"] is None


def test_a_handful_of_pictures_proves_nothing(tmp_path: Path) -> None:
    for count, verdict in ((1, "noise"), (FEWEST_PICTURES - 1, "noise"), (FEWEST_PICTURES, "better")):
        a = write_table(tmp_path / "a.csv", {"mse": np.full(count, 2.0)}, count)
        b = write_table(tmp_path / "b.csv", {"mse": np.ones(count)}, count)
        assert verdicts(compare(a, b))["mse"] == verdict


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.exponential(size=80), 500, seed=trial)
        covered += low <= 1 <= high
    # 95 % of 200 is 190, deviation 3; a percentile interval of 80 skewed values covers two points less.
    assert 176 <= covered <= 198


def test_the_bootstrap_is_seeded_and_its_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    wanted = bootstrap_interval(values, 1000, seed=3)
    assert bootstrap_interval(values, 1000, seed=3) == wanted
    assert bootstrap_interval(values, 1000, seed=4) != wanted
    monkeypatch.setattr("scsco_fast.evaluation.paired._BLOCK", 700)
    assert bootstrap_interval(values, 1000, seed=3) == wanted
    monkeypatch.setattr("scsco_fast.evaluation.paired._BLOCK", 1)
    assert bootstrap_interval(values, 1000, seed=3) == wanted


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", {}, 20)
    for changed, words in (
        ({"protocol": "pctnet"}, "protocol idih at resolution 256, .* protocol pctnet at resolution 256"),
        ({"resolution": "full"}, "protocol idih at resolution full; such figures cannot be compared"),
        ({"composite_mse": 7.0}, r"c0_1_1\.jpg is not the same picture in both files.* MSE 100 .* MSE 7 .*20 pictures"),
        ({"width": 641}, "composite is 640x480 .* 641x480"),
        ({"name": "same.jpg"}, r"same\.jpg is there more than once"),
        ({"mse": "much"}, "is damaged"),
    ):
        with pytest.raises(ScscoError, match=words):
            compare(a, write_table(tmp_path / "b.csv", {}, 20, **changed))
    with pytest.raises(ScscoError, match=r"not of the same pictures: 0 only in .*a\.csv, 5 only in .*b\.csv \(c20_1_1"):
        compare(a, write_table(tmp_path / "b.csv", {}, 25))
    with pytest.raises(ScscoError, match="has no rows"):
        compare(a, write_table(tmp_path / "b.csv", {}, 0))
    (tmp_path / "b.csv").write_text("name,mse\na,1\n")
    with pytest.raises(ScscoError, match="has no column subset"):
        compare(a, tmp_path / "b.csv")
    (tmp_path / "b.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ScscoError, match=r"b\.csv: is damaged"):
        compare(a, tmp_path / "b.csv")
    with pytest.raises(ScscoError, match="resamples is 0"):
        compare(a, a, resamples=0)


def test_mixed_protocols_in_one_table_are_refused(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", {}, 3)
    text = a.read_text().splitlines()
    a.write_text("\n".join([*text[:-1], text[-1].replace("idih", "strict")]))
    with pytest.raises(ScscoError, match="mixes protocol idih at resolution 256 with protocol strict"):
        compare(a, a)


def test_the_command_line_says_it(tmp_path: Path, psnr: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_table(tmp_path / "a.csv", {"psnr": psnr})
    b = write_table(tmp_path / "b.csv", {"psnr": psnr + 1})
    target = tmp_path / "difference.json"
    assert cli.main(["evaluate", "compare", str(a), str(b), "--json", str(target)]) == 0
    text = capsys.readouterr().out
    assert "protocol idih, resolution 256" in text
    assert "better" in text
    assert f"wrote {target}" in text
    found = {entry["metric"]: entry["verdict"] for entry in json.loads(target.read_text())["differences"]}
    assert found == {"mse": "noise", "psnr": "better", "fmse": "noise", "fpsnr": "noise", "ssim": "noise"}
    assert cli.main(["evaluate", "compare", str(a), str(write_table(b, {}, protocol="strict"))]) == 2
    assert capsys.readouterr().err.count("\n") == 1
