"""Files and folders: formats, metadata, names, and what happens to pictures that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scsco_fast.data.deep_color import DeepPicture, read_deep, write_deep
from scsco_fast.data.images import open_upright
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import (
    harmonize_cutout_file,
    harmonize_edit_file,
    harmonize_file,
)
from scsco_fast.harmonizing.image_files import DeepColorError, read_image, write_image
from scsco_fast.harmonizing.masks import CoverageWarning, grown
from scsco_fast.harmonizing.pictures import UnchangedWarning, harmonize
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.unet import HarmonizationUNet

SIZE = (70, 90)  # height, width


@pytest.fixture
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(30, 220, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    """(H, W) bool."""
    inside = np.zeros(SIZE, dtype=bool)
    inside[20:50, 30:70] = True
    return inside


@pytest.fixture
def folder(tmp_path: Path, pixels: np.ndarray, mask: np.ndarray) -> Path:
    """images/a.png, images/x-1_1_2.jpg and their masks, the second named as iHarmony4 does."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "images" / "x-1_1_2.jpg")
    for name in ("a", "x-1_1"):
        Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB").save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def run(folder: Path, output: str | Path, model: HarmonizationUNet, image: str = "images/a.png", **options) -> Path:
    target = folder / output
    harmonize_file(folder / image, folder / "masks/a.png", target, model, Settings(**options))
    return target


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".tiff", ".bmp", ".webp"])
def test_lossless_formats_keep_the_background(
    suffix: str, folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    target = run(folder, f"out/deep/b{suffix}", small_model)
    written = np.asarray(Image.open(target))
    assert np.array_equal(written[~mask], pixels[~mask])
    assert np.array_equal(written, harmonize(pixels, mask, small_model))
    assert (written[mask] != pixels[mask]).any()


def test_jpeg_is_near(folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet) -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, SIZE[1], dtype=np.uint8)[None, :, None], (*SIZE, 3))
    Image.fromarray(smooth.copy()).save(folder / "images/a.png")
    written = Image.open(run(folder, "b.jpg", small_model))
    assert written.format == "JPEG"
    assert np.abs(np.asarray(written).astype(int) - smooth)[:10].max() <= 4


def test_profile_and_exif_are_kept_upright(folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate by 90 degrees to view
    exif[0x010E] = "a caption"
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "images/turned.png", exif=exif, icc_profile=b"a profile")
    for name in ("b.png", "b.jpg", "b.webp", "b.tif"):
        written = Image.open(run(folder, name, small_model, image="images/turned.png"))
        assert written.size == (SIZE[1], SIZE[0])
        assert written.info["icc_profile"] == b"a profile"
        assert written.getexif().get(0x010E) == "a caption"
        assert 0x0112 not in written.getexif()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_modes_survive_png(mode: str, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet) -> None:
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    (deep if mode == "I;16" else Image.fromarray(pixels).convert(mode)).save(folder / "images/m.png")
    assert Image.open(run(folder, "b.png", small_model, image="images/m.png")).mode == mode


def test_cmyk_loses_its_profile(folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet) -> None:
    Image.fromarray(pixels).convert("CMYK").save(folder / "images/c.tif", icc_profile=b"for ink")
    written = Image.open(run(folder, "b.png", small_model, image="images/c.tif"))
    assert written.mode == "RGB"
    assert "icc_profile" not in written.info


def test_inverted_mask(folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet) -> None:
    with pytest.warns(CoverageWarning):
        written = np.asarray(Image.open(run(folder, "b.png", small_model, invert_mask=True)))
    assert np.array_equal(written[mask], pixels[mask])
    assert (written[~mask] != pixels[~mask]).any()


