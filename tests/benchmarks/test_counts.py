"""The gate on counts: what is counted, what the committed file says, and that growth and shrinking are told apart."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from scsco_fast import kernels
from scsco_fast.benchmarks import counts
from scsco_fast.benchmarks.counting import META, Account, accounting
from scsco_fast.errors import ScscoError
from scsco_fast.kernels import gate

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="launches are counted where Triton compiles")


@pytest.fixture(scope="module")
def now() -> counts.Counts:
    reason = counts.other_torch(counts.read()[0])
    if reason is not None:
        pytest.skip(reason)
    return counts.count()


@pytest.mark.slow
def test_no_count_grew(now: counts.Counts) -> None:
    changed = [change for change in counts.changes(counts.read()[1], now) if change.grew or change.before is None]
    assert not changed, "\n".join(str(change) for change in changed)


@pytest.mark.slow
def test_the_committed_counts_are_true(now: counts.Counts) -> None:
    """What shrank has to be written down, or it may grow again unseen."""
    changed = [change for change in counts.changes(counts.read()[1], now) if not change.grew]
    assert not changed, "\n".join([*map(str, changed), "python -m scsco_fast.benchmarks.counts --update"])


@pytest.mark.slow
def test_what_may_never_grow(now: counts.Counts) -> None:
    """True of any file of counts, so that no update can write it away."""
    assert {
        case for (case, quantity), value in now.items() if quantity in ("waits", "spilled_bytes") and value
    } == set()
    small, large = counts.ATTENTION_SIZES

    def growth(backend: str) -> float:
        peak = {size: now[f"bain_attention {size} {backend}", "peak_bytes"] for size in (small, large)}
        return peak[large] / peak[small]

    pixels = (large / small) ** 2
    assert growth("triton") < 1.05 * pixels  # linear
    assert growth("eager") < 1.05 * pixels
    assert growth("reference") > 0.8 * pixels**2  # quadratic, with maps of its inputs beside the matrix


def test_operations_bytes_and_memory_of_a_product() -> None:
    with accounting() as account:
        a, b = torch.empty(8, 16, device=META), torch.empty(16, 4, device=META)
        account.restart()
        product = a @ b
        first = account.counts()
        view = product.view(4, 8)[:2].t()  # starts nothing and holds the storage
        del product
        held = account.alive
        del view
    assert first == {
        "operations": 1,
        "kernels": 0,
        "waits": 0,
        "flops": 2 * 8 * 16 * 4,
        "bytes": 4 * (8 * 16 + 16 * 4 + 8 * 4),
        "peak_bytes": 4 * (8 * 16 + 16 * 4 + 8 * 4),
    }
    assert account.operations == {"aten::mm": 1}
    assert held == first["peak_bytes"]
    assert account.alive == 4 * (8 * 16 + 16 * 4)


def test_an_expanded_tensor_is_its_storage() -> None:
    with accounting() as account:
        torch.empty(1, 4, device=META).expand(100, 4).sum()
    assert account.bytes == 4 * 4 + 4


def test_launches_are_the_launchers() -> None:
    account = counts.both_ways(counts.operations()["region_norm"], "triton")
    assert account.launches == {"region_norm_fwd_tile_kernel": 1, "region_norm_bwd_tile_kernel": 1}


def _wait_in_many_ways() -> Account:
    with accounting() as account:
        x, mask = torch.ones(4, device=META), torch.ones(4, dtype=torch.bool, device=META)
        float(x.sum())
        x.cpu()
        torch.ones(4).to(META)
        torch.tensor([1.0], device=META)
        x.new_tensor([1.0])
        torch.ones(4).to(META, non_blocking=True)
        x[torch.zeros(4, dtype=torch.long, device=META)]
        for read in (lambda: x[mask], x.nonzero, lambda: x.masked_select(mask), lambda: torch.equal(x, x)):
            with pytest.raises((ScscoError, RuntimeError)):
                read()
    return account


def test_every_wait_is_seen_and_placed() -> None:
    waits = _wait_in_many_ways().waits
    assert all(f"at tests/benchmarks/{Path(__file__).name}:" in reason for reason in waits)
    assert sorted(reason.split(" at ")[0] for reason in waits) == [
        "Tensor.new_tensor on a device",
        "aten::_local_scalar_dense",
        "aten::_to_copy from cpu to meta",
        "aten::_to_copy from meta to cpu",
        "aten::equal",
        "aten::index by a mask",
        "aten::masked_select",
        "aten::nonzero",
        "torch.tensor on a device",
    ]


def test_a_step_that_reads_its_loss_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(step: counts.TrainingStep, share: float, applied: torch.Tensor) -> None:
        average(step, share, applied)
        applied.contiguous().clone().item()

    before = counts.step("demo", "triton").counts()
    average = counts.TrainingStep._average
    monkeypatch.setattr(counts.TrainingStep, "_average", reading)
    after = counts.step("demo", "triton").counts()
    assert (before["waits"], after["waits"]) == (0, 1)
    assert after["operations"] == before["operations"] + 2  # the copy and the read


def test_growth_shrinking_new_and_gone() -> None:
    before = {("a", "bytes"): 3, ("a", "waits"): 1, ("b", "bytes"): 7, ("c", "bytes"): 1}
    found = counts.changes(before, {("a", "bytes"): 4, ("a", "waits"): 0, ("c", "bytes"): 1, ("d", "bytes"): 2})
    assert [(str(change), change.grew) for change in found] == [
        ("a: bytes grew from 3 to 4", True),
        ("a: waits shrank from 1 to 0", False),
        ("d: bytes is new: 2", False),
        ("b: bytes is gone, was 7", False),
    ]


@pytest.mark.parametrize(
    ("before", "code", "said"),
    [
        ({("a", "bytes"): 4}, 0, "0 grew or are new, 0 shrank"),
        ({("a", "bytes"): 3}, 1, "a: bytes grew from 3 to 4"),
        ({("a", "bytes"): 5}, 0, "a: bytes shrank from 5 to 4"),
        ({}, 1, "a: bytes is new: 4"),
    ],
)
def test_exit_code(
    before: counts.Counts,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(counts, "count", lambda: {("a", "bytes"): 4})
    counts.write(before, tmp_path / "counts.csv")
    assert counts.gate(tmp_path / "counts.csv") == code
    assert said in capsys.readouterr().out


def test_another_torch_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts.write({("a", "bytes"): 4}, tmp_path / "counts.csv")
    monkeypatch.setattr(torch, "__version__", "1.0.0+cu130")
    assert counts.gate(tmp_path / "counts.csv") == 0
    assert "this is 1.0.0+cu130: nothing is compared" in capsys.readouterr().out


def test_compiled_kernels_are_the_worst_of_all_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "kernel_resources.csv"
    monkeypatch.setattr(counts, "TABLE", table)
    with pytest.raises(ScscoError, match=r"kernel_resources\.csv: cannot be read .*; the gate runs in a checkout$"):
        counts.compiled()
    old = gate.Row("3.6.0", "fwd_kernel", "half", 4, 2, 90, 255, 16, 4096, 0, "", 300, 0)
    new = old._replace(triton="3.7.1", registers=168, spilled=8, shared_bytes=8192)
    gate.write([old, new, new._replace(sm=80, spilled=0)], table)
    assert counts.compiled() == {
        ("compiled fwd_kernel sm_80", "registers"): 168,
        ("compiled fwd_kernel sm_80", "shared_bytes"): 8192,
        ("compiled fwd_kernel sm_80", "spilled_bytes"): 0,
        ("compiled fwd_kernel sm_90", "registers"): 255,
        ("compiled fwd_kernel sm_90", "shared_bytes"): 8192,
        ("compiled fwd_kernel sm_90", "spilled_bytes"): 24,
    }


@pytest.mark.parametrize(
    "text", [None, "", "case,value\n1,2\n", "case,quantity,value\ntorch,version,2.13\na,bytes,x\n"]
)
def test_a_bad_file_is_one_line(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ScscoError, match=r"counts\.csv: .*--update writes it") as caught:
        counts.gate(path)
    assert "\n" not in str(caught.value)


def test_no_case_of_that_name() -> None:
    with pytest.raises(ScscoError, match="no case 'step of mine'; there are step paper triton, "):
        list(counts.show("step of mine"))
