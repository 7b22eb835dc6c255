"""Rows, tables, files and refusals of an evaluation."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluate import Evaluation, evaluate
from scsco_fast.metrics import score


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


def printed(evaluation: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(evaluation.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_are_the_metrics_of_each_picture_in_order(batch_size: int) -> None:
    evaluation = evaluate(halve_the_error, Listed(ITEMS), batch_size=batch_size)
    good = [item for item in ITEMS if isinstance(item, Sample)]
    assert [row.name for row in evaluation.rows] == ["a.jpg", "c.jpg", "d.jpg"]
    assert evaluation.bad == [ITEMS[1]]
    for row, item in zip(evaluation.rows, good, strict=True):
        ours = score(halve_the_error(item.composite, item.mask), item.real, item.mask)
        untouched = score(item.composite, item.real, item.mask)
        for metric in ("mse", "fmse", "psnr", "fpsnr", "ssim"):
            assert getattr(row, metric) == pytest.approx(ours[metric], rel=1e-12)
            assert getattr(row, f"composite_{metric}") == pytest.approx(untouched[metric], rel=1e-12)
        assert (row.subset, row.width, row.height) == (item.subset, 20, 20)
        assert row.foreground == pytest.approx(100 * float(item.mask.double().mean()), abs=1e-9)


def test_groups_average_pictures_not_pixels() -> None:
    evaluation = evaluate(halve_the_error, Listed(ITEMS))
    groups = {summary.group: summary for summary in evaluation.summaries()}
    assert {name: summary.pictures for name, summary in groups.items()} == {
        "HCOCO": 2,
        "HFlickr": 1,
        "foreground 0-5 %": 1,
        "foreground 5-15 %": 1,
        "foreground 15-100 %": 1,
        "all": 3,
    }
    rows = {row.name: row for row in evaluation.rows}
    for metric in ("mse", "psnr", "composite_fmse", "composite_ssim"):
        both = [getattr(rows[name], metric) for name in ("a.jpg", "d.jpg")]
        assert groups["HCOCO"].means[metric] == pytest.approx(sum(both) / 2)
    assert groups["foreground 5-15 %"].means["mse"] == rows["c.jpg"].mse


def test_means_leave_out_infinite_and_undefined_values() -> None:
    perfect, small = sample("p", "s", 3, shift=0.0), sample("q", "s", 3, height=10)
    evaluation = evaluate(None, Listed([perfect, small], size=None))
    assert evaluation.rows[0].composite_psnr == math.inf
    means = evaluation.summaries()[-1].means
    assert means["composite_psnr"] == evaluation.rows[1].composite_psnr
    assert means["composite_ssim"] == pytest.approx(1)
    assert means["composite_mse"] == pytest.approx(evaluation.rows[1].composite_mse / 2)


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
    evaluation = evaluate(model, Listed(items, size=None), batch_size=8)
    assert shapes == [(1, 3, 20, 20), (1, 3, 30, 14)]
    assert [(row.width, row.height) for row in evaluation.rows] == [(20, 20), (14, 30)]


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
    evaluation = evaluate(lambda composite, mask: composite, Listed(items))
    evaluation.write(csv=tmp_path / "new" / "rows.csv", json=tmp_path / "new" / "all.json")
    with open(tmp_path / "new" / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a.jpg", "c.jpg", "d.jpg", "p,\n.jpg"]
    assert float(rows[1]["composite_mse"]) == evaluation.rows[1].composite_mse
    assert rows[3]["psnr"] == "inf"
    content = json.loads((tmp_path / "new" / "all.json").read_text())
    assert content["protocol"] == "strict"
    assert content["pictures"] == 4
    assert content["bad"] == [{"name": "b.jpg", "reason": "masks/b.png: the mask is empty"}]
    assert content["rows"][3]["psnr"] is None
    assert content["summaries"][-1]["group"] == "all"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["all.json", "rows.csv"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "all.json"
    target.write_text("old")
    evaluation = evaluate(None, Listed(ITEMS))

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scsco_fast.evaluate.json.dump", fail)
    with pytest.raises(ScscoError, match=r"all\.json.*No space left"):
        evaluation.write(json=target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_table_shows_groups_model_and_composite() -> None:
    text = printed(evaluate(halve_the_error, Listed(ITEMS)))
    for word in ("3 pictures", "protocol strict", "1 bad", "HCOCO", "foreground 5-15 %", "all", "composite", "output"):
        assert word in text
    assert "13.58" in text  # SCS-Co's published MSE on HCOCO
    assert "21.33" not in text  # its mean over four subsets, of which two are here
    untouched = printed(evaluate(None, Listed([sample("a", "synthetic", 3)])))
    assert "output" not in untouched
    assert "published" not in untouched


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