@pytest.mark.parametrize(
    ("grey", "message"),
    [(0, "empty, no pixel is above 127 of 255 .the largest is 0."), (255, "full, no background is left")],
)
@pytest.mark.parametrize("invert", [False, True])
def test_masks_of_one_region(
    grey: int, message: str, invert: bool, folder: Path, small_model: HarmonizationUNet
) -> None:
    Image.new("L", (SIZE[1], SIZE[0]), 255 - grey if invert else grey).save(folder / "masks/a.png")
    with pytest.raises(ScscoError, match=rf"masks/a\.png: the mask is {message}"):
        run(folder, "b.png", small_model, invert_mask=invert)
    assert not (folder / "b.png").exists()


def test_foreground_that_is_transparent(
    folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    """Transparent pixels are no foreground: what is left of the mask is empty."""
    rgba = np.dstack([pixels, np.where(mask, 0, 255).astype(np.uint8)])
    Image.fromarray(rgba).save(folder / "images/a.png")
    with pytest.raises(ScscoError, match=r"a\.png: the mask of visible pixels is empty; nothing was written"):
        run(folder, "b.png", small_model)


def test_own_alpha_channel_as_the_mask(
    folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    alpha = mask.astype(np.uint8) * 255
    Image.fromarray(np.dstack([pixels, alpha])).save(folder / "images/own.png")
    harmonize_file(folder / "images/own.png", None, folder / "b.png", small_model)
    written = np.asarray(Image.open(folder / "b.png"))
    assert np.array_equal(written[:, :, 3], alpha)
    assert np.array_equal(written[:, :, :3], harmonize(pixels, mask, small_model))
    with pytest.raises(ScscoError, match=r"a\.png: has no alpha channel"):
        harmonize_file(folder / "images/a.png", None, folder / "c.png", small_model)


@pytest.mark.parametrize("victim", ["images/a.png", "masks/a.png", "images/../images/a.png"])
def test_inputs_are_never_overwritten(victim: str, folder: Path, small_model: HarmonizationUNet) -> None:
    before = (folder / victim).read_bytes()
    with pytest.raises(ScscoError, match="would overwrite an input"):
        run(folder, victim, small_model)
    assert (folder / victim).read_bytes() == before


def test_hard_link_to_the_input_is_an_input_only_by_name(folder: Path, small_model: HarmonizationUNet) -> None:
    """Writing replaces the name, not the content: another name of the input's file leaves the input alone."""
    before = (folder / "images/a.png").read_bytes()
    (folder / "link.png").hardlink_to(folder / "images/a.png")
    run(folder, "link.png", small_model)
    assert (folder / "images/a.png").read_bytes() == before


@pytest.mark.parametrize(("output", "message"), [("b.gif", "cannot write .gif"), ("b", "without a suffix")])
def test_formats_that_are_not_written(output: str, message: str, folder: Path, small_model: HarmonizationUNet) -> None:
    with pytest.raises(ScscoError, match=message):
        run(folder, output, small_model)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "transparency"), ("I;16", "16 bits")])
