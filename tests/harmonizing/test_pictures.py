"""One picture of any size, type and mode: what must change, what must not, and what is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stand_ins import Recolour, Shift, disc, picture

from scsco_fast.data.images import image_to_tensor, tensor_to_image
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing import recolour
from scsco_fast.harmonizing.masks import FLOOR
from scsco_fast.harmonizing.pictures import UnchangedWarning, harmonize
from scsco_fast.nn.local_affine import extend
from scsco_fast.nn.unet import HarmonizationUNet

FLOAT32 = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("size", [(48, 64), (37, 53), (1, 40), (9, 5)])
def test_native_size_is_the_network_itself(size: tuple[int, int], small_model: HarmonizationUNet) -> None:
    image, mask = picture(*size), np.zeros(size, dtype=bool)
    mask[: (size[0] + 1) // 2, : size[1] // 2] = True
    with torch.no_grad():
        fed = torch.from_numpy(mask)[None, None].float()
        wanted = tensor_to_image(small_model(image_to_tensor(image)[None], fed)[0])
    result = harmonize(image, mask, small_model)
    assert np.abs(result.astype(int) - wanted).max() <= 1  # a rounding of the sum may fall to the other side
    assert (result == wanted).mean() > 0.99
    assert (result != image).any()


@pytest.mark.parametrize("size", [(48, 64), (300, 170)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_background_is_identical_and_type_kept(
    size: tuple[int, int], dtype: type, small_model: HarmonizationUNet
) -> None:
    image = picture(*size)
    scale = {np.uint8: 1, np.uint16: 257}.get(dtype, 1 / 255)
    typed, mask = (image * np.float64(scale)).astype(dtype), disc(*size)
    typed[0, 0] = np.negative(typed[0, 0] * 0)  # -0.0 in a float picture: equal to 0, but not the same bits
    before = typed.copy()
    result = harmonize(typed, mask, small_model)
    assert result.dtype == dtype
    assert result.shape == typed.shape
    assert result[~mask].tobytes() == typed[~mask].tobytes()
    assert (result[mask] != typed[mask]).any()
    assert typed.tobytes() == before.tobytes()


def test_types_agree(small_model: HarmonizationUNet) -> None:
    image, mask = picture(90, 120), disc(90, 120)
    as_bytes = harmonize(image, mask, small_model) / 255
    as_floats = harmonize(image.astype(np.float32) / 255, mask, small_model)
    as_words = harmonize(image.astype(np.uint16) * 257, mask, small_model) / 65535
    assert np.abs(as_bytes - as_floats).max() <= 0.5 / 255 + 1e-6
    assert np.abs(as_words - as_floats).max() <= 0.5 / 65535 + 1e-6


def test_detail_of_a_large_picture_is_kept() -> None:
    """A constant change reaches every foreground pixel, border included, and nothing is blurred."""
    image, mask = picture(500, 300), disc(500, 300)
    model = Shift(0.1, -0.05, 0.0)
    result = harmonize(image.astype(np.float64) / 255, mask, model, working_size=64)
    wanted = image / 255 + mask[:, :, None] * np.array([0.1, -0.05, 0.0])
    assert np.abs(result - wanted).max() < 1e-6
    assert max(model.seen[0][0].shape[-2:]) == 64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [None, 48])
def test_a_network_that_changes_nothing_leaves_every_bit(dtype: type, size: int | None) -> None:
    scale = {np.uint8: 1, np.uint16: 257}.get(dtype, 1 / 255)
    image, mask = (picture(301, 173) * np.float64(scale)).astype(dtype), disc(301, 173).astype(np.float32)
    image[100, 80] = np.negative(image[100, 80] * 0)  # -0.0 in a float picture
    mask[120:130] *= 0.3
    with pytest.warns(UnchangedWarning):
        assert harmonize(image, mask, Shift(0.0, 0.0, 0.0), size).tobytes() == image.tobytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_strips_do_not_show(channels: int, monkeypatch: pytest.MonkeyPatch, small_model: HarmonizationUNet) -> None:
    image = picture(211, 157)
    image = np.dstack([image, image[:, :, :1] | 1])[:, :, :channels] if channels != 2 else image[:, :, :2] | 1
    whole = harmonize(image, disc(211, 157), small_model)
    monkeypatch.setattr(recolour, "_STRIP", 600)
    assert np.abs(harmonize(image, disc(211, 157), small_model).astype(int) - whole).max() <= 1


def test_only_the_masks_box_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from scsco_fast.nn.local_affine import enlarged_rows

    asked = []

    def spy(values, size, rows, columns, step):  # type: ignore[no-untyped-def]
        asked.append((rows, columns))
        return enlarged_rows(values, size, rows, columns, step)

    monkeypatch.setattr(recolour, "enlarged_rows", spy)
    mask = np.zeros((300, 400), bool)
    mask[100:120, 30:70] = mask[110, 350] = True
    harmonize(picture(300, 400), mask, Shift(0.1, 0, 0))
    assert asked == [((100, 120), (30, 351))]


def test_native_is_the_pictures_own_size() -> None:
    model = Shift(0.1, 0, 0)
    harmonize(picture(300, 400), disc(300, 400), model, native=True)
    assert model.seen[0][0].shape[-2:] == (300, 400)
    with pytest.raises(ScscoError, match="both native and working_size=64"):
        harmonize(picture(8, 8), disc(8, 8), model, working_size=64, native=True)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(recolour, "_run", fails)
    with pytest.raises(ScscoError, match=r"not enough memory to work at 400x300; .* \(the model's own is 256\)"):
        harmonize(picture(300, 400), disc(300, 400), Shift(0.1, 0, 0), native=True)


def test_thin_foreground_is_changed() -> None:
    """A line of one pixel covers no pixel of the small picture by half, and is harmonized all the same."""
    image, mask = picture(400, 400) / 255, np.zeros((400, 400), dtype=bool)
    mask[200, 50:350] = True
    result = harmonize(image, mask, Shift(0.1, 0.1, 0.1), working_size=40)
    assert np.allclose(result[mask], image[mask] + 0.1, atol=1e-6)


def test_soft_mask_blends() -> None:
    image = np.full((40, 40, 3), 0.4)
    mask = np.zeros((40, 40), dtype=np.float32)
    mask[10:30, 10:30] = 1
    mask[10:30, 30:34] = (0.8, 0.6, 0.4, 0.2)
    result = harmonize(image, mask, Shift(0.1, 0.2, -0.1))
    wanted = image + mask[:, :, None] * np.array([0.1, 0.2, -0.1])
    assert np.abs(result - wanted).max() < 1e-6


def test_faint_mask_is_a_foreground() -> None:
    image, mask = np.full((20, 20, 3), 0.4), np.zeros((20, 20))
    mask[5:10, 5:10] = 0.3
    result = harmonize(image, mask, Shift(0.1, 0.1, 0.1))
    assert np.allclose(result[6, 6], 0.43)


def test_transparent_pixels_count_for_nothing() -> None:
    rgba = np.dstack([picture(60, 60), np.full((60, 60), 255, np.uint8)])
    rgba[:, :20, 3] = 0
    mask, model = disc(60, 60), Shift(0.1, 0.1, 0.1)
    result = harmonize(rgba, mask, model)
    unseen = rgba[:, :, 3] == 0
    assert np.array_equal(result[unseen], rgba[unseen])
    assert np.array_equal(result[:, :, 3], rgba[:, :, 3])
    assert (result[mask & ~unseen][:, :3] != rgba[mask & ~unseen][:, :3]).any()
    _, fed_mask, valid = model.seen[0]
    assert np.array_equal(valid[0, 0].numpy() > 0, ~unseen)
    assert not fed_mask[0, 0].numpy()[unseen].any()

    hidden = rgba.copy()
    hidden[unseen, :3] = 255  # a colour behind transparency reaches nothing, at any size
    for size in (None, 20):
        assert np.array_equal(
            harmonize(hidden, mask, model, size)[~unseen], harmonize(rgba, mask, model, size)[~unseen]
        )


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "I", "F"])
def test_pil_mode_is_kept(mode: str, small_model: HarmonizationUNet) -> None:
    image = {
        "I;16": Image.fromarray(picture(80, 70)[:, :, 0].astype(np.uint16) * 257),
        "I": Image.fromarray(picture(80, 70)[:, :, 0].astype(np.int32) * 257),
        "F": Image.fromarray(picture(80, 70)[:, :, 0].astype(np.float32) / 255),
    }.get(mode) or Image.fromarray(picture(80, 70)).convert(mode)
    mask = disc(80, 70)
    result = harmonize(image, Image.fromarray(mask), small_model)
    assert (result.mode, result.size) == (mode, image.size)
    assert np.array_equal(np.asarray(result)[~mask], np.asarray(image)[~mask])
    assert not np.array_equal(np.asarray(result)[mask], np.asarray(image)[mask])


@pytest.mark.parametrize(("mode", "wanted"), [("P", "RGB"), ("CMYK", "RGB"), ("1", "L"), ("YCbCr", "RGB")])
def test_other_pil_modes_are_converted(mode: str, wanted: str, small_model: HarmonizationUNet) -> None:
    image = Image.fromarray(picture(40, 40)).convert(mode)
    result = harmonize(image, disc(40, 40), small_model)
    assert result.mode == wanted
    outside = ~disc(40, 40)
    assert np.array_equal(np.asarray(result)[outside], np.asarray(image.convert(wanted))[outside])


def test_palette_with_transparency(small_model: HarmonizationUNet) -> None:
    image = Image.fromarray(picture(40, 40)).convert("P")
    image.info["transparency"] = 3
    result = harmonize(image, disc(40, 40), small_model)
    assert result.mode == "RGBA"
    assert np.array_equal(np.asarray(result)[:, :, 3], np.asarray(image.convert("RGBA"))[:, :, 3])


@pytest.mark.parametrize(
    "cast",
    [
        lambda mask: mask,
        lambda mask: mask.astype(np.uint8),
        lambda mask: mask.astype(np.uint8) * 255,
        lambda mask: mask.astype(np.int64),
        lambda mask: mask.astype(np.uint16) * 65535,
        lambda mask: mask.astype(np.float32),
        lambda mask: mask[:, :, None],
        lambda mask: Image.fromarray(mask),
        lambda mask: Image.fromarray(mask.astype(np.uint8) * 255),
        lambda mask: Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB"),
    ],
)
def test_mask_types(cast, small_model: HarmonizationUNet) -> None:
    image, mask = picture(40, 50), disc(40, 50)
    assert np.array_equal(harmonize(image, cast(mask), small_model), harmonize(image, mask, small_model))


def test_empty_mask_returns_a_copy_with_a_warning(small_model: HarmonizationUNet) -> None:
    image = picture(30, 30)
    with pytest.warns(UserWarning, match="mask is empty"):
        result = harmonize(image, np.zeros((30, 30)), small_model)
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_full_mask_is_processed_with_a_warning(small_model: HarmonizationUNet) -> None:
    image = picture(30, 30)
    with pytest.warns(UserWarning, match="no background"):
        result = harmonize(image, np.ones((30, 30)), small_model)
    assert (result != image).any()


def test_ordinary_masks_do_not_warn(small_model: HarmonizationUNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert harmonize(picture(30, 30), disc(30, 30), small_model).shape == (30, 30, 3)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (np.zeros((9, 8, 3), np.uint8), np.ones((8, 9)), "the mask is 9x8 .* its picture is 8x9"),
        (np.full((8, 8, 3), np.nan), np.ones((8, 8)), "the picture holds NaN"),
        (np.full((8, 8, 3), 200.0), np.ones((8, 8)), "divide 8-bit values by 255"),
        (np.zeros((8, 8, 3), np.int64), np.ones((8, 8)), "type int64"),
        (np.zeros((8, 8, 5), np.uint8), np.ones((8, 8)), "shape"),
        (np.zeros((0, 8, 3), np.uint8), np.ones((0, 8)), "shape"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), np.nan), "the mask holds NaN"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255.0), "the mask has float values"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 7), "the mask is an array of type int64"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3)), "the mask is an array of shape"),
        (np.zeros((8, 8, 3), np.uint8), Image.new("RGBA", (8, 8)), "convert"),
        (Image.fromarray(np.full((8, 8), 70000, np.int32)), np.ones((8, 8)), "16 bits"),
    ],
)
def test_refused(image, mask, message: str, small_model: HarmonizationUNet) -> None:
    with pytest.raises(ScscoError, match=message) as caught:
        harmonize(image, mask, small_model)
    assert "\n" not in str(caught.value)


def test_working_size_below_one_is_refused(small_model: HarmonizationUNet) -> None:
    with pytest.raises(ScscoError, match="working_size is 0"):
        harmonize(picture(8, 8), disc(8, 8), small_model, working_size=0)


def test_diverged_network_is_refused() -> None:
    with pytest.raises(ScscoError, match="NaN or infinite"):
        harmonize(picture(8, 8), disc(8, 8), Shift(float("nan"), 0, 0))


def test_models_own_working_size_and_mode(small_model: HarmonizationUNet) -> None:
    model = Shift(0.1, 0, 0).train()
    model.working_size = 32
    harmonize(picture(100, 50), disc(100, 50), model)
    assert model.seen[0][0].shape[-2:] == (32, 16)
    assert model.was_training == [False]
    assert model.training


def test_extension_is_smooth_and_exact_where_known() -> None:
    known = torch.zeros(1, 1, 33, 20)
    known[..., 5:9, 3:8] = 1
    known[..., 20, 15] = 1
    values = torch.rand(1, 3, 33, 20) * known
    filled = extend(values, known)
    inside = known.expand_as(values) > 0
    assert torch.equal(filled[inside], values[inside])
    assert filled.min() >= values[inside].min()
    assert filled.max() <= values[inside].max()
    constant = extend(0.3 * known, known)
    assert torch.allclose(constant, torch.full_like(constant, 0.3))


def test_enlarging_without_extension_would_leave_a_rim() -> None:
    """The measured reason for the extension: plain enlarging loses half of the change along the border."""
    known = torch.zeros(1, 1, 8, 8)
    known[..., 2:6, 2:6] = 1
    plain = F.interpolate(0.3 * known, size=64, mode="bilinear")[..., 16, 32]
    extended = F.interpolate(extend(0.3 * known, known), size=64, mode="bilinear")[..., 16, 32]
    assert plain.item() < 0.2
    assert extended.item() == pytest.approx(0.3)


@pytest.fixture
def affine_model() -> HarmonizationUNet:
    """An untrained network with an affine head that changes the foreground visibly; its working size is 64."""
    torch.manual_seed(0)
    options = {"in_channels": 7, "cosine": True, "upsampling": "resize"}
    model = HarmonizationUNet(base_channels=4, levels=5, head="affine", **options).eval()
    with torch.no_grad():
        for parameter in (*model.up[0].parameters(), *model.whole[-1].parameters()):
            parameter.mul_(10)
    model.working_size = 64
    return model


def exact_and_allowed(model: HarmonizationUNet, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The model's own output in float64, and four times its error in float32 and four roundings more."""
    composite, region = torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(mask)[None, None].double()
    with torch.no_grad():
        near = model(composite.float(), region.float()).double()
        exact = model.double()(composite, region)
    model.float()
    allowed = 4 * float((near - exact).abs().max()) + 4 * FLOAT32
    assert allowed < 1e-4
    return exact.clamp(0, 1)[0].permute(1, 2, 0).numpy(), allowed


