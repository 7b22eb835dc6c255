"""transfer_color of every backend that has it against the float64 formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from guarded import Guard
from mode import BACKEND, DTYPES
from oracle import OPCHECKS, make_mask
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.ops.backend import implementation, implements, refusal

THERE = implements(BACKEND, "transfer_color")
pytestmark = pytest.mark.skipif(not THERE, reason=f"there is no {BACKEND} kernel of transfer_color")
kernels = implementation(BACKEND, "transfer_color") if THERE else None
# In float32: approximate powers, and a value on the edge of a bin may fall into the next one.
NEAR = {"reinhard": 2e-4, "gaussian": 2e-5, "histogram": 1 / 256}
REFUSED = {"eager": [], "cuda": [], "triton": [torch.float64]}


def pictures(size: tuple[int, int] = (9, 11), other: tuple[int, int] = (8, 13)) -> tuple[Tensor, Tensor]:
    """Two sources of different contrast, one of them almost flat, and two references."""
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, *size, generator=generator) * 0.5 + 0.2
    source[1] = 0.4 + 0.01 * source[1]
    return source, torch.rand(2, 3, *other, generator=generator) ** 2 * 0.6 + 0.1


def check(source: Tensor, reference: Tensor, method: str, mask: Tensor, shown: Tensor) -> None:
    result = sf.ops.transfer_color(source, reference, method, mask, BACKEND, shown)
    wanted = sf.ops.transfer_color(source.double(), reference.double(), method, mask, "reference", shown)
    inside = (mask > 0.5).expand_as(source)
    assert result.is_contiguous()
    assert result.dtype == source.dtype
    assert torch.equal(result[~inside], source[~inside])
    narrow = sf.ops.transfer_color(source.float(), reference.float(), method, mask, "reference", shown)
    # Twice what float32 itself costs: with five examples, a share on the edge of a step lands one step further.
    band = NEAR[method] + torch.finfo(source.dtype).eps + 2 * float((narrow - wanted).abs().nan_to_num(0).max())
    torch.testing.assert_close(result.double(), wanted, rtol=0, atol=band)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float64])
@pytest.mark.parametrize("mask", ["random", "one pixel", "empty", "full", "ragged"])
@pytest.mark.parametrize("method", TRANSFERS)
def test_masks(method: str, mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    source, example = (guarded(t.to(dtype)) for t in pictures())
    check(source, example, method, make_mask(mask, 2, 9, 11), make_mask("random", 2, 8, 13))


@pytest.mark.parametrize("method", TRANSFERS)
def test_an_empty_reference_changes_nothing(method: str) -> None:
    source, example = pictures()
    shown = make_mask("ragged", 2, 8, 13)  # none in the first image
    result = sf.ops.transfer_color(source, example, method, None, BACKEND, shown)
    assert torch.equal(result[0], source[0])
    check(source, example, method, make_mask("full", 2, 9, 11), shown)


@pytest.mark.parametrize("method", TRANSFERS)
def test_several_blocks(method: str) -> None:
    source, example = pictures((45, 50), (33, 64))
    check(source, example, method, make_mask("block", 2, 45, 50), make_mask("random", 2, 33, 64))


@pytest.mark.parametrize("method", TRANSFERS)
def test_layouts(method: str, guarded: Guard) -> None:
    mask, shown = make_mask("random", 2, 9, 11), make_mask("random", 2, 8, 13)
    source, example = pictures()
    check(*(guarded(t.to(memory_format=torch.channels_last)) for t in (source, example)), method, mask, shown)
    check(*(t[:1].expand(2, -1, -1, -1) for t in (source, example)), method, mask, shown)
    check(pictures((11, 9))[0].transpose(2, 3), example.half(), method, mask, shown)


@pytest.mark.parametrize("method", TRANSFERS)
def test_nan_outside_the_masks_is_not_read(method: str) -> None:
    source, example = pictures()
    mask, shown = make_mask("random", 2, 9, 11), make_mask("block", 2, 8, 13)
    clean = sf.ops.transfer_color(source, example, method, mask, BACKEND, shown)
    holed = [torch.where(m > 0.5, t, torch.nan) for t, m in ((source, mask), (example, shown))]
    result = sf.ops.transfer_color(*holed, method, mask, BACKEND, shown)
    inside = (mask > 0.5).expand_as(source)
    assert torch.equal(result[inside], clean[inside])
    assert result[~inside].isnan().all()


@pytest.mark.parametrize("pixels", [1, 2, 15, 17, 64, 130])
def test_pixels(pixels: int) -> None:
    source, example = pictures((1, pixels), (1, 5))
    for method in TRANSFERS:
        check(source, example, method, make_mask("full", 2, 1, pixels), make_mask("full", 2, 1, 5))


def test_registered_op_passes_opcheck() -> None:
    source, example = pictures()
    masks = [make_mask("random", 2, *t.shape[2:]) > 0.5 for t in (source, example)]
    arguments = (source, example, *masks, "gaussian", BACKEND)
    torch.library.opcheck(torch.ops.scsco_fast.transfer_color.default, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("method", TRANSFERS)
def test_addresses_pass_2_to_the_31(method: str, tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    near, example = (t.half() for t in pictures((2, 3)))
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(2 * apart + 12,))
    far = torch.from_numpy(file).as_strided((2, 3, 2, 3), (6, apart, 3, 1)).copy_(near)
    masks = [make_mask("full", 2, *t.shape[2:]) > 0.5 for t in (near, example)]
    assert torch.equal(kernels.forward(far, example, *masks, method), kernels.forward(near, example, *masks, method))


@pytest.mark.parametrize("dtype", REFUSED[BACKEND])
def test_what_is_not_served_is_named(dtype: torch.dtype) -> None:
    source, example = (t.to(dtype) for t in pictures())
    assert "float64" in str(refusal(BACKEND, "transfer_color", source, example))
    with pytest.raises(RuntimeError, match="float64"):
        sf.ops.transfer_color(source, example, "gaussian", backend=BACKEND)
