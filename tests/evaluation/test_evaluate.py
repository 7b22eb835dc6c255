"""Rows, tables, files and refusals of an evaluation."""

import csv
import io
import json
import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_dataset import write_dataset
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from scsco_fast.cli import main
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.baselines import BASELINES
from scsco_fast.evaluation.comparison import compare
from scsco_fast.evaluation.loop import Model, Samples, evaluate
from scsco_fast.evaluation.metrics import score
from scsco_fast.evaluation.protocols import protocol_named
from scsco_fast.evaluation.published import PUBLISHED, TEST_PICTURES
from scsco_fast.evaluation.results import NAMES_KEPT, Evaluation
from scsco_fast.evaluation.rows import COLUMNS, Row


def sample(
    name: str, subset: str, foreground_rows: int, shift: float = 0.2, height: int = 20, width: int = 20
) -> Sample:
    generator = torch.Generator().manual_seed(len(name) + foreground_rows)
    real = torch.rand(3, height, width, generator=generator) * 0.5 + 0.1
    mask = torch.zeros(1, height, width)
    mask[:, :foreground_rows] = 1
    return Sample(real + shift * mask, real, mask, name, subset)


class Listed(Dataset[Sample | BadSample]):
    def __init__(self, items: list[Sample | BadSample], size: int | None = 20) -> None:
        self.items, self.size = items, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample | BadSample:
        return self.items[index]


ITEMS: list[Sample | BadSample] = [
    sample("a.jpg", "HCOCO", 1),  # 5 %
    BadSample("b.jpg", "masks/b.png: the mask is empty"),
    sample("c.jpg", "HFlickr", 3, 0.1),  # 15 %
    sample("d.jpg", "HCOCO", 4, 0.3),  # 20 %
]


def halve_the_error(composite: Tensor, mask: Tensor) -> Tensor:
    """The real picture lies lower than the composite by 0.1 to 0.3 in the foreground."""
    return composite - 0.05 * mask


def measured(model: Model | None, dataset: Samples, **options: Any) -> tuple[Evaluation, list[Row]]:
    rows: list[Row] = []
    return evaluate(model, dataset, on_row=rows.append, **options), rows