def test_jpeg_cannot_hold_everything(
    mode: str, kind: str, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet
) -> None:
    image = Image.fromarray(pixels[:, :, 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(folder / "images/m.png")
    with pytest.raises(ScscoError, match=rf"b\.jpg: \.jpg cannot hold {kind}"):
        run(folder, "b.jpg", small_model, image="images/m.png")
    assert not (folder / "b.jpg").exists()


@pytest.mark.parametrize("target", ["t.tif", "t.png", "t.jpg", "t.webp"])
def test_exif_of_a_tiff_is_kept(target: str, folder: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", 6
    exif[0x8769] = {0x829A: 0.5}  # ExposureTime
    Image.fromarray(pixels).save(folder / "source.tif", exif=exif.tobytes(), icc_profile=b"a profile")
    image = read_image(folder / "source.tif")
    assert image.size == SIZE  # turned upright: height and width have changed places
    write_image(image, folder / target)
    written = Image.open(folder / target)
    assert written.getexif()[0x010F] == "a maker"
    assert float(written.getexif().get_ifd(0x8769)[0x829A]) == 0.5
    assert written.info["icc_profile"] == b"a profile"
    assert read_image(folder / target).size == SIZE


@pytest.mark.parametrize("target", ["t.tif", "t.png", "t.jpg", "t.webp"])
def test_damaged_exif_is_no_obstacle(target: str, folder: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(folder / "source.png", exif=b"Exif\0\0broken")
    write_image(read_image(folder / "source.png"), folder / target)
    assert read_image(folder / target).size == (SIZE[1], SIZE[0])


def test_fitted_mask(folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet) -> None:
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize((SIZE[1] * 2, SIZE[0] * 2), Image.Resampling.NEAREST)
    small.save(folder / "masks/a.png")
    with pytest.warns(UserWarning, match=r"masks/a\.png: the mask is 180x140 .*; resized to its picture's 90x70"):
        target = run(folder, "b.png", small_model, fit_mask=True)
    inner = np.zeros(SIZE, dtype=bool)
    inner[22:48, 32:68] = True
    whole = harmonize(pixels, mask, small_model)
    assert np.abs(np.asarray(Image.open(target)).astype(int) - whole)[inner].max() <= 1


def test_more_pixels_than_the_limit(folder: Path, small_model: HarmonizationUNet) -> None:
    with pytest.raises(ScscoError, match=r"a\.png: the picture is 90x70, 0.0063 megapixels; the limit is 0\.006:"):
        run(folder, "b.png", small_model, max_pixels=6000)
    run(folder, "b.png", small_model, max_pixels=6300)


def test_pillows_limit_is_not_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panorama of 30,000 pixels is above Pillow's limit, which only an environment of its own could raise."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ScscoError, match="more pixels than is safe"):
        open_upright(folder / "images/a.png")
    assert read_image(folder / "images/a.png").size == (90, 70)
    assert Image.MAX_IMAGE_PIXELS == 3000


def test_text_named_jpg(folder: Path, small_model: HarmonizationUNet) -> None:
    (folder / "images/notes.jpg").write_text("not a picture")
    with pytest.raises(ScscoError, match=r"notes\.jpg: not a picture of a known format"):
        run(folder, "b.png", small_model, image="images/notes.jpg")


def test_output_below_a_file(folder: Path, small_model: HarmonizationUNet) -> None:
    (folder / "notes").write_text("")
    with pytest.raises(ScscoError, match=r"cannot be written \(.*notes is not a folder\)"):
        run(folder, "notes/b.png", small_model)


def test_read_only_output(folder: Path, small_model: HarmonizationUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write to any folder
    with pytest.raises(ScscoError, match="is read-only"):
        run(folder, "out/b.png", small_model)
    assert not (folder / "out").exists()


def test_mask_of_another_size(folder: Path, small_model: HarmonizationUNet) -> None:
    Image.new("L", (10, 12), 255).save(folder / "masks/a.png")
    with pytest.raises(ScscoError, match=r"masks/a\.png.*10x12.*90x70"):
        run(folder, "b.png", small_model)


def test_failed_write_leaves_nothing(
    folder: Path, small_model: HarmonizationUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "b.png").write_bytes(b"old")

    def half(image: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scsco_fast.harmonizing.image_files.save_image", half)
    before = sorted(folder.iterdir())
    with pytest.raises(ScscoError, match=r"b\.png: cannot be written \(No space left"):
        run(folder, "b.png", small_model)
    assert (folder / "b.png").read_bytes() == b"old"
    assert sorted(folder.iterdir()) == before


def test_animations_are_refused_and_phone_pictures_are_not(folder: Path, pixels: np.ndarray) -> None:
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(folder / "two.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ScscoError, match=r"two\.tif: holds several frames"):
        read_image(folder / "two.tif")
    frames[0].save(folder / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(folder / "phone.jpg").size == (SIZE[1], SIZE[0])


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 2), (".png", 3), (".png", 4), (".tif", 3), (".tif", 4)])
def test_sixteen_bit_colour(
    suffix: str, channels: int, folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    rng = np.random.default_rng(0)
    deep = pixels.astype(np.uint16) * 256 + rng.integers(0, 256, pixels.shape, dtype=np.uint16)
    deep = np.dstack([deep, deep[:, :, :1] | 1])[:, :, [0, 3] if channels == 2 else slice(0, channels)]
    deep = np.ascontiguousarray(deep)
    write_deep(DeepPicture(deep, b"a profile"), folder / f"images/deep{suffix}")
    target = run(folder, f"b{suffix}", small_model, image=f"images/deep{suffix}")
    written = read_deep(target, 10**6)
    assert np.array_equal(written.pixels, harmonize(deep, mask, small_model))
    assert np.array_equal(written.pixels[~mask], deep[~mask])
    assert (written.pixels[mask] != deep[mask]).any()
    assert written.icc_profile == b"a profile"
    with pytest.raises(ScscoError, match=r"b\.jpg: \.jpg cannot hold 16-bit colour; name a \.png"):
        run(folder, "b.jpg", small_model, image=f"images/deep{suffix}")
    with pytest.raises(DeepColorError, match="would be cut to 8 bits"):
        read_image(folder / f"images/deep{suffix}")


@pytest.mark.parametrize("kind", ["grey", "palette", "sixteen bits"])
def test_masks_of_labels(
    kind: str, folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    """Values of 0 and 1 once changed nothing, and palettes a fraction, and both printed "wrote"."""
    wanted = np.asarray(Image.open(run(folder, "wanted.png", small_model)))
    labels = Image.fromarray(mask.astype(np.uint16 if kind == "sixteen bits" else np.uint8))
    if kind == "palette":
        labels = Image.frombytes("P", labels.size, labels.tobytes())
        labels.putpalette([0, 0, 0, 128, 0, 0])
    labels.save(folder / "masks/a.png")
    assert np.array_equal(np.asarray(Image.open(run(folder, "b.png", small_model))), wanted)
    assert (wanted[mask] != pixels[mask]).any()


def test_a_faint_mask_is_refused_with_its_largest_value(
    folder: Path, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    Image.fromarray(mask.astype(np.uint8) * 100).save(folder / "masks/a.png")
    with pytest.raises(ScscoError, match=r"no pixel is above 127 of 255 \(the largest is 100\); white is the foregr"):
        run(folder, "b.png", small_model)
    assert not (folder / "b.png").exists()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255)])
def test_an_alpha_mask_of_a_cut_out_is_refused(
    colour: tuple[int, int, int], folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    hidden = np.where(mask[..., None], pixels, np.array(colour, np.uint8))
    hidden[0, 0] += np.uint8(1) if colour == (0, 0, 0) else np.uint8(0)
    Image.fromarray(np.dstack([hidden, mask.astype(np.uint8) * 255])).save(folder / "images/cut.png")
    wanted = (
        rf"cut\.png: behind its alpha channel there is no background, only one colour \({colour[0]}, .*--background"
    )
    with pytest.raises(ScscoError, match=wanted):
        harmonize_file(folder / "images/cut.png", None, folder / "b.png", small_model)
    assert not (folder / "b.png").exists()


def test_an_alpha_mask_with_soft_edges_only_hides_nothing(
    folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    alpha = np.where(mask, 255, 9).astype(np.uint8)
    Image.fromarray(np.dstack([pixels, alpha])).save(folder / "images/soft.png")
    harmonize_file(folder / "images/soft.png", None, folder / "b.png", small_model)
    assert np.array_equal(np.asarray(Image.open(folder / "b.png"))[..., 3], alpha)


STORED = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # what takes an upright picture to its file


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("factor", [1, 2])
def test_fit_mask_turns_a_mask_as_its_picture(
    factor: int, orientation: int, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet
) -> None:
    """A mask drawn on the stored pixels, without EXIF: it is turned like the picture, and not stretched."""
    inside = np.zeros(SIZE, bool)
    inside[5:25, 50:80] = True  # lies elsewhere after any other turn
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = Image.Transpose[STORED[orientation]]
    Image.fromarray(pixels).transpose(turn).save(folder / "images/a.png", exif=exif)
    stored = Image.fromarray(inside.astype(np.uint8) * 255).transpose(turn)
    stored.resize((stored.width * factor, stored.height * factor), Image.Resampling.NEAREST).save(
        folder / "masks/a.png"
    )
    with pytest.raises(ScscoError, match="give a mask of the picture's size, or --fit-mask"):
        run(folder, "b.png", small_model)
    with pytest.warns(UserWarning, match="turned as the picture's EXIF orientation says, and resized to its picture's"):
        target = run(folder, "b.png", small_model, fit_mask=True)
    changed = (np.asarray(Image.open(target)) != pixels).any(axis=2)
    assert not changed[~np.asarray(grown(inside.astype(np.float32), 1), bool)].any()
    assert changed[inside].mean() > 0.9


def test_fit_mask_does_not_turn_an_upright_mask(
    folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(folder / "images/a.png", exif=exif)
    Image.fromarray(mask.astype(np.uint8) * 255).resize((SIZE[1] * 2, SIZE[0] * 2)).save(folder / "masks/a.png")
    with pytest.warns(UserWarning, match=r"the mask is 180x140 \(width x height\); resized"):
        target = run(folder, "b.png", small_model, fit_mask=True)
    changed = (np.asarray(Image.open(target)) != pixels).any(axis=2)
    assert changed[mask].mean() > 0.9
    assert not changed[~np.asarray(grown(mask.astype(np.float32), 2), bool)].any()


def test_doubts_are_warnings_and_the_file_is_written(
    folder: Path, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    Image.fromarray((~mask).astype(np.uint8) * 255).save(folder / "masks/a.png")
    with pytest.warns(CoverageWarning, match=r"covers 81 % of the picture and 100 % of its frame.*--invert-mask"):
        assert run(folder, "b.png", small_model).exists()
    Image.fromarray(mask).save(folder / "masks/a.png")
    with pytest.warns(UnchangedWarning, match="no pixel was changed"):
        assert run(folder, "c.png", small_model, strength=0.0).exists()


@pytest.fixture
def cut(folder: Path, pixels: np.ndarray, mask: np.ndarray) -> Path:
    """A cut-out as a file, 40x30."""
    hidden = np.where(mask[..., None], pixels[::-1], 0)
    rgba = np.dstack([hidden, mask.astype(np.uint8) * 255])[20:50, 30:70]
    rgba[:5, :, 3] = 0
    Image.fromarray(rgba).save(folder / "cut.png")
    return folder / "cut.png"


@pytest.mark.parametrize("layer", [False, True])
def test_a_cut_out_file_on_a_background_file(
    layer: bool, cut: Path, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet
) -> None:
    target = folder / "out.png"
    size = harmonize_cutout_file(
        cut, folder / "images/a.png", None, target, small_model, Settings(strength=0.5), at=(10, 20), layer=layer
    )
    wanted = harmonize(
        np.asarray(Image.open(cut)), model=small_model, background=pixels, at=(10, 20), strength=0.5, layer=layer
    )
    assert size == (SIZE[1], SIZE[0])
    assert np.array_equal(np.asarray(Image.open(target)), wanted)


def test_a_cut_out_on_sixteen_bits(cut: Path, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet) -> None:
    deep = pixels.astype(np.uint16) * 257 + 3
    write_deep(DeepPicture(deep), folder / "deep.png")
    harmonize_cutout_file(cut, folder / "deep.png", None, folder / "out.png", small_model, at=(10, 20), layer=True)
    assert read_deep(folder / "out.png", 10**6).pixels.shape == (*SIZE, 4)
    harmonize_cutout_file(cut, folder / "deep.png", None, folder / "out.tif", small_model, at=(10, 20))
    written = read_deep(folder / "out.tif", 10**6).pixels
    assert np.array_equal(written[:20], deep[:20])
    assert (written != deep).any()


def test_layers_of_sixteen_bit_grey(
    cut: Path, folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    grey = pixels[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "images/a.png")
    Image.fromarray(np.where(mask, grey // 2, grey).astype(np.uint16)).save(folder / "after.png")
    image, layer = folder / "images/a.png", {"layer": True}
    harmonize_file(image, folder / "masks/a.png", folder / "b.png", small_model, **layer)
    wanted = harmonize(grey, mask, small_model, layer=True)
    assert np.array_equal(read_deep(folder / "b.png", 10**6).pixels, wanted)
    for write, first, second in (
        (harmonize_cutout_file, cut, image),
        (harmonize_edit_file, image, folder / "after.png"),
    ):
        write(first, second, None, folder / "c.png", small_model, **layer)
        assert read_deep(folder / "c.png", 10**6).pixels.shape == (*SIZE, 4)


def test_the_background_of_a_cut_out_keeps_its_profile(
    cut: Path, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet
) -> None:
    Image.fromarray(pixels).save(folder / "images/a.png", icc_profile=b"a profile")
    harmonize_cutout_file(cut, folder / "images/a.png", None, folder / "out.png", small_model)
    assert Image.open(folder / "out.png").info["icc_profile"] == b"a profile"


def test_a_mask_file_of_a_cut_out(
    folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    Image.fromarray(pixels[::-1]).save(folder / "opaque.png")
    files = folder / "opaque.png", folder / "images/a.png", folder / "masks/a.png", folder / "out.png"
    harmonize_cutout_file(*files, small_model, Settings(invert_mask=True), layer=True)
    assert np.array_equal(np.asarray(Image.open(folder / "out.png"))[..., 3] == 0, mask)


@pytest.mark.parametrize("given", [False, True])
def test_an_edit_file(
    given: bool, folder: Path, pixels: np.ndarray, mask: np.ndarray, small_model: HarmonizationUNet
) -> None:
    after = np.where(mask[..., None], pixels // 2 + 100, pixels).astype(np.uint8)
    Image.fromarray(after).save(folder / "after.png")
    masks = folder / "masks/a.png" if given else None
    harmonize_edit_file(folder / "images/a.png", folder / "after.png", masks, folder / "out.png", small_model)
    written = np.asarray(Image.open(folder / "out.png"))
    assert np.array_equal(written, harmonize(after, mask, small_model, before=pixels))
    assert np.array_equal(written[~mask], pixels[~mask])
    assert (written[mask] != after[mask]).any()


def test_errors_name_the_file_and_write_nothing(
    cut: Path, folder: Path, pixels: np.ndarray, small_model: HarmonizationUNet
) -> None:
    with pytest.raises(ScscoError, match=r"cut\.png: the foreground of 40x30 at 500,0 lies outside"):
        harmonize_cutout_file(cut, folder / "images/a.png", None, folder / "b.png", small_model, at=(500, 0))
    with pytest.raises(ScscoError, match="would overwrite an input"):
        harmonize_cutout_file(cut, folder / "images/a.png", None, folder / "images/a.png", small_model)
    with pytest.raises(ScscoError, match=r"a\.png: the pictures before and after the edit differ nowhere"):
        harmonize_edit_file(folder / "images/a.png", folder / "images/a.png", None, folder / "b.png", small_model)
    with pytest.raises(ScscoError, match=r"b\.jpg: \.jpg cannot hold transparency"):
        harmonize_cutout_file(cut, folder / "images/a.png", None, folder / "b.jpg", small_model, layer=True)
    assert not list(folder.glob("b.*"))
