"""Cut-outs laid on backgrounds, layers for editors, and edits: colours at the edges, places, and what stays."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from stand_ins import Recolour, Shift, disc, picture

from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.masks import CoverageWarning
from scsco_fast.harmonizing.pictures import UnchangedWarning, harmonize
from scsco_fast.harmonizing.placing import Layer, canvas, changed_mask, over, place

SHIFT = Shift(0.1, -0.05, 0.2)
NOTHING = Shift(0.0, 0.0, 0.0)


def cut_out(height: int = 40, width: int = 50, soft: bool = True) -> np.ndarray:
    """(H, W, 4) uint8: a disc whose hidden pixels are black, as background removers write them."""
    inside = disc(height, width, 0.4)
    alpha = np.where(inside, 255, 0).astype(np.uint8)
    if soft:
        alpha[inside & ~disc(height, width, 0.3)] = 120
    return np.dstack([np.where(inside[..., None], picture(height, width, 1), 0), alpha])


def silent(*arguments: object, **options: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnchangedWarning)
        return harmonize(*arguments, **options)  # type: ignore[arg-type,type-var]


def blended(front: np.ndarray, alpha: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """alpha F + (1 - alpha) B in float64, of 8-bit arrays."""
    share = alpha[..., None] / 255
    return share * front + (1 - share) * behind


@pytest.mark.parametrize(
    ("at", "rows", "columns"),
    [
        ((7, 5), (5, 45), (7, 57)),
        (None, (30, 70), (35, 85)),
        ((-20, -10), (0, 30), (0, 30)),
        ((100, 90), (90, 100), (100, 120)),
    ],
)
def test_a_cut_out_lies_where_it_is_put(
    at: tuple[int, int] | None, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    cut, background = cut_out(), picture(100, 120)
    result = silent(cut, model=NOTHING, background=background, at=at)
    x, y = at or (35, 30)
    part = cut[rows[0] - y : rows[1] - y, columns[0] - x : columns[1] - x]
    box = np.s_[rows[0] : rows[1], columns[0] : columns[1]]
    wanted = background.astype(np.float64)
    wanted[box] = blended(part[..., :3], part[..., 3], background[box])
    assert np.abs(result - wanted).max() <= 0.5 + 1e-4
    visible = np.zeros(background.shape[:2], bool)
    visible[box] = part[..., 3] > 0
    assert np.array_equal(result[~visible], background[~visible])


def test_the_foregrounds_own_colour_is_changed_and_then_blended() -> None:
    """At a soft edge the background shines through as it is: alpha (F + change) + (1 - alpha) B."""
    cut, background = cut_out(), picture(100, 120)
    result = harmonize(cut, model=SHIFT, background=background, at=(7, 5))
    shift = np.array([0.1, -0.05, 0.2]) * 255
    wanted = background.astype(np.float64)
    box = np.s_[5:45, 7:57]
    wanted[box] = blended((cut[..., :3] + shift).clip(0, 255), cut[..., 3], background[box])
    assert np.abs(result - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("scale", [0.5, 0.37, 2.0, 3.3])
def test_a_scaled_cut_out_has_no_rim_of_hidden_colours(scale: float) -> None:
    """Hidden colours, green here, must not bleed into the edge: all that is visible is one colour."""
    cut = cut_out(soft=False)
    cut[..., :3] = np.where(cut[..., 3:] > 0, (200, 100, 50), (0, 255, 0))
    layer = place(cut[..., :3] / np.float32(255), cut[..., 3] / np.float32(255), (200, 200), (10, 20), scale)
    assert layer.alpha.shape == (round(40 * scale), round(50 * scale))
    assert layer.corner == (20, 10)
    seen = layer.alpha > 1e-3
    assert seen.any()
    assert np.abs(layer.colours[seen] - np.array([200, 100, 50]) / 255).max() < 1e-3
    share = (cut[..., 3] > 0).mean()
    assert abs(layer.alpha.mean() - share) < 0.02


@pytest.mark.parametrize("at", [(-31, 3), (60, -22), (-9, 70)])
def test_what_is_cut_off_is_not_computed_and_the_rest_is_the_same(at: tuple[int, int]) -> None:
    colours, alpha = picture(40, 50).astype(np.float32) / 255, np.ones((40, 50), np.float32)
    whole = place(colours, alpha, (300, 300), (100, 100), 2.0)
    part = place(colours, alpha, (90, 90), at, 2.0)
    top, left = part.corner[0] - at[1], part.corner[1] - at[0]
    rows, columns = part.alpha.shape
    wanted = whole.colours[top : top + rows, left : left + columns]
    inner = np.s_[4:-4, 4:-4]  # the filter ends at the border of what is seen
    assert np.abs(part.colours[inner] - wanted[inner]).max() < 1e-3


def test_linear_light_blends_light() -> None:
    layer = Layer(np.ones((1, 1, 3), np.float32), np.full((1, 1), 0.5, np.float32), (0, 0))
    black = np.zeros((1, 2, 3), np.float64)
    assert over(layer, black)[0, 0, 0] == pytest.approx(0.5)
    assert over(layer, black, linear_light=True)[0, 0, 0] == pytest.approx(0.735357, abs=1e-5)  # sRGB of half the light
    assert over(layer, black, linear_light=True)[0, 1, 0] == 0
    opaque = layer._replace(alpha=np.ones((1, 1), np.float32), colours=np.full((1, 1, 3), 77 / 255, np.float32))
    assert over(opaque, np.zeros((1, 1, 3), np.uint8), linear_light=True).tolist() == [[[77, 77, 77]]]


def test_a_background_with_alpha_takes_the_union() -> None:
    layer = Layer(np.full((1, 3, 3), 1.0, np.float32), np.array([[0, 0.5, 1]], np.float32), (0, 0))
    background = np.zeros((1, 3, 4), np.float64)
    background[..., 3] = 0.5
    result = over(layer, background)
    assert result[0, 0].tolist() == [0, 0, 0, 0.5]
    assert result[0, 1].tolist() == pytest.approx([0.5 / 0.75] * 3 + [0.75])
    assert result[0, 2].tolist() == [1, 1, 1, 1]


def test_a_grey_background_stays_grey() -> None:
    cut, background = cut_out(soft=False), picture(100, 120)[:, :, 0]
    result = silent(cut, model=NOTHING, background=background, at=(7, 5))
    assert result.shape == background.shape
    inside = cut[..., 3] > 0
    luma = cut[inside, :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(result[5:45, 7:57][inside] - luma).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_types_of_cut_out_and_background_may_differ(dtype: type) -> None:
    scale = {np.uint8: 1, np.uint16: 257}.get(dtype, 1 / 255)
    background = picture(100, 120)
    typed = (background * np.float64(scale)).astype(dtype)
    result = harmonize(cut_out(), model=SHIFT, background=typed, at=(7, 5))
    assert result.dtype == dtype
    eight = harmonize(cut_out(), model=SHIFT, background=background, at=(7, 5))
    assert np.abs(result / np.float64(scale) - eight).max() <= 0.51


def test_pil_images() -> None:
    background = Image.fromarray(picture(100, 120))
    background.info["icc_profile"] = b"a profile"
    result = harmonize(Image.fromarray(cut_out()), model=SHIFT, background=background, at=(7, 5))
    assert isinstance(result, Image.Image)
    assert (result.mode, result.info["icc_profile"]) == ("RGB", b"a profile")
    assert np.array_equal(result, harmonize(cut_out(), model=SHIFT, background=np.asarray(background), at=(7, 5)))


def test_a_mask_cuts_out_of_an_opaque_picture() -> None:
    opaque, background = picture(40, 50, 1), picture(100, 120)
    with_alpha = np.dstack([opaque, disc(40, 50, 0.4).astype(np.uint8) * 255])
    wanted = harmonize(with_alpha, model=SHIFT, background=background)
    assert np.array_equal(harmonize(opaque, disc(40, 50, 0.4), SHIFT, background=background), wanted)


def test_growing_a_cut_out() -> None:
    opaque, background = picture(40, 50, 1), picture(100, 120)
    layers = [
        harmonize(opaque, disc(40, 50), SHIFT, background=background, grow_mask=n, layer=True) for n in (-3, 0, 3)
    ]
    areas = [int((layer[..., 3] > 0).sum()) for layer in layers]
    assert areas[0] < areas[1] < areas[2]
    shrunk = harmonize(cut_out(), model=SHIFT, background=background, grow_mask=-3, layer=True)
    assert 0 < (shrunk[..., 3] > 0).sum() < (cut_out()[..., 3] > 0).sum()
    with pytest.raises(ScscoError, match="cannot be grown into"):
        harmonize(cut_out(), model=SHIFT, background=background, grow_mask=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_layer_over_the_background_is_the_result(dtype: type) -> None:
    scale = 257 if dtype is np.uint16 else 1
    cut, background = cut_out(), picture(100, 120).astype(dtype) * dtype(scale)
    given = {"background": background, "at": (7, 5), "scale": 1.3}
    layer = harmonize(cut, model=Recolour(), layer=True, **given)
    assert (layer.shape, layer.dtype) == ((100, 120, 4), dtype)
    result = harmonize(cut, model=Recolour(), **given)
    alpha = layer[..., 3:] / np.iinfo(dtype).max
    laid = alpha * layer[..., :3] + (1 - alpha) * background
    assert np.abs(laid - result).max() <= 1 + 0.5 * scale  # colours and alpha are both rounded
    assert not layer[layer[..., 3] == 0].any()


def test_the_layer_of_a_composite_over_it_is_the_result() -> None:
    image = picture(90, 120)
    mask = np.clip(1.6 - np.hypot(*(np.mgrid[0:90, 0:120] - np.array([45, 60])[:, None, None])) / 20, 0, 1)
    layer = harmonize(image, mask, Recolour(), layer=True)
    alpha = layer[..., 3:] / 255
    laid = alpha * layer[..., :3] + (1 - alpha) * image
    assert np.abs(laid - harmonize(image, mask, Recolour())).max() <= 1.5
    assert np.array_equal(layer[..., 3] > 0, np.rint(mask * 255) > 3)


def test_canvas_is_empty_elsewhere() -> None:
    layer = Layer(np.ones((1, 2, 3), np.float32), np.array([[0, 1]], np.float32), (1, 0))
    assert canvas(layer, (3, 2), np.dtype(np.uint8)).sum(axis=2).tolist() == [[0, 0], [0, 4 * 255], [0, 0]]


@pytest.mark.parametrize(
    ("cut", "options", "message"),
    [
        (cut_out(), {"at": (200, 5)}, "50x40 at 200,5 lies outside of the background of 120x100; give another place"),
        (cut_out(), {"scale": 0.0}, "the scale is 0; wanted a number above 0"),
        (cut_out(), {"scale": float("nan")}, "the scale is nan"),
        (cut_out()[..., :3], {}, "has no transparent pixel and no mask"),
        (np.dstack([cut_out()[..., :3], np.full((40, 50), 255, np.uint8)]), {}, "has no transparent pixel and no mask"),
        (np.zeros((40, 50, 4), np.uint8), {}, "no pixel of the cut-out is visible"),
        (cut_out(), {"before": picture(100, 120)}, "both background and before"),
        (cut_out(), {"mask": np.ones((9, 9))}, "the mask is 9x9 .* but the cut-out is 50x40"),
    ],
)
def test_cut_outs_that_cannot_be_placed(cut: np.ndarray, options: dict[str, object], message: str) -> None:
    with pytest.raises(ScscoError, match=message) as caught:
        harmonize(cut, model=SHIFT, background=picture(100, 120), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_options_of_another_way_are_refused() -> None:
    image, mask = picture(40, 50), disc(40, 50)
    with pytest.raises(ScscoError, match="a composite needs its mask"):
        harmonize(image, model=SHIFT)
    for options in ({"at": (1, 2)}, {"scale": 2.0}, {"linear_light": True}):
        with pytest.raises(ScscoError, match="place a cut-out; give its background"):
            harmonize(image, mask, SHIFT, **options)  # type: ignore[arg-type]


def edited(before: np.ndarray, amount: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a disc changed, and the disc."""
    inside = disc(*before.shape[:2])
    return np.where(inside[..., None], (before.astype(int) + amount).clip(0, 255), before).astype(np.uint8), inside


