"""The method: float64 truth, the gate, turns, memory and the formulas that count the work. No test asserts a time."""

import math
from functools import partial

import pytest
import torch
from oracle import make_mask
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import scsco_fast as sf
from scsco_fast.benchmarks import baselines, operations, plots, rows, timing, truth
from scsco_fast.benchmarks.measure import Session, describe, measure, timed
from scsco_fast.benchmarks.operations import Case, Count, Variant
from scsco_fast.benchmarks.timing import Ceiling, Work

CEILING = Ceiling(1e10, {torch.float32: 1e11})
SESSION = Session({"suite": "test", **rows.machine("cpu")}, lambda: CEILING, 0.0)


def attention_inputs(batch: int = 2, keys: int = 3, channels: int = 5, size: int = 7) -> list[Tensor]:
    shapes = [(batch, c, size, size) for c in (keys, keys, channels)]
    return [t.requires_grad_() for t in operations.random(0, shapes, torch.float64, "cpu")]


@pytest.mark.parametrize("block", [1, 400, 2**26])
def test_truth_is_the_reference(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "BLOCK", block)
    level, _ = operations.square_level(2, 7, 0.2, "cpu")
    tensors = attention_inputs()
    gradients = timing.gradients_of(tensors[2:] * 2, torch.float64)
    results = [
        truth.outputs_and_gradients(function, tensors, gradients)
        for function in (
            partial(truth.bain_attention, level),
            partial(sf.ops.bain_attention, regions_or_mask=level, backend="reference"),
        )
    ]
    assert truth.error(*results) < 1e-12


def test_truth_wants_as_many_foreground_pixels_in_each_image() -> None:
    level = sf.Regions(make_mask("ragged", 2, 7, 7)).at(7, 7)
    with pytest.raises(AssertionError):
        truth.bain_attention(level, *attention_inputs())


@pytest.mark.parametrize("name", ["SDPA"])
def test_library_attention_is_bain(name: str) -> None:
    level, n_fg = operations.square_level(2, 7, 0.2, "cpu")
    tensors = attention_inputs()
    moments = baselines.libraries("cpu", compile=False)[name](*baselines.packed(level, *tensors))
    first, second = moments.squeeze(1).chunk(2, dim=2)
    mean, std = sf.ops.bain_attention(*tensors, level, backend="reference")
    pivot = truth.take(truth.rows(tensors[2]), level.order[:, n_fg:]).mean(dim=1, keepdim=True)
    foreground = level.order[:, :n_fg]
    torch.testing.assert_close(first + pivot, truth.take(truth.rows(mean), foreground))
    wanted = truth.take(truth.rows(std), foreground)
    torch.testing.assert_close((second - first.square() + 1e-5).sqrt(), wanted)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_library_has_a_colour_of_its_own(device: str) -> None:
    names = baselines.libraries(device, compile=True)
    assert names.keys() <= plots.COLORS.keys()
    assert len({plots.COLORS[name] for name in names}) == len(names)


def square(x: Tensor) -> Tensor:
    return x.square()


def case_of(*functions: object) -> Case:
    def inputs(seed: int) -> list[Tensor]:
        return [t.requires_grad_() for t in operations.random(seed, [(1, 2, 3, 3)], torch.float32, "cpu")]

    wanted = operations.true_values(square, inputs, torch.float32)
    variants = [Variant(f.__name__, f, inputs, wanted) for f in functions]  # type: ignore[attr-defined, arg-type]
    return Case("square", torch.float32, 1, 2, 3, 0.5, variants, Count(18.0, 144.0), Count(18.0, 216.0))


def test_what_is_wrong_gets_no_time() -> None:
    def wrong(x: Tensor) -> Tensor:
        return 1.1 * square(x)

    def wrong_backward(x: Tensor) -> Tensor:
        return square(x).detach() + 0 * x

    def nan(x: Tensor) -> Tensor:
        return square(x) * math.nan

    def broken(x: Tensor) -> Tensor:
        raise NotImplementedError("not on\nthis machine")

    found = {
        (row.backend, row.mode): row for row in measure(case_of(square, wrong, wrong_backward, nan, broken), SESSION)
    }
    assert len(found) == 15
    timed = {key for key, row in found.items() if row.ms is not None}
    modes = ("forward", "backward", "forward+backward")
    assert timed == {*(("square", mode) for mode in modes), ("wrong_backward", "forward")}
    for key, row in found.items():
        assert (row.share is None) == (row.ms is None) == (key not in timed)
    assert found["wrong", "forward"].note.startswith("wrong: error 1.0e-01, allowed 1e-03")
    assert found["nan", "forward"].note.startswith("wrong: error nan")
    assert found["broken", "forward"].note == "failed: NotImplementedError: not on this machine"


