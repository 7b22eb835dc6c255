"""Dynamic negatives: what they are, seeds, and where they leave the real picture alone."""

from typing import Any

import pytest
import torch
from oracle import make_mask
from torch.utils._python_dispatch import TorchDispatchMode

import scsco_fast as sf
from scsco_fast.benchmarks.counting import waits
from scsco_fast.eager import transfer_color
from scsco_fast.style import negatives as module
from scsco_fast.style.negatives import RECOLOURINGS, WholeBatch
from scsco_fast.style.photometric import random_curve


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(size, 3, 12, 10, generator=generator) * torch.rand(size, 3, 1, 1, generator=generator)
    mask = make_mask("block", size, 12, 10).float()
    return real, torch.where(mask > 0.5, real * 0.5, real), mask


@pytest.mark.parametrize("size", [1, 3])
def test_composite_first_then_recoloured_foregrounds(size: int) -> None:
    real, composite, mask = batch(size)
    negatives = sf.make_negatives(real, composite, mask, 12, torch.Generator().manual_seed(1))
    assert negatives.shape == (size, 12, 3, 12, 10)
    assert torch.equal(negatives[:, 0], composite)
    outside = (mask < 0.5).expand_as(real)
    inside = ~outside
    for k in range(1, 12):
        assert torch.equal(negatives[:, k][outside], real[outside])
        assert not torch.equal(negatives[:, k][inside], real[inside])
    assert float(negatives.min()) >= 0
    assert float(negatives.max()) <= 1