@pytest.mark.parametrize("amount", [-60, 15, 60])
def test_the_mask_of_an_edit_is_found(amount: int) -> None:
    before = picture(150, 200)
    after, inside = edited(before, amount)
    assert np.array_equal(changed_mask(before, after), inside)


def test_gaps_in_an_edit_are_closed_and_wide_ones_are_not() -> None:
    before = picture(150, 200)
    after, inside = edited(before, 50)
    after[75:77], after[:, 90:115] = before[75:77], before[:, 90:115]  # a thin and a wide stripe that were not changed
    found = changed_mask(before, after) > 0
    assert found[75:77][inside[75:77]].mean() > 0.7
    assert not found[:, 95:110].any()


def test_an_edit_of_a_few_levels_is_found_and_rounding_is_not() -> None:
    before = picture(150, 200)
    after, inside = edited(before, 12)
    assert (changed_mask(before, after) > 0)[inside].mean() > 0.99
    rounded, _ = edited(before, 2)
    assert not changed_mask(before, rounded).any()


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_a_cut_out_is_reduced_without_aliasing(scale: float) -> None:
    """A checkerboard of single pixels becomes its mean; taking the nearest pixel would leave black or white."""
    board = np.indices((80, 80)).sum(axis=0) % 2 * np.ones((3, 1, 1))
    colours = np.moveaxis(board, 0, 2).astype(np.float32)
    layer = place(colours, np.ones((80, 80), np.float32), (200, 200), None, scale)
    assert np.abs(layer.colours[2:-2, 2:-2] - 0.5).max() < 0.01