@pytest.mark.parametrize(
    "size", [(48, 64), (37, 53), (1, 40), (9, 5), (192, 144), (150, 211), (83, 401)], ids="{0[0]}x{0[1]}".format
)
def test_an_affine_head_is_applied_as_it_is(
    size: tuple[int, int], affine_model: HarmonizationUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the working size and at any other one the result is the model's own, and nothing is fitted to it."""
    monkeypatch.setattr(recolour, "fit_local_affine", None)
    image, mask = picture(*size) / 255, np.zeros(size, dtype=bool)
    mask[: (size[0] + 1) // 2, : size[1] // 2] = True
    mask |= disc(*size)
    wanted, allowed = exact_and_allowed(affine_model, image, mask)
    result = harmonize(image, mask, affine_model)
    assert np.abs(result - wanted).max() <= allowed
    assert np.abs(result - image)[mask].mean() > 0.01
    assert np.array_equal(result[~mask], image[~mask])


@pytest.mark.parametrize("size", [(64, 48), (61, 33), (192, 144), (193, 145), (500, 301), (64, 1)])
@pytest.mark.parametrize("kind", ["disc", "line", "corner"])
def test_an_affine_head_leaves_no_rim(size: tuple[int, int], kind: str) -> None:
    """Every pixel of the mask, those along its border too, is changed by exactly the transform."""
    image, mask = picture(*size) / 255, np.zeros(size, dtype=bool)
    mask |= {"disc": disc(*size), "line": False, "corner": False}[kind]
    mask[size[0] // 2, : (size[1] + 1) // 2] |= kind == "line"
    mask[: size[0] // 3, : (size[1] + 1) // 3] |= kind == "corner"
    if not mask.any():
        mask[0, 0] = True
    model = Recolour()
    result = harmonize(image, mask, model)
    wanted = np.where(mask[:, :, None], (image + model.change(image)).clip(0, 1), image)
    # Twelve sums and products of numbers below 1, and the means that continue the transform.
    assert np.abs(result - wanted).max() <= 16 * FLOAT32
    assert max(model.sizes[0]) == min(64, max(size))


@pytest.mark.parametrize("size", [(60, 60), (190, 190)])
def test_an_affine_head_with_a_soft_mask_alpha_and_16_bits(size: tuple[int, int]) -> None:
    image = picture(*size).astype(np.uint16) * 257
    rgba = np.dstack([image, np.full(size, 65535, np.uint16)])
    rgba[:, : size[1] // 3, 3] = 0
    rgba[:, size[1] // 3 : size[1] // 2, 3] = 9  # hardly visible, but a pixel like any other
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    mask = (1.3 - np.hypot(y - size[0] / 2, x - size[1] / 2) / (0.3 * size[0])).clip(0, 1)
    model = Recolour()
    result = harmonize(rgba, mask, model)
    unit = image / 65535
    weight = np.where((rgba[:, :, 3] > 0) & (mask > FLOOR), mask, 0)[:, :, None]
    wanted = (unit + weight * model.change(unit)).clip(0, 1)
    assert result.dtype == np.uint16
    assert np.array_equal(result[:, :, 3], rgba[:, :, 3])
    assert np.abs(result[:, :, :3] / 65535 - wanted).max() <= 0.5 / 65535 + 16 * FLOAT32
    untouched = weight[:, :, 0] == 0
    assert np.array_equal(result[untouched], rgba[untouched])
    assert (result[~untouched] != rgba[~untouched]).any()


@pytest.mark.parametrize("working_size", [None, 24])
def test_what_is_behind_transparency_reaches_no_coefficient(
    working_size: int | None, affine_model: HarmonizationUNet
) -> None:
    rgba = np.dstack([picture(60, 60), np.full((60, 60), 255, np.uint8)])
    rgba[:, :20, 3] = 0
    hidden = rgba.copy()
    hidden[:, :20, :3] = 255
    results = [harmonize(image, disc(60, 60), affine_model, working_size) for image in (rgba, hidden)]
    assert np.array_equal(results[0][:, 20:], results[1][:, 20:])
    assert np.array_equal(results[0][:, :20], rgba[:, :20])
    assert not np.array_equal(results[0], rgba)


def test_a_grey_picture_and_an_affine_head() -> None:
    """The colour's change as luminance."""
    image, mask, model = picture(130, 90)[:, :, 0] / 255, disc(130, 90), Recolour()
    result = harmonize(image, mask, model)
    change = model.change(np.dstack([image] * 3)) @ [0.299, 0.587, 0.114]
    wanted = np.where(mask, (image + change).clip(0, 1), image)
    assert np.abs(result - wanted).max() <= 16 * FLOAT32


@pytest.mark.parametrize(
    ("options", "inner"), [({}, (64, 48)), ({"working_size": 100}, (100, 75)), ({"native": True}, (160, 120))]
)
def test_an_affine_head_works_at_the_size_that_is_asked_for(
    options: dict, inner: tuple[int, int], affine_model: HarmonizationUNet
) -> None:
    seen: list[tuple[int, ...]] = []
    affine_model.down[0].register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[-2:]))
    harmonize(picture(160, 120), disc(160, 120), affine_model.train(), **options)
    assert seen == [tuple(-(-side // 32) * 32 for side in inner)]
    assert affine_model.training


def test_a_diverged_affine_head_is_refused(affine_model: HarmonizationUNet) -> None:
    torch.nn.init.constant_(affine_model.whole[-1].bias, float("inf"))
    with pytest.raises(ScscoError, match="NaN or infinite"):
        harmonize(picture(80, 80), disc(80, 80), affine_model)


LUMA = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("size", [(60, 60), (190, 130)], ids=["at the working size", "larger"])
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_strength_is_a_share_of_the_change(strength: float, size: tuple[int, int]) -> None:
    image, mask, model = picture(*size) / 255, disc(*size), Recolour()
    wanted = (image + strength * mask[..., None] * model.change(image)).clip(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnchangedWarning)
        result = harmonize(image, mask, model, strength=strength)
    assert np.abs(result - wanted).max() <= 16 * FLOAT32


def test_keep_luma() -> None:
    image, mask, model = picture(60, 60) / 255, disc(60, 60), Recolour()
    change = model.change(image)
    wanted = image + mask[..., None] * (change - (change @ LUMA)[..., None])
    assert wanted.min() >= 0
    assert wanted.max() <= 1  # nothing is cut off, so the luma is kept exactly
    result = harmonize(image, mask, model, keep="luma")
    assert np.abs(result - wanted).max() <= 16 * FLOAT32
    assert np.abs((result - image) @ LUMA).max() <= 16 * FLOAT32
    assert np.abs(result - image).max() > 0.05


def test_keep_colour() -> None:
    image, mask, model = picture(60, 60) / 255, disc(60, 60), Recolour()
    luma, change = image @ LUMA, model.change(image) @ LUMA
    wanted = image + (mask * change / (luma + 1 / 16))[..., None] * (image + 1 / 16)
    assert 0 <= wanted.min() <= wanted.max() <= 1
    result = harmonize(image, mask, model, keep="colour")
    assert np.abs(result - wanted).max() <= 16 * FLOAT32
    full = harmonize(image, mask, model)
    assert np.abs((result - full) @ LUMA).max() <= 16 * FLOAT32  # as bright as with the whole change
    assert np.abs((result - image) @ LUMA).max() > 0.05


def test_keep_colour_of_black_is_finite() -> None:
    image, mask = np.zeros((40, 40, 3)), disc(40, 40)
    result = harmonize(image, mask, Shift(0.3, 0.3, 0.3), keep="colour")
    assert np.abs(result[mask] - 0.3).max() <= 16 * FLOAT32


def test_keep_and_strength_go_together() -> None:
    image, mask = picture(60, 60) / 255, disc(60, 60)
    whole = harmonize(image, mask, Recolour(), keep="luma") - image
    half = harmonize(image, mask, Recolour(), keep="luma", strength=0.5) - image
    assert np.abs(half - 0.5 * whole).max() <= 16 * FLOAT32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "the strength is -0.1; wanted a number from 0"),
        ({"strength": 1.5}, "the strength is 1.5"),
        ({"strength": float("nan")}, "the strength is nan"),
        ({"keep": "hue"}, "keep is 'hue'; wanted 'luma' or 'colour', or None"),
        ({"grow_mask": 10**6}, "grow_mask is 1000000; wanted -4096 to 4096"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ScscoError, match=message):
        harmonize(picture(20, 20), disc(20, 20), Shift(0.1, 0.1, 0.1), **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("shift", "options", "said"),
    [(0.0, {}, "no pixel was changed: "), (0.1, {"strength": 0.0}, "the strength is 0"), (0.001, {}, "no pixel")],
)
def test_a_result_that_changed_nothing_says_so(shift: float, options: dict[str, float], said: str) -> None:
    with pytest.warns(UnchangedWarning, match=said):
        harmonize(picture(40, 50), disc(40, 50), Shift(shift, shift, shift), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmonize(picture(40, 50), disc(40, 50), Shift(0.01, 0.0, 0.0))


def test_warnings_name_the_line_that_called() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        harmonize(picture(40, 50), ~disc(40, 50), Shift(0.0, 0.0, 0.0))
    assert [Path(warning.filename).name for warning in caught] == ["test_pictures.py"] * 2