def test_seeded_and_drawn_anew() -> None:
    real, composite, mask = batch()
    first, again = (sf.make_negatives(real, composite, mask, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    generator = torch.Generator().manual_seed(3)
    sf.make_negatives(real, composite, mask, 5, generator)
    assert not torch.equal(first, sf.make_negatives(real, composite, mask, 5, generator))


@pytest.mark.parametrize(("size", "number"), [(8, 1), (3, 3), (16, 4), (2, 9), (1, 2)])
def test_families_are_dealt_evenly_and_at_random(size: int, number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    totals = torch.zeros(size, len(RECOLOURINGS))
    for _ in range(200):
        families, others, _ = module._draw(size, number, generator)
        assert families.shape == others.shape == (size, number)
        counts = torch.bincount(families.flatten(), minlength=len(RECOLOURINGS))
        assert counts.max() - counts.min() <= 1
        of_each = torch.nn.functional.one_hot(families, len(RECOLOURINGS)).sum(dim=1)  # (B, families)
        assert (of_each.amax(1) - of_each.amin(1)).max() <= 1
        assert ((others != torch.arange(size)[:, None]) | (size == 1)).all()
        totals += of_each
    assert (totals / 200 - number / len(RECOLOURINGS)).abs().max() < 0.15  # three standard errors


def test_one_call_for_each_family(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, list[int]] = {}

    def transfer(source: torch.Tensor, reference: torch.Tensor, family: str, *_: object, **__: object) -> torch.Tensor:
        called.setdefault(family, []).append(len(source))
        return source

    def curve(images: torch.Tensor, _: object) -> torch.Tensor:
        called.setdefault("curve", []).append(len(images))
        return images

    monkeypatch.setattr(module, "transfer_color", transfer)
    monkeypatch.setattr(module, "apply_curve", curve)
    real, composite, mask = batch(8)
    sf.make_negatives(real, composite, mask, 5, torch.Generator().manual_seed(0))
    assert called == {family: [8] for family in RECOLOURINGS}


def test_each_recolouring_is_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered by family and put back: every negative equals what its image, reference and family give alone."""
    monkeypatch.setattr(module, "RECOLOURINGS", ("reinhard", "gaussian", "histogram"))  # the curve draws per image
    real, composite, mask = batch(5)
    families, others, _ = module._draw(5, 4, torch.Generator().manual_seed(2))
    negatives = sf.make_negatives(real, composite, mask, 5, torch.Generator().manual_seed(2))
    for image in range(5):
        for k in range(4):
            other = int(others[image, k])
            alone = sf.ops.transfer_color(
                real[image][None],
                real[other][None],
                module.RECOLOURINGS[int(families[image, k])],
                mask[image][None],
                reference_mask=mask[other][None],
            )
            torch.testing.assert_close(negatives[image, k + 1], alone[0], rtol=0, atol=1e-5)


class Waiting(TorchDispatchMode):
    """Operations on meta tensors that would make the host wait if they were CUDA tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self.seen += any(leaf.is_meta for leaf in leaves if isinstance(leaf, torch.Tensor))
        reason = waits(func, args, kwargs or {})
        if reason is not None:
            self.found.append(reason)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def constants_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.tensor(numbers, device="cuda") copies, and waits for the copy; no dispatch mode sees it."""
    build, build_like = torch.tensor, torch.Tensor.new_tensor

    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert torch.device(kwargs.get("device") or "cpu").type == "cpu", "torch.tensor on a device waits"
        return build(*args, **kwargs)

    def new_tensor(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert self.device.type == "cpu", "Tensor.new_tensor on a device waits"
        return build_like(self, *args, **kwargs)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.Tensor, "new_tensor", new_tensor)


@pytest.mark.usefixtures("constants_stay_on_the_host")
@pytest.mark.parametrize("method", list(transfer_color.METHODS))
def test_the_eager_transfer_never_waits(method: str) -> None:
    """The implementation itself: on meta tensors the registered operation is its fake."""
    source, reference = (torch.rand(4, 3, *size, device="meta") for size in ((12, 10), (9, 8)))
    mask, there = (torch.ones(4, 1, *size, dtype=torch.bool, device="meta") for size in ((12, 10), (9, 8)))
    with Waiting() as waiting:
        assert transfer_color.forward(source, reference, mask, there, method).shape == source.shape
    assert waiting.found == []
    assert waiting.seen > 20


@pytest.mark.usefixtures("constants_stay_on_the_host")
@pytest.mark.parametrize("size", [1, 6])
def test_negatives_never_wait(size: int) -> None:
    real, composite, mask = (torch.rand(size, channels, 12, 10, device="meta") for channels in (3, 3, 1))
    with Waiting() as waiting:
        assert sf.make_negatives(real, composite, mask, 6).shape == (size, 6, 3, 12, 10)
    assert waiting.found == []
    assert waiting.seen > 20


def test_waiting_is_seen() -> None:
    x = torch.ones(4, device="meta")
    with Waiting() as waiting:
        torch.ones(4).to("meta")
        torch.ones(4).to("meta", non_blocking=True)
        x[torch.zeros(4, dtype=torch.long, device="meta")]
    assert waiting.found == ["aten::_to_copy from cpu to meta"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_negatives_never_wait_on_a_gpu(backend: str) -> None:
    """CUDA itself says so: in this mode every synchronising call is an error."""
    real, composite, mask = (tensor.cuda() for tensor in batch(6))
    with sf.use_backend(backend):
        wanted = sf.make_negatives(real, composite, mask, 6, torch.Generator().manual_seed(0))  # compiles, loads
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = sf.make_negatives(real, composite, mask, 6, torch.Generator().manual_seed(0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, wanted)
    on_host = sf.make_negatives(real.cpu(), composite.cpu(), mask.cpu(), 6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.cpu(), on_host, rtol=0, atol=1 / 64)  # a histogram's bin edge


@pytest.mark.parametrize("cuts", [(2, 3), (1, 1, 3), (5,)])
def test_parts_of_a_batch_have_the_negatives_of_the_whole(cuts: tuple[int, ...]) -> None:
    real, composite, mask = batch(5)
    whole = sf.make_negatives(real, composite, mask, 12, torch.Generator().manual_seed(2))
    first = 0
    for rows in cuts:
        part = slice(first, first + rows)
        negatives = sf.make_negatives(
            real[part],
            composite[part],
            mask[part],
            12,
            torch.Generator().manual_seed(2),
            WholeBatch(real, mask, first),
        )
        torch.testing.assert_close(negatives, whole[part], rtol=0, atol=1e-6)
        first += rows


def test_random_curve_of_strength_zero_is_the_identity() -> None:
    real, _, _ = batch()
    torch.testing.assert_close(random_curve(real, strength=0.0), real, rtol=0, atol=1e-6)
    changed = random_curve(real, torch.Generator().manual_seed(0))
    assert (changed - real).abs().mean() > 0.02


def test_bad_arguments_are_named() -> None:
    real, composite, mask = batch()
    with pytest.raises(ValueError, match="count must be at least 1"):
        sf.make_negatives(real, composite, mask, 0)
    with pytest.raises(ValueError, match="composite must have the shape of real"):
        sf.make_negatives(real, composite[:1], mask, 2)


@pytest.mark.parametrize("count", [1, 4])
def test_no_images_have_no_negatives(count: int) -> None:
    real, composite, mask = (tensor[:0] for tensor in batch())
    assert sf.make_negatives(real, composite, mask, count).shape == (0, count, 3, 12, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_16_bits_are_recoloured_in_float32(backend: str, dtype: torch.dtype) -> None:
    """Every family, rounded once: the same as what float32 gives for the same colours."""
    real, composite, mask = (tensor.to(dtype) for tensor in batch())
    with sf.use_backend(backend):
        ours, theirs = (
            sf.make_negatives(real.to(d), composite.to(d), mask.to(d), 5, torch.Generator().manual_seed(0))
            for d in (dtype, torch.float32)
        )
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs.to(dtype))


def test_a_nan_picture_spoils_only_the_negatives_that_use_it() -> None:
    real, composite, mask = batch(4)
    _, others, _ = module._draw(4, 4, torch.Generator().manual_seed(0))
    clean = sf.make_negatives(real, composite, mask, 5, torch.Generator().manual_seed(0))
    broken = real.clone()
    broken[2, 0, 1, 1] = torch.nan  # in its foreground
    negatives = sf.make_negatives(broken, composite, mask, 5, torch.Generator().manual_seed(0))
    for image in (0, 1, 3):
        for k in range(5):
            if k == 0 or others[image, k - 1] != 2:
                assert torch.equal(negatives[image, k], clean[image, k])