@pytest.mark.parametrize("quality", [95, 80])
def test_jpeg_does_not_hide_an_edit(quality: int) -> None:
    before = np.asarray(Image.fromarray(picture(150, 200)).resize((400, 300), Image.Resampling.BICUBIC))
    after, inside = edited(before, 40)
    written = io.BytesIO()
    Image.fromarray(after).save(written, "JPEG", quality=quality)
    found = changed_mask(before, np.asarray(Image.open(written))) > 0
    assert (found & inside).sum() > 0.98 * inside.sum()
    assert (found & ~inside).sum() < 0.03 * inside.sum()


@pytest.mark.parametrize("given", [False, True])
def test_outside_of_an_edit_the_original_stays(given: bool) -> None:
    before = picture(150, 200)
    after, inside = edited(before, 50)
    noisy = np.where(inside[..., None], after, np.where(before > 100, before - 2, before + 2)).astype(np.uint8)
    result = harmonize(noisy, inside if given else None, SHIFT, before=before)
    assert np.array_equal(result[~inside], before[~inside])
    wanted = after[inside] / 255 + [0.1, -0.05, 0.2]
    assert np.abs(result[inside] / 255 - wanted.clip(0, 1)).max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize(
    ("change", "mask", "message"),
    [
        (lambda before: before.copy(), None, "differ nowhere; give the mask"),
        (lambda before: 255 - before, None, "differ everywhere; give the mask"),
        (lambda before: before[1:], None, "the edited picture is 60x39 .* but the picture before is 60x40"),
        (lambda before: 255 - before, np.zeros((40, 60)), "the mask is empty"),
        (lambda before: 255 - before, np.ones((9, 9)), "the mask is 9x9"),
    ],
)
def test_edits_that_cannot_be_used(change: object, mask: np.ndarray | None, message: str) -> None:
    before = np.full((40, 60, 3), 60, np.uint8)
    with pytest.raises(ScscoError, match=message):
        harmonize(change(before), mask, SHIFT, before=before)  # type: ignore[operator]


