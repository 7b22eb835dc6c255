"""bain_norm: the composed form on every device, checks of its arguments; BAIN's own tests hold it to the formula."""

import pytest
import torch
from oracle import make_mask, random
from torch import Tensor

import scsco_fast as sf


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    maps = [random(3, c, 5, 6, seed=seed, dtype=dtype) for seed, c in enumerate((4, 4, 5, 5))]
    return [
        *maps,
        *(
            random(5, seed=seed, dtype=torch.float32).to(torch.promote_types(dtype, torch.float32))
            for seed in range(10, 14)
        ),
    ]


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_formula(backend: str) -> None:
    query, key, value, n, *parameters = inputs()
    mask = make_mask("random", 3, 5, 6)
    mean, std = sf.ops.bain_attention(query, key, value, mask, backend="reference")
    wf, bf, wb, bb = (p.reshape(1, -1, 1, 1) for p in parameters)
    wanted = torch.where(mask > 0.5, (std * n + mean) * wf + bf, n * wb + bb)
    got = sf.ops.bain_norm(query, key, value, n, mask, *parameters, backend=backend)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    plain = sf.ops.bain_norm(query, key, value, n, mask, backend=backend)
    torch.testing.assert_close(plain, torch.where(mask > 0.5, std * n + mean, n), rtol=1e-12, atol=1e-12)


def test_output_takes_the_dtype_of_normalised() -> None:
    query, key, value, n, *_ = inputs(torch.float32)
    assert sf.ops.bain_norm(query, key, value, n.bfloat16(), make_mask("block", 3, 5, 6)).dtype == torch.bfloat16


def test_arguments_are_named() -> None:
    query, key, value, n, *_ = inputs()
    mask = make_mask("block", 3, 5, 6)
    with pytest.raises(ValueError, match=r"the shape of normalised must agree with value: got \(3, 5, 5, 5\)"):
        sf.ops.bain_norm(query, key, value, n[..., :5], mask)
    with pytest.raises(ValueError, match=r"the shape of fg_bias must agree with the features' channels: got \(4,\)"):
        sf.ops.bain_norm(query, key, value, n, mask, fg_bias=torch.zeros(4))
    with pytest.raises(TypeError, match="normalised must be a tensor, got str"):
        sf.ops.bain_norm(query, key, value, "n", mask)
