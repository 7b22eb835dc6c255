"""Rows, tables, files and refusals of an evaluation."""

import csv
import io
import json
import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from scsco_fast import evaluate as module
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluate import Evaluation, Row, evaluate
from scsco_fast.metrics import score
from scsco_fast.published import PUBLISHED, TEST_PICTURES


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


def measured(model: module.Model | None, dataset: module.Samples, **options: Any) -> tuple[Evaluation, list[Row]]:
    rows: list[Row] = []
    return evaluate(model, dataset, on_row=rows.append, **options), rows


def printed(evaluation: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(evaluation.table())
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

    monkeypatch.setattr("scsco_fast.evaluate.json.dump", fail)
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
        assert len(evaluation.bad) <= module.NAMES_KEPT
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak(100)  # what is imported and cached on the way
        few, many = peak(500), peak(2000)
    finally:
        tracemalloc.stop()
    # A group that keeps its rows makes this 0.6 MB.
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
    evaluation = Evaluation(module.protocol_named("idih"), resolution, "model", split)
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