def test_an_edit_that_the_network_leaves_says_so() -> None:
    before = picture(60, 80)
    after, inside = edited(before, 30)
    with pytest.warns(UnchangedWarning, match="no pixel was changed"):
        result = harmonize(after, inside, NOTHING, before=before)
    assert np.array_equal(result, after)


def test_an_edit_takes_the_masks_options() -> None:
    before = picture(80, 100)
    after, inside = edited(before, 50)
    areas = [
        int((harmonize(after, inside, SHIFT, before=before, grow_mask=pixels, layer=True)[..., 3] > 0).sum())
        for pixels in (-3, 0, 3)
    ]
    assert areas[0] < areas[1] == inside.sum() < areas[2]
    with pytest.warns(CoverageWarning, match="--invert-mask"):
        harmonize(after, ~inside, SHIFT, before=before)


def test_a_mask_is_multiplied_with_the_cut_outs_alpha() -> None:
    mask = np.zeros((40, 50), np.float32)
    mask[:, :25] = 0.5
    layer = harmonize(cut_out(), mask, SHIFT, background=picture(100, 120), at=(7, 5), layer=True)
    assert np.abs(layer[5:45, 7:57, 3] - mask * cut_out()[..., 3]).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("way", ["composite", "cut-out"])
def test_a_layer_without_a_change_says_so(way: str) -> None:
    given = {"background": picture(100, 120)} if way == "cut-out" else {"mask": disc(40, 50)}
    image = cut_out() if way == "cut-out" else picture(40, 50)
    with pytest.warns(UnchangedWarning, match="no pixel was changed"):
        harmonize(image, model=NOTHING, layer=True, **given)  # type: ignore[arg-type]