def test_rates_and_shares_follow_from_the_time() -> None:
    (row, *_) = measure(case_of(square), SESSION)
    assert row.ms is not None
    assert row.gbs == pytest.approx(144 / row.ms / 1e6)
    assert row.tflops == pytest.approx(18 / row.ms / 1e9)
    assert row.bound == "memory"  # 14 ns of memory, 0.2 ns of products
    assert row.share == pytest.approx(144 / 1e10 * 1e3 / row.ms)


def test_variants_take_turns_with_rotating_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []

    def call(name: str, x: Tensor) -> Tensor:
        calls.append((name, float(x)))
        return x

    sets = [[torch.tensor(float(number))] for number in range(3)]
    works = {name: Work(partial(call, name), sets, "forward") for name in "ab"}
    monkeypatch.setattr(timing, "ROUNDS", (4, 4))
    found = timing.take_turns(works, 0.0)
    assert [name for name, _ in calls[-6:]] == ["a", "b"] * 3
    assert [number for name, number in calls[-6:] if name == "a"] == [1, 2, 0]
    assert all(isinstance(value, timing.Timing) and value.low <= value.ms <= value.high for value in found.values())


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda without a GPU, and the streams that were made current."""
    made_current: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the default stream")
    monkeypatch.setattr(torch.cuda, "set_stream", made_current.append)
    return made_current


def test_what_cannot_be_captured_says_so(streams: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Work) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    (measured, *_) = measure(case_of(square), SESSION)
    monkeypatch.setattr(timing, "capture", fails)
    monkeypatch.setattr(timing, "on_gpu", lambda _: True)
    monkeypatch.setattr(timing, "elapsed", lambda call: call() or 1.0)
    work = Work(torch.exp, [[torch.zeros(4, requires_grad=True)]], "backward")
    (found,) = timing.take_turns({"exp": work}, 0.0).values()
    assert isinstance(found, timing.Timing)
    assert found.events == "RuntimeError: operation not permitted when stream is capturing"
    assert streams == ["the default stream"]
    row = timed(measured, found, Count(8, 8), CEILING)
    assert "timed by events, launching included: RuntimeError" in row.note
    assert row.note in describe(row)


def test_a_capture_finds_no_leaf_that_was_used_before(streams: list[str]) -> None:
    """Neither its own, nor through what a measured peak left behind."""
    tensors = [torch.zeros(4, requires_grad=True), torch.zeros(4)]
    work = Work(torch.add, [tensors] * 3, "backward")
    timing.device_peak(work, 0)
    assert work.held == ()
    fresh = work.with_new_leaves(2)
    assert len(fresh.sets) == 2
    assert len(work.sets) == 3
    for new, old in zip(fresh.sets[0], tensors, strict=True):
        assert new is not old
        assert (new.is_leaf, new.requires_grad, new.data_ptr()) == (True, old.requires_grad, old.data_ptr())
    (gradient,) = fresh.backward(fresh.forward(0), 0)
    assert torch.equal(gradient, work.gradients[0])


def test_peak_memory_is_what_tensors_take() -> None:
    def three(x: Tensor) -> Tensor:
        return (x + 1) * 2 + 3  # two alive at a time

    work = Work(three, [[torch.zeros(2**18)]], "forward")
    assert timing.peak_mib(work) == pytest.approx(2, abs=0.01)
    graded = Work(torch.exp, [[torch.zeros(2**18, requires_grad=True)]], "backward")
    assert timing.peak_mib(graded) == pytest.approx(1, abs=0.01)


def test_formulas_count_what_the_products_do() -> None:
    attention = operations.bain_attention("cpu", torch.float32, 2, 6, 9, 0.3)
    level, n_fg = operations.square_level(2, 9, 0.3, "cpu")
    assert attention.foreground == n_fg / 81
    q, k, v = baselines.packed(level, *(t.float() for t in attention_inputs(2, 6, 6, 9)))
    with FlopCounterMode(display=False) as counter:
        torch.softmax(q @ k.transpose(2, 3), dim=3) @ v
    assert attention.forward.flop == counter.get_total_flops()

    for case in operations.style_loss("cpu", torch.float32, 2, 6, 9):
        if (
            case.forward.flop is None or case.op == "gram_distances"
        ):  # its reference makes both Grams of each difference
            continue
        (reference,) = [v for v in case.variants if v.name == "reference"]
        with FlopCounterMode(display=False) as counter:
            outputs = reference.function(*reference.inputs(0))
            forward = counter.get_total_flops()
            torch.autograd.grad(outputs.sum(), [t for t in reference.inputs(0) if t.requires_grad])
        assert case.forward.flop == forward, case.op
        assert case.backward is not None


@pytest.mark.parametrize(("batch", "size"), [(1, 2), (1, 7), (3, 8)])
@pytest.mark.parametrize("foreground", [0.01, 0.2, 0.5, 0.99])
def test_squares_have_both_regions(batch: int, size: int, foreground: float) -> None:
    level, n_fg = operations.square_level(batch, size, foreground, "cpu")
    assert level.counts.tolist() == [[n_fg, size * size - n_fg]] * batch
    assert 0 < n_fg < size * size