def printed(evaluation: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(evaluation.table())
    console.print(evaluation.methods_table())
    for table in (evaluation.differences_table(), evaluation.drift_table()):
        if table is not None:
            console.print(table)
    if evaluation.published_table() is not None:
        console.print(evaluation.published_table())
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_are_the_metrics_of_each_picture_in_order(batch_size: int) -> None:
    evaluation, rows = measured(halve_the_error, Listed(ITEMS), batch_size=batch_size)
    good = [item for item in ITEMS if isinstance(item, Sample)]
    assert [row.name for row in rows] == ["a.jpg", "c.jpg", "d.jpg"]
    assert evaluation.bad == [ITEMS[1]]
    for row, item in zip(rows, good, strict=True):
        ours = score(halve_the_error(item.composite, item.mask), item.real, item.mask)
        untouched = score(item.composite, item.real, item.mask)
        for metric in ("mse", "fmse", "psnr", "fpsnr", "ssim"):
            assert getattr(row, metric) == pytest.approx(ours[metric], rel=1e-12)
            assert getattr(row, f"composite_{metric}") == pytest.approx(untouched[metric], rel=1e-12)
        assert (row.subset, row.width, row.height) == (item.subset, 20, 20)
        assert row.foreground_ratio == pytest.approx(float(item.mask.double().mean()), abs=1e-9)
        assert (row.protocol, row.resolution) == ("strict", "20")


def test_groups_average_pictures_not_pixels() -> None:
    evaluation, all_rows = measured(halve_the_error, Listed(ITEMS))
    groups = {summary.group: summary for summary in evaluation.summaries()}
    assert {name: summary.pictures for name, summary in groups.items()} == {
        "HCOCO": 2,
        "HFlickr": 1,
        "foreground 0-5 %": 1,
        "foreground 5-15 %": 1,
        "foreground 15-100 %": 1,
        "all": 3,
    }
    rows = {row.name: row for row in all_rows}
    for metric in ("mse", "psnr", "composite_fmse", "composite_ssim"):
        both = [getattr(rows[name], metric) for name in ("a.jpg", "d.jpg")]
        assert groups["HCOCO"].means[metric] == pytest.approx(sum(both) / 2)
    assert groups["foreground 5-15 %"].means["mse"] == rows["c.jpg"].mse


def test_means_leave_out_infinite_and_undefined_values() -> None:
    perfect, small = sample("p", "s", 3, shift=0.0), sample("q", "s", 3, height=10)
    evaluation, rows = measured(None, Listed([perfect, small], size=None))
    assert rows[0].composite_psnr == rows[0].psnr == math.inf
    summary = evaluation.summaries()[-1]
    assert summary.means["composite_psnr"] == rows[1].composite_psnr
    assert summary.means["composite_ssim"] == pytest.approx(1)
    assert summary.means["composite_mse"] == pytest.approx(rows[1].composite_mse / 2)
    assert {name: count for name, count in summary.left_out.items() if name.startswith("composite")} == {
        "composite_psnr": 1,
        "composite_fpsnr": 1,
        "composite_ssim": 1,
    }


def test_a_flat_output_has_minus_infinity_where_the_peak_is_its_range(tmp_path: Path) -> None:
    """As 10 log10(0 / MSE), as scikit-image has it; the JSON file has null, and other pictures' mean is not touched."""
    mask = torch.zeros(1, 16, 16)
    mask[:, :4] = 1
    flat = torch.full((3, 16, 16), 0.5)
    square = Sample(flat + 0.4 * mask, flat + 0.2 * mask, mask, "square", "s")
    evaluation = evaluate(lambda composite, mask: composite * 0 + 0.5, [square], protocol="harmonizer")
    assert evaluation.summaries()[-1].means["psnr"] == -math.inf
    evaluation.write_json(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content["summaries"][-1]["means"]["psnr"] is None


def test_improvement_states_both_figures() -> None:
    items: list[Sample | BadSample] = [sample("a", "s", 4, 0.2)]
    line = evaluate(lambda composite, mask: composite - 0.1 * mask, Listed(items)).improvement()
    assert "(-75.0 %)" in line
    assert "(+6.02 dB)" in line
    assert "protocol strict" in line
    with pytest.raises(ScscoError, match="no model"):
        evaluate(None, Listed(items)).improvement()


def test_pictures_of_different_sizes_go_one_by_one_at_full_resolution() -> None:
    shapes = []

    def model(composite: Tensor, mask: Tensor) -> Tensor:
        shapes.append(tuple(composite.shape))
        return composite

    items: list[Sample | BadSample] = [sample("a", "s", 3), sample("b", "s", 3, height=30, width=14)]
    evaluation, rows = measured(model, Listed(items, size=None), batch_size=8)
    assert shapes == [(1, 3, 20, 20), (1, 3, 30, 14)]
    assert [(row.width, row.height) for row in rows] == [(20, 20), (14, 30)]
    assert evaluation.resolution == "full"


def test_a_module_is_evaluated_in_eval_mode_and_given_back_as_it_was() -> None:
    class Dropping(nn.Module):
        def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
            assert not self.training
            assert torch.is_inference_mode_enabled()
            return composite

    model = Dropping().train()
    evaluate(model, Listed(ITEMS))
    assert model.training
    evaluate(model.eval(), Listed(ITEMS))
    assert not model.training


def test_progress_counts_bad_samples_too() -> None:
    calls: list[tuple[int, int]] = []
    evaluate(None, Listed(ITEMS), batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 4), (4, 4)]


def test_files_hold_every_row_and_summary(tmp_path: Path) -> None:
    items = [*ITEMS, sample("p,\n.jpg", "HCOCO", 3, shift=0.0)]
    folder = tmp_path / "new"
    evaluation, all_rows = measured(lambda composite, mask: composite, Listed(items), csv=folder / "rows.csv")
    evaluation.write_json(folder / "all.json")
    with open(folder / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:10] == [
        "name",
        "subset",
        "width",
        "height",
        "foreground_ratio",
        "mse",
        "psnr",
        "fmse",
        "fpsnr",
        "ssim",
    ]
    assert [row["name"] for row in rows] == ["a.jpg", "c.jpg", "d.jpg", "p,\n.jpg"]
    assert float(rows[1]["composite_mse"]) == all_rows[1].composite_mse
    assert rows[3]["psnr"] == "inf"
    assert {(row["protocol"], row["resolution"]) for row in rows} == {("strict", "20")}
    content = json.loads((folder / "all.json").read_text())
    assert (content["protocol"], content["resolution"]) == ("strict", "20")
    assert content["choices"]["resize"] == "pil-bilinear"
    assert content["pictures"] == 4
    assert content["bad_count"] == 1
    assert content["bad"] == [{"name": "b.jpg", "reason": "masks/b.png: the mask is empty"}]
    assert content["summaries"][-1]["group"] == "all"
    assert sorted(path.name for path in folder.iterdir()) == ["all.json", "rows.csv"]


def test_undefined_means_are_null(tmp_path: Path) -> None:
    evaluate(None, Listed([sample("p", "s", 3, shift=0.0)])).write_json(tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text())["summaries"][-1]["means"]["psnr"] is None


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "all.json"
    target.write_text("old")
    evaluation = evaluate(None, Listed(ITEMS))

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scsco_fast.evaluation.tables.json.dump", fail)
    with pytest.raises(ScscoError, match=r"all\.json.*No space left"):
        evaluation.write_json(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_evaluation_that_fails_leaves_no_half_table(tmp_path: Path) -> None:
    target = tmp_path / "rows.csv"
    target.write_text("old")
    written = []

    def model(composite: Tensor, mask: Tensor) -> Tensor:
        written.append([path.stat().st_size for path in tmp_path.iterdir()])
        return composite * (math.nan if len(written) == 3 else 1)

    with pytest.raises(ScscoError, match="NaN"):
        evaluate(model, Listed(ITEMS), batch_size=1, csv=target)
    assert len(written) == 3
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


class Endless(IterableDataset[Sample | BadSample]):
    """Small pictures, one after the other; every tenth is bad."""

    size = 8

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Sample | BadSample]:
        for number in range(self.count):
            if number % 10 == 0:
                yield BadSample(f"{number}.jpg", "the mask is empty")
            else:
                yield sample(f"{number:06d}.jpg", "HCOCO", 1 + number % 7, height=8, width=8)


@pytest.mark.parametrize("generator", [False, True])
def test_memory_does_not_grow_with_the_dataset(generator: bool, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        dataset = iter(Endless(count)) if generator else Endless(count)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        evaluation = evaluate(None, dataset, csv=tmp_path / f"{count}.csv", batch_size=16)
        assert (evaluation.pictures, evaluation.bad_count) == (count - count // 10, count // 10)
        assert len(evaluation.bad) <= NAMES_KEPT
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak(100)  # what is imported and cached on the way
        few, many = peak(500), peak(2000)
    finally:
        tracemalloc.stop()
    # Six numbers of each picture make this 0.1 MB; a group that keeps its rows, 0.6 MB.
    assert many - few < 200_000
    assert len((tmp_path / "2000.csv").read_text().splitlines()) == 1801


def test_table_shows_groups_model_and_composite() -> None:
    text = printed(evaluate(halve_the_error, Listed(ITEMS)))
    for word in (
        "3 pictures",
        "protocol strict",
        "20x20",
        "1 bad",
        "HCOCO",
        "foreground 5-15 %",
        "composite",
        "output",
    ):
        assert word in text
    assert "threshold mask" in text  # the protocol's choices
    assert "published" not in text
    untouched = printed(evaluate(None, Listed([sample("a", "synthetic", 3)])))
    assert "output" not in untouched


def evaluation_of(subsets: Sequence[str], split: str | None = "test", resolution: str = "256") -> Evaluation:
    evaluation = Evaluation(protocol_named("idih"), resolution, "model", split)
    _, rows = measured(halve_the_error, Listed([sample("a", subset, 3) for subset in subsets]))
    for row in rows:
        evaluation.add(row)
    return evaluation


def test_published_rows_stand_beside_ours_with_their_protocol() -> None:
    evaluation = evaluation_of(TEST_PICTURES.keys() - {"all"})
    rows = evaluation.published()
    assert len(rows) == len(PUBLISHED) + 5
    everything = [row for row in rows if row[1] == "all"]
    assert ("DoveNet", "all", 7404, "dovenet", {"mse": 52.33, "psnr": 34.76, "fmse": 532.62}) in everything
    assert ("SCS-Co", "all", 7404, "as published", {"mse": 21.33, "psnr": 38.75, "fmse": 248.86}) in everything
    assert everything[-1][:4] == ("this model", "all", 4, "idih")
    assert everything[-1][4]["mse"] == evaluation.summaries()[-1].means["mse"]
    text = printed(evaluation)
    assert "HDNet" in text
    assert "39.53" in text


def test_published_rows_are_for_the_test_split_at_256() -> None:
    assert [row[:2] for row in evaluation_of(["HCOCO"]).published()] == [("SCS-Co", "HCOCO"), ("this model", "HCOCO")]
    assert evaluation_of(["HCOCO", "mine"]).published() == []
    assert evaluation_of(["HCOCO"], split="train").published() == []
    assert evaluation_of(["HCOCO"], split=None).published() == []
    assert evaluation_of(["HCOCO"], resolution="full").published() == []
    real = evaluation_of(["HCOCO"])
    real.untouched = True
    assert real.published() == []


def test_an_evaluation_without_a_good_sample_is_an_error() -> None:
    with pytest.raises(ScscoError, match=r"none of the 1 samples can be evaluated; first: b\.jpg: masks/b\.png"):
        evaluate(None, Listed([ITEMS[1]]))
    with pytest.raises(ScscoError, match="none of the 0 samples"):
        evaluate(None, Listed([]))


def test_a_model_that_answers_nonsense_is_an_error() -> None:
    with pytest.raises(ScscoError, match=r"a\.jpg has shape"):
        evaluate(lambda composite, mask: composite[:, :, ::2], Listed(ITEMS))
    with pytest.raises(ScscoError, match=r"a\.jpg: .*NaN"):
        evaluate(lambda composite, mask: composite * math.nan, Listed(ITEMS))
    with pytest.raises(ScscoError, match="protocol 'x'"):
        evaluate(None, Listed(ITEMS), protocol="x")


def many(count: int = 12) -> Listed:
    """Pictures of different errors; one of them is the real picture itself."""
    return Listed([sample(f"{number}.jpg", "s", 1 + number % 7, 0.03 * number) for number in range(count)])


def test_baselines_are_scored_on_the_same_pictures(tmp_path: Path) -> None:
    evaluation, rows = measured(
        halve_the_error, Listed(ITEMS), baselines=["mean", "full-statistics", "half-mean"], csv=tmp_path / "rows.csv"
    )
    assert evaluation.baselines == ("half-mean", "full-statistics")
    good = [item for item in ITEMS if isinstance(item, Sample)]
    with open(tmp_path / "rows.csv", newline="") as file:
        written = list(csv.DictReader(file))
    for row, item, line in zip(rows, good, written, strict=True):
        for name in evaluation.baselines:
            output = BASELINES[name](item.composite[None], item.mask[None])[0]
            wanted = score(output, item.real, item.mask)
            assert row.baselines[name] == pytest.approx(wanted, rel=1e-9)
            for metric, value in wanted.items():
                assert float(line[f"{name.replace('-', '_')}_{metric}"]) == pytest.approx(value, rel=1e-9)
    assert list(written[0]) == [*COLUMNS, *evaluation.extra_columns]
    group = next(summary for summary in evaluation.summaries() if summary.group == "HCOCO")
    both = [rows[index].baselines["half-mean"]["mse"] for index in (0, 2)]
    assert group.means["half_mean_mse"] == pytest.approx(sum(both) / 2)


def test_each_method_is_summed_up_with_median_and_losses() -> None:
    evaluation, rows = measured(halve_the_error, many(), baselines=["half-statistics"])
    composite, baseline, model = evaluation.methods()
    assert [entry.method for entry in evaluation.methods()] == ["composite", "half-statistics", "model"]
    before = np.array([row.composite_mse for row in rows])
    for entry, metrics in (
        (composite, [(row.composite_mse, row.composite_psnr, row.composite_fmse) for row in rows]),
        (baseline, [tuple(row.baselines["half-statistics"][m] for m in ("mse", "psnr", "fmse")) for row in rows]),
        (model, [(row.mse, row.psnr, row.fmse) for row in rows]),
    ):
        mse, psnr, fmse = np.array(metrics).T
        assert (entry.mse, entry.median_mse) == pytest.approx((mse.mean(), np.median(mse)))
        assert entry.psnr == pytest.approx(psnr[np.isfinite(psnr)].mean())
        assert (entry.fmse, entry.median_fmse) == pytest.approx((fmse.mean(), np.median(fmse)))
        assert (entry.worse, entry.worse_share) == ((mse > before).sum(), (mse > before).mean())
    # 0.05 too much where the composite is off by less than 0.025: the pictures with 0 and 0.03 / 2.
    assert (model.worse, model.pictures) == (1, 12)
    assert 0 < baseline.worse < 12
    text = printed(evaluation)
    assert "1 of 12 (8%)" in text
    assert "the model less each reference" in text


def test_differences_are_those_of_comparing_two_tables(tmp_path: Path) -> None:
    """The same pairs, intervals and verdicts as `compare`, of a table whose output is the reference."""
    evaluation, _ = measured(halve_the_error, many(), baselines=["half-mean"], csv=tmp_path / "model.csv")
    evaluate(BASELINES["half-mean"], many(), csv=tmp_path / "half-mean.csv")
    evaluate(None, many(), csv=tmp_path / "composite.csv")
    found = {(name, entry.metric): entry for name, entry in evaluation.differences()}
    assert list(found) == [(name, metric) for name in ("composite", "half-mean") for metric in ("mse", "psnr")]
    for name in ("composite", "half-mean"):
        compared = compare(tmp_path / f"{name}.csv", tmp_path / "model.csv")
        for entry in compared.differences:
            if entry.metric in ("mse", "psnr"):
                ours = found[name, entry.metric]
                assert (ours.pictures, ours.left_out, ours.verdict) == (entry.pictures, entry.left_out, entry.verdict)
                assert (ours.difference, ours.low, ours.high) == pytest.approx(
                    (entry.difference, entry.low, entry.high)
                )
    assert found["composite", "mse"].verdict == "better"


def test_without_a_method_there_is_nothing_to_compare() -> None:
    evaluation = evaluate(None, Listed(ITEMS), baselines=["mean"])
    assert [entry.method for entry in evaluation.methods()] == ["composite", "half-mean"]
    assert evaluation.differences() == evaluation.drift() == []
    assert "half-mean" in printed(evaluation)


def test_untouched_gives_the_real_picture_and_measures_what_is_changed(tmp_path: Path) -> None:
    given: list[Tensor] = []

    def darken(composite: Tensor, mask: Tensor) -> Tensor:
        given.extend(composite)
        return composite - 0.1 * mask * composite[:, :1].mean()

    evaluation, rows = measured(darken, Listed(ITEMS), baselines=["mean"], untouched=True)
    good = [item for item in ITEMS if isinstance(item, Sample)]
    for seen, row, item in zip(given, rows, good, strict=True):
        assert torch.equal(seen, item.real)
        assert (row.composite_mse, row.composite_psnr) == (0, math.inf)
        assert row.mse > 0
        reference = BASELINES["half-mean"](item.real[None], item.mask[None])[0]
        assert row.baselines["half-mean"]["mse"] == pytest.approx(score(reference, item.real, item.mask)["mse"])
    mse, fmse = [row.mse for row in rows], [row.fmse for row in rows]
    line = evaluation.damage()
    assert f"MSE {np.mean(mse):.2f} (median {np.median(mse):.2f})" in line
    assert f"foreground MSE {np.mean(fmse):.2f} (median {np.median(fmse):.2f})" in line
    assert [(entry.method, entry.worse) for entry in evaluation.methods()] == [
        ("real", 0),
        ("half-mean", 3),
        ("model", 3),
    ]
    assert ("real", "psnr") not in [(name, entry.metric) for name, entry in evaluation.differences()]
    with pytest.raises(ScscoError, match="see damage"):
        evaluation.improvement()
    evaluation.write_json(tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    assert (content["input"], content["improvement"], content["damage"]) == ("real", None, line)
    assert content["published"] == []
    assert "3 real pictures as input" in printed(evaluation)


def test_a_repeated_model_gets_its_own_output() -> None:
    """Each pass takes a twentieth of the range off the foreground, which stops at black."""

    def darken(composite: Tensor, mask: Tensor) -> Tensor:
        assert composite.min() >= 0
        return composite - 0.05 * mask

    item = sample("a", "s", 4, 0.0)
    evaluation, rows = measured(darken, Listed([item]), repeat=8)
    wanted = [
        score((item.real - 0.05 * number * item.mask).clamp(0, 1), item.real, item.mask)["mse"]
        for number in range(1, 9)
    ]
    assert [rows[0].mse, *rows[0].repeats] == pytest.approx(wanted, rel=1e-5)
    drift = evaluation.drift()
    assert [entry.repeat for entry in drift] == list(range(1, 9))
    assert [entry.mse for entry in drift] == pytest.approx(wanted, rel=1e-5)
    assert [entry.ratio for entry in drift] == pytest.approx([value / wanted[0] for value in wanted], rel=1e-5)
    assert drift[1].ratio == pytest.approx(4, rel=1e-3)
    assert evaluation.methods()[-1].mse == rows[0].mse


def test_repeats_see_the_real_background_where_the_protocol_says_so() -> None:
    """A model that ruins the background gets the real one back before it is applied again."""

    def ruin(composite: Tensor, mask: Tensor) -> Tensor:
        return composite.mean(dim=(2, 3), keepdim=True).expand_as(composite)

    item = sample("a", "s", 4)
    _, rows = measured(ruin, Listed([item]), repeat=2, protocol="rainnet")
    background = torch.where(item.mask > 0.5, item.composite, item.real)
    for value in (rows[0].mse, *rows[0].repeats):
        output = ruin(background[None], item.mask[None])[0]
        assert value == pytest.approx(score(output, item.real, item.mask, "rainnet")["mse"], rel=1e-6)
        background = torch.where(item.mask > 0.5, output, item.real)


def test_repeats_are_in_every_file(tmp_path: Path) -> None:
    evaluation, rows = measured(halve_the_error, Listed(ITEMS), repeat=3, csv=tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(float(line["repeat_2_mse"]), float(line["repeat_3_mse"])) for line in written] == [
        row.repeats for row in rows
    ]
    evaluation.write_json(tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    assert [entry["mse"] for entry in content["drift"]] == [entry.mse for entry in evaluation.drift()]
    assert [entry["method"] for entry in content["methods"]] == ["composite", "model"]
    assert [(entry["reference"], entry["metric"]) for entry in content["differences"]] == [
        ("composite", "mse"),
        ("composite", "psnr"),
    ]
    assert "given back" in printed(evaluation)
    once = evaluate(halve_the_error, Listed(ITEMS))
    assert once.drift_table() is None
    assert [entry.ratio for entry in once.drift()] == [1]


def test_pictures_without_any_error_have_an_infinite_psnr() -> None:
    perfect = [sample(name, "s", 3, shift=0.0) for name in "pq"]
    evaluation = evaluate(None, Listed([*perfect]))
    summary = evaluation.summaries()[-1]
    assert (summary.means["psnr"], summary.means["mse"], summary.left_out["psnr"]) == (math.inf, 0, 2)
    text = printed(evaluation)
    assert "inf" in text
    assert "nan" not in text
    line = evaluate(lambda composite, mask: composite, Listed([*perfect])).improvement()
    assert line.startswith("mean MSE 0.00 -> 0.00, mean PSNR inf -> inf dB over 2 pictures")
    small = [sample("small", "s", 3, height=10)]  # smaller than the window of SSIM: undefined
    assert math.isnan(evaluate(None, Listed([*small], size=None)).summaries()[-1].means["ssim"])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (halve_the_error, {"repeat": 0}, "repeat is 0; at least 1"),
        (None, {"repeat": 2}, "no model to give its output to"),
        (None, {"untouched": True}, "give a model or a baseline"),
        (None, {"baselines": ["median"]}, "baseline 'median' is unknown"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: Model | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScscoError, match=message):
        evaluate(model, Listed(ITEMS), csv=tmp_path / "rows.csv", **options)
    assert list(tmp_path.iterdir()) == []


def test_without_lists_the_report_names_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_dataset(tmp_path / "data", 3)
    for listed, split in ((True, "train"), (False, None)):
        if not listed:
            (root / "IHD_train.txt").unlink()
        command = ["evaluate", "--identity", "--dataset", str(root), "--split", "train", "--json", f"{tmp_path}/a.json"]
        assert main(command) == 0
        assert json.loads((tmp_path / "a.json").read_text())["split"] == split
        warned = "train and test are the same, and figures on pictures that a model was trained on say little"
        assert (warned in capsys.readouterr().err) != listed
