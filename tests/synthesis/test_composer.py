"""Composites made in batches: what is changed, what is not, and how much."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scsco_fast.data.photos import Photo
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis import composer
from scsco_fast.synthesis.composer import ComposedComposites, compose
from scsco_fast.synthesis.jpeg import jpeg_like
from scsco_fast.synthesis.store import FOREGROUND_RANGE, REGIONS, Store, build_store

SIZE = 32


def photo(name: str, seed: int) -> Photo:
    """Noise on a gradient, with a disc of another colour as its object."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 60, 80)[:, None, None] * rng.uniform(0.7, 1.0, 3)
    rgb = np.clip(ramp + rng.normal(0, 5, (80, 100, 3)), 0, 255).astype(np.uint8)
    rows, columns = np.mgrid[:80, :100]
    disc = (rows - 40) ** 2 + (columns - 50) ** 2 < 20**2
    rgb[disc] = np.clip(255 - rgb[disc].astype(float) + rng.normal(0, 5, 3), 0, 255).astype(np.uint8)
    return Photo(name, rgb, disc.astype(np.uint16), ((1,),))


@pytest.fixture(scope="module")
def store() -> Store:
    return build_store([photo(f"photo {seed}", seed) for seed in range(6)], SIZE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unspoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the blur, the resizing and the compression after compositing, and with exact masks."""
    monkeypatch.setattr(composer, "MOST_BLUR", 0.0)
    monkeypatch.setattr(composer, "_spoil", lambda composite, draw: composite)
    monkeypatch.setattr(composer, "_misjudge", lambda soft, draw: (soft > 0.5).float())


def test_a_store_knows_its_foregrounds(store: Store) -> None:
    assert store.pictures.shape == (6, 3, 64, 64)
    assert store.counts.tolist() == [1] * 6
    assert len(store.masks) == 6 + 6 * REGIONS
    # The disc: 40 of 80 rows and 40 of 100 columns, around the middle.
    assert store.boxes[0].tolist() == pytest.approx([0.3, 0.25, 0.7, 0.75], abs=2 / 64)
    assert store.areas[0].item() == pytest.approx(np.pi * 400 / 8000, rel=0.05)
    inside = store.masks[:, 0] > 127
    assert torch.allclose(store.areas, inside.float().mean(dim=(1, 2)))
    assert store.areas.min() > FOREGROUND_RANGE[0] / 2


def test_a_rough_outline_is_snapped_to_the_edge_and_a_wrong_one_left_out() -> None:
    exact = photo("exact", 0)
    rows, columns = np.mgrid[:80, :100]
    diamond = ((np.abs(rows - 40) + np.abs(columns - 50)) < 26).astype(np.uint16)
    rough = Photo("rough", exact.rgb, diamond, ((1,),))
    found, wanted = (build_store([each], SIZE).masks[0, 0] > 127 for each in (rough, exact))
    assert (found & wanted).sum() > 0.9 * (found | wanted).sum()  # the diamond and the disc share 0.83
    beside = Photo("beside", exact.rgb, np.roll(diamond, 25, axis=1), ((1,),))
    with pytest.raises(ScscoError, match="has a foreground"):
        build_store([beside], SIZE)


def test_moments_are_those_of_lab(store: Store) -> None:
    from scsco_fast.reference.color import rgb_to_lab

    lab = rgb_to_lab(store.pictures[:1].double().flatten(2) / 255)[0]
    inside = (store.masks[0] > 127).flatten()
    wanted = torch.cat([lab[:, inside].mean(1), lab[:, inside].std(1, correction=0)])
    # Sums of 4096 float32 values of at most 100.
    assert torch.allclose(store.moments[0, 0].double(), wanted, atol=1e-3)


def test_composites_are_in_range_and_repeatable(store: Store) -> None:
    batch = compose(store, 24, SIZE, generator())
    again = compose(store, 24, SIZE, generator())
    for tensor, same in zip(batch, again, strict=True):
        assert torch.isfinite(tensor).all()
        assert tensor.min() >= 0
        assert tensor.max() <= 1
        assert torch.equal(tensor, same)
    assert not torch.equal(batch[1], compose(store, 24, SIZE, generator(1))[1])
    assert set(batch[2].unique().tolist()) == {0.0, 1.0}


def test_many_batches_are_finite(store: Store) -> None:
    for seed in range(10):
        assert all(torch.isfinite(tensor).all() for tensor in compose(store, 16, SIZE, generator(seed)))


def test_outside_of_the_outline_nothing_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    unspoilt(monkeypatch)
    monkeypatch.setattr(composer, "_misjudge", lambda soft, draw: (soft > 0).float())  # all of the soft outline
    composite, real, reached = compose(store, 64, SIZE, generator())
    assert torch.equal(torch.where(reached > 0, 0, composite), torch.where(reached > 0, 0, real))


def test_some_are_unchanged_and_the_others_are_spread_widely(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    unspoilt(monkeypatch)
    errors = []
    for seed in range(20):
        composite, real, mask = compose(store, 64, SIZE, generator(seed))
        squares = ((composite - real).square() * mask).sum(dim=(1, 2, 3)) * 255**2
        errors.append(squares / (3 * mask.sum(dim=(1, 2, 3)).clamp(min=1)))
    found = torch.cat(errors)
    unchanged = (found == 0).float().mean().item()
    # 1280 draws: five standard deviations of a share of 0.12 are 0.045.
    assert unchanged == pytest.approx(composer.UNCHANGED, abs=0.045)
    assert found.max() <= composer.FMSE_RANGE[1] * 1.001
    assert found[found > 0].quantile(0.9) > 3000
    assert found[found > 0].quantile(0.1) < 300


def test_references_are_of_other_photographs(store: Store) -> None:
    draw = composer._Draw(generator(), 256, torch.device("cpu"))
    owner = torch.arange(256) % 6
    pictures, _ = composer._similar(store, owner, store.moments[owner], torch.ones(256), draw)
    step = store.pictures.shape[-1] // pictures.shape[-1]
    own = store.pictures[owner][:, :, ::step, ::step].float() / 255
    assert not (pictures == own).flatten(1).all(1).any()


def test_changes_lead_away_from_the_background_as_often_as_wanted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unspoilt(monkeypatch)
    away = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(composer, "AWAY", share)
        leads = []
        for seed in range(10):
            composite, real, mask = compose(store, 64, SIZE, generator(seed))
            changed, inside, outside = (
                (picture * region).sum((2, 3)) / region.sum((2, 3)).clamp(min=1)
                for picture, region in ((composite, mask), (real, mask), (real, 1 - mask))
            )
            leads.append(((changed - inside) * (inside - outside)).sum(1))
        found = torch.cat(leads)
        away.append((found[found != 0] > 0).float().mean().item())
    # The discs are bright, so most changes lead towards the background, and the better one of two still may.
    assert away[0] < 0.25
    assert away[1] > 0.5


def test_of_two_foregrounds_the_one_more_like_its_surroundings_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = torch.zeros_like(store.moments)
    moments[: len(store.owner), 0, 0] = 1.0  # objects differ from their surroundings, regions do not
    drawn = store._replace(moments=moments)
    shares = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(composer, "ALIKE", share)
        draw = composer._Draw(generator(), 2000, torch.device("cpu"))
        chosen = composer._foreground(drawn, torch.arange(2000) % 6, draw)
        is_object = chosen < len(store.owner)
        owner = torch.where(is_object, chosen, (chosen - len(store.owner)) // REGIONS)
        assert torch.equal(owner, torch.arange(2000) % 6)  # each photograph has one object
        shares.append(is_object.float().mean().item())
    # Of two, both must be objects. Five standard deviations of a share of 2000 are 0.056.
    assert shares[0] == pytest.approx(1 - composer.REGION, abs=0.06)
    assert shares[1] == pytest.approx((1 - composer.REGION) ** 2, abs=0.06)


def test_softening_is_a_blur_of_its_own_strength_for_each_picture() -> None:
    pictures = torch.rand(3, 3, 9, 11, dtype=torch.float64, generator=generator())
    found = composer._soften(pictures, torch.tensor([0.0, 0.25, 0.1], dtype=torch.float64))
    assert torch.equal(found[0], pictures[0])
    for index, taps in ((1, [0.25, 0.5, 0.25]), (2, [0.1, 0.8, 0.1])):
        kernel = torch.tensor(taps, dtype=torch.float64)
        padded = F.pad(pictures[index : index + 1], (1, 1, 1, 1), mode="replicate").transpose(0, 1)
        wanted = F.conv2d(padded, (kernel[:, None] * kernel)[None, None]).transpose(0, 1)[0]
        torch.testing.assert_close(found[index], wanted, rtol=1e-12, atol=1e-12)


def test_jpeg_like_keeps_what_has_no_detail_and_loses_the_finest() -> None:
    flat = torch.full((1, 3, 20, 12), 128 / 255)
    assert torch.allclose(jpeg_like(flat, torch.ones(1)), flat, atol=1e-6)
    chequered = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 0.1 + 0.45
    lost = jpeg_like(chequered.expand(1, 3, 16, 16), torch.full((1,), 2.0))
    assert lost.std() < 0.2 * chequered.std()


def test_finest_quantization_is_rounding() -> None:
    """By a table of ones, each of 64 orthonormal coefficients is off by at most a half: 4 grey levels at most."""
    picture = torch.rand(2, 3, 16, 24, generator=generator())
    changed = jpeg_like(picture, torch.zeros(2))
    assert 0 < (changed - picture).abs().max() * 255 <= 4


def test_a_step_does_not_depend_on_the_others_or_on_the_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer, "PART", 4)
    composites = ComposedComposites(store, SIZE, 8, seed=3)
    whole = [composites.batch(step) for step in range(4)]
    for threaded in (False, True):
        later = list(composites.batches(range(2, 4), range(2, 6), threaded))
        for batch, wanted in zip(later, whole[2:], strict=True):
            assert torch.equal(batch.composite, wanted.composite[2:6])
            assert len(batch.names) == 4
    assert not torch.equal(whole[0].composite, ComposedComposites(store, SIZE, 8, seed=4).batch(0).composite)


def test_photographs_without_a_foreground_are_refused() -> None:
    whole = Photo("whole", np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.uint16), ((1,),))
    with pytest.raises(ScscoError, match="none of the 1 photographs has a foreground"):
        build_store([whole], SIZE)


def test_what_only_some_need_is_the_same_where_all_get_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose host does not know which. Products in another order may round to the neighbouring of 256."""
    one = ComposedComposites(store, SIZE, batch_size=32, seed=0).batch(0)
    monkeypatch.setattr(composer, "may_read_values", lambda tensor: False)
    other = ComposedComposites(store, SIZE, batch_size=32, seed=0).batch(0)
    assert torch.equal(one.real, other.real)
    assert torch.equal(one.mask, other.mask)
    assert (one.composite - other.composite).abs().max() < 1.5 / 255
    assert (one.composite != other.composite).float().mean() < 1e-3


def test_some_rows_are_retouched_as_all_would_be() -> None:
    rgb = torch.rand(6, 3, 8, 8, generator=generator())
    draws = [composer._Draw(generator(1), 6, torch.device("cpu")) for _ in range(2)]
    whole = composer._retouch(rgb, draws[0], 2.0)
    part = composer._retouch(rgb, draws[1], 2.0, slice(2, 5))
    assert torch.equal(part, whole[2:5])
    assert torch.equal(draws[0].uniform(0, 1), draws[1].uniform(0, 1))  # as many were drawn


def test_wrong_masks_are_a_pixel_larger_or_smaller() -> None:
    soft = torch.zeros(64, 1, 9, 9)
    soft[:, :, 3:6, 3:6] = 1
    areas = composer._misjudge(soft, composer._Draw(generator(), 64, torch.device("cpu"))).sum(dim=(1, 2, 3))
    assert set(areas.tolist()) == {1.0, 9.0, 25.0}
    assert (areas == 9).float().mean() > 0.5
