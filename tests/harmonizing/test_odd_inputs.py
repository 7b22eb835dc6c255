"""Odd sizes, odd files and odd places: each is harmonized right, or refused in one line with nothing written."""

import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import odd_files
import odd_inputs
import profiles
import pytest
import torch
from full_disk import full_disk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from scsco_fast.data.colour_profiles import converted
from scsco_fast.data.deep_color import DeepPicture, write_deep
from scsco_fast.data.metadata import DroppedWarning
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import (
    harmonize_cutout_file,
    harmonize_edit_file,
    harmonize_file,
)
from scsco_fast.harmonizing.folders import harmonize_folder
from scsco_fast.harmonizing.image_files import read_image, write_image
from scsco_fast.harmonizing.masks import RegionWarning
from scsco_fast.harmonizing.pictures import harmonize
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.system.locks import writing

FAR = 30000
SIZES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(100, FAR)),
    st.tuples(st.integers(100, FAR), st.integers(1, 4)),
)


def network(norm: str, head: str) -> HarmonizationUNet:
    torch.manual_seed(0)
    model = HarmonizationUNet(base_channels=4, levels=5, norm=norm, head=head).eval()
    model.working_size = 48
    return model


NETWORKS = {(norm, head): network(norm, head) for norm, head in (("bain", "residual"), ("rain", "affine"))}


def drawn_mask(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros(size, np.float32)
    row, column = int(rng.integers(size[0])), int(rng.integers(size[1]))
    if kind == "pixel":
        mask[row, column] = 1
    elif kind == "box":
        mask[row : row + 1 + size[0] // 3, column : column + 1 + size[1] // 3] = 1
    elif kind == "ends":
        mask[0, 0] = mask[-1, -1] = 1
    elif kind == "full":
        mask[:] = 1
    elif kind == "soft":
        mask = rng.random(size, np.float32)
    return mask


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    SIZES,
    st.sampled_from(["pixel", "box", "ends", "full", "soft", "none"]),
    st.sampled_from(list(NETWORKS)),
    st.integers(0, 9),
)
@example((300, 1), "box", ("bain", "residual"), 1)
@example((500, 2), "pixel", ("rain", "affine"), 1)
@example((12000, 64), "box", ("bain", "residual"), 3)
@example((1, FAR), "ends", ("bain", "residual"), 0)
@example((FAR, 1), "ends", ("rain", "affine"), 0)
@example((1, 1), "full", ("bain", "residual"), 0)
def test_any_size_with_any_mask(size: tuple[int, int], kind: str, which: tuple[str, str], seed: int) -> None:
    """From 1x1 to 1x30000 in both directions: the background stays bit for bit, the result is of the same kind."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = drawn_mask(kind, size, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = harmonize(picture, mask, NETWORKS[which])
    assert result.shape == picture.shape
    assert result.dtype == np.uint8
    outside = mask < 3.5 / 255
    np.testing.assert_array_equal(result[outside], picture[outside])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png and its mask m.png, 80x60."""
    odd_files.picture("RGB", (80, 60)).save(tmp_path / "a.png")
    inside = np.zeros((60, 80), np.uint8)
    inside[20:40, 20:60] = 255
    Image.fromarray(inside).save(tmp_path / "m.png")
    return tmp_path


def refusal(folder: Path, output: str | Path, model: HarmonizationUNet, **options: object) -> str:
    before = sorted(os.listdir(folder))
    with pytest.raises(ScscoError) as caught:
        harmonize_file(folder / "a.png", folder / "m.png", folder / output, model, Settings(**options))
    assert sorted(os.listdir(folder)) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "size", "most"),
    [(".webp", (16384, 1), 16383), (".webp", (1, 30000), 16383), (".jpg", (1, 65501), 65500)],
)
def test_more_pixels_a_side_than_a_format_holds(
    suffix: str, size: tuple[int, int], most: int, folder: Path, small_model: HarmonizationUNet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    odd_files.picture("RGB", size).save(folder / "a.png")
    mask = Image.new("L", size)
    mask.putpixel((0, 0), 255)
    mask.save(folder / "m.png")

    def works(*_: object, **__: object) -> None:
        raise AssertionError("the work was done before the refusal")

    monkeypatch.setattr("scsco_fast.harmonizing.files.harmonize", works)
    wanted = f"the picture is {size[0]}x{size[1]}, and {suffix} holds at most {most} pixels a side; name a .png"
    assert wanted in refusal(folder, f"out{suffix}", small_model)
    fitting = odd_files.picture("RGB", tuple(min(side, most) for side in size))  # type: ignore[arg-type]
    write_image(fitting, folder / f"fits{suffix}")
    assert read_image(folder / f"fits{suffix}").size == fitting.size


def test_what_an_encoder_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match=r"a\.avif: \.avif cannot hold this picture \(.*\); name a \.png"):
        write_image(Image.new("RGB", (70000, 1)), tmp_path / "a.avif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "suffix", "said"),
    [
        ("I;16", ".webp", "cannot hold 16 bits"),
        ("I;16", ".jpg", "cannot hold 16 bits"),
        ("I;16", ".bmp", "cannot hold 16 bits"),
        ("I;16", ".avif", "cannot hold 16 bits"),
        ("F", ".png", "cannot hold floating point numbers"),
        ("F", ".webp", "cannot hold floating point numbers"),
    ],
)
def test_numbers_that_a_format_would_cut(
    mode: str, suffix: str, said: str, folder: Path, small_model: HarmonizationUNet
) -> None:
    odd_files.picture(mode, (80, 60)).save(folder / "a.tif")
    os.replace(folder / "a.tif", folder / "a.png")
    assert f"out{suffix}: {suffix} {said}" in refusal(folder, f"out{suffix}", small_model)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_a_large_exif_block(suffix: str, folder: Path, small_model: HarmonizationUNet) -> None:
    """200 kB of it: JPEG has no room, and a warning says that it is dropped; the others keep it."""
    block = odd_files.exif(1)
    block[0x010E] = "d" * 200_000
    odd_files.picture("RGB", (80, 60)).save(folder / "a.png", exif=block)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        harmonize_file(folder / "a.png", folder / "m.png", folder / f"out{suffix}", small_model)
    dropped = [str(each.message) for each in caught if issubclass(each.category, DroppedWarning)]
    found = Image.open(folder / f"out{suffix}").getexif().get(0x010E)
    if suffix == ".jpg":
        assert dropped == [f"{folder / 'out.jpg'}: the EXIF block of 200 kB is dropped; JPEG holds at most 66 kB"]
        assert found is None
    else:
        assert dropped == []
        assert found == "d" * 200_000


@pytest.mark.skipif(
    "pillow_heif" not in sys.modules and not pytest.importorskip("pillow_heif"), reason="the extra heif"
)
def test_a_tiff_without_exif_becomes_heic(tmp_path: Path) -> None:
    odd_files.picture("RGB").save(tmp_path / "a.tif")
    write_image(read_image(tmp_path / "a.tif"), tmp_path / "a.heic")
    assert read_image(tmp_path / "a.heic").size == odd_files.SIZE


@pytest.mark.parametrize("victim", ["picture", "mask", "output"])
def test_links_that_lead_to_themselves(victim: str, folder: Path, small_model: HarmonizationUNet) -> None:
    loop = folder / "loop.png"
    loop.symlink_to(loop)
    paths = {"picture": folder / "a.png", "mask": folder / "m.png", "output": folder / "out.png", victim: loop}
    if victim == "output":
        harmonize_file(*paths.values(), small_model)  # type: ignore[arg-type]
        assert Image.open(loop).size == (80, 60)
        return
    with pytest.raises(ScscoError, match=r"loop\.png: cannot be opened"):
        harmonize_file(*paths.values(), small_model)  # type: ignore[arg-type]
    assert not (folder / "out.png").exists()


def test_names_at_the_limit_of_the_file_system(folder: Path, small_model: HarmonizationUNet) -> None:
    harmonize_file(folder / "a.png", folder / "m.png", folder / ("n" * 251 + ".png"), small_model)
    assert "cannot be written" in refusal(folder, "n" * 252 + ".png", small_model)
    assert "a NUL byte is in the name" in refusal(folder, "a\0b.png", small_model)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "avif", "deep.png", "deep.tif"])
def test_a_full_disk_leaves_nothing(
    suffix: str, folder: Path, small_model: HarmonizationUNet, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3))
    if suffix.startswith("deep"):
        write_deep(DeepPicture(noise.astype(np.uint16) * 257), folder / "a.png")
    else:
        Image.fromarray(noise.astype(np.uint8)).save(folder / "a.png")
    (folder / f"out.{suffix}").write_bytes(b"what was there")
    with full_disk(1000):
        assert f"out.{suffix}: cannot be written (" in refusal(folder, f"out.{suffix}", small_model)
    assert (folder / f"out.{suffix}").read_bytes() == b"what was there"
    assert capfd.readouterr().err == ""


def test_a_mask_of_hidden_pixels_says_that_nothing_was_written(folder: Path, small_model: HarmonizationUNet) -> None:
    """To arrays the picture comes back and the warning says so; a file is not written, and the error says that."""
    mask = np.asarray(Image.open(folder / "m.png"))
    picture = odd_files.picture("RGB", (80, 60))
    picture.putalpha(Image.fromarray(255 - mask))
    picture.save(folder / "a.png")
    said = refusal(folder, "out.png", small_model)
    assert said == f"{folder / 'a.png'}: the mask of visible pixels is empty; nothing was written"
    assert "unchanged" not in said
    with pytest.warns(RegionWarning, match="the mask of visible pixels is empty: the picture is returned unchanged"):
        assert harmonize(picture, Image.fromarray(mask), small_model) == picture


WIDE = [name for name in profiles.PRIMARIES if name != "sRGB"]


@pytest.mark.parametrize("given", WIDE)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_wide_gamut_composite_keeps_its_profile_and_its_background(
    mode: str, given: str, folder: Path, small_model: HarmonizationUNet
) -> None:
    picture = odd_files.picture(mode, (80, 60))
    picture.save(folder / "a.png", icc_profile=profiles.icc_profile(given))
    for suffix in (".png", ".tif", ".webp"):
        harmonize_file(folder / "a.png", folder / "m.png", folder / f"out{suffix}", small_model)
        result = Image.open(folder / f"out{suffix}")
        assert result.info["icc_profile"] == profiles.icc_profile(given)
        outside = np.asarray(Image.open(folder / "m.png")) == 0
        wanted = np.asarray(picture.convert(result.mode))
        np.testing.assert_array_equal(np.asarray(result)[outside], wanted[outside])


@pytest.mark.parametrize("given", profiles.PRIMARIES)
@pytest.mark.parametrize("wanted", profiles.PRIMARIES)
def test_colours_in_another_profile(given: str, wanted: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    image.putalpha(Image.fromarray(levels[:, :, 0]))
    image.info["icc_profile"] = profiles.icc_profile(given)
    result = converted(image, profiles.icc_profile(wanted))
    if given == wanted:
        assert result is None
        return
    assert result is not None
    expected = profiles.moved(levels.reshape(-1, 3), given, wanted).reshape(levels.shape)
    assert np.abs(np.asarray(result)[..., :3] - expected).max() <= 1  # lcms computes with 16 bits and rounds
    np.testing.assert_array_equal(np.asarray(result)[..., 3], levels[:, :, 0])


def test_srgb_with_and_without_its_profile_is_the_same() -> None:
    image = odd_files.picture("RGB")
    tagged = image.copy()
    tagged.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert converted(image, tagged.info["icc_profile"]) is None
    assert converted(tagged, None) is None
    assert converted(image, profiles.icc_profile("sRGB")) is not None  # a plain power is another curve


@pytest.mark.parametrize("profile", [b"", b"not a profile", profiles.icc_profile("Display P3")[:200]])
def test_a_damaged_profile_converts_nothing(profile: bytes) -> None:
    image = odd_files.picture("RGB")
    assert converted(image, profile or None) is None
    image.info["icc_profile"] = profile
    assert converted(image, profiles.icc_profile("Display P3")) is None or profile == b""


def test_a_cut_out_is_laid_on_a_background_of_another_profile(folder: Path, small_model: HarmonizationUNet) -> None:
    """With strength 0 what is written is what was laid there: its colours, in the background's profile."""
    cut = Image.new("RGBA", (20, 10), (200, 90, 60, 255))
    cut.putpixel((0, 0), (0, 0, 0, 0))
    cut.save(folder / "cut.png", icc_profile=profiles.icc_profile("Display P3"))
    background = odd_files.picture("RGB", (80, 60))
    background.save(folder / "a.png", icc_profile=profiles.icc_profile("Adobe RGB"))
    with pytest.warns(UserWarning, match="the strength is 0"):
        harmonize_cutout_file(
            folder / "cut.png", folder / "a.png", None, folder / "out.png", small_model, Settings(strength=0), at=(5, 7)
        )
    result = Image.open(folder / "out.png")
    assert result.info["icc_profile"] == profiles.icc_profile("Adobe RGB")
    found = result.getpixel((20, 10))
    expected = profiles.moved(np.array([[200, 90, 60]]), "Display P3", "Adobe RGB")[0]
    assert np.abs(np.array(found) - expected).max() <= 1
    assert np.abs(expected - (200, 90, 60)).max() > 3
    assert result.getpixel((60, 50)) == background.getpixel((60, 50))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "RGB"])
@pytest.mark.parametrize("own", ["none", "of another colour space", "Adobe RGB"])
def test_a_grey_or_cmyk_cut_out_is_converted_like_its_rgb(
    mode: str, own: str, folder: Path, small_model: HarmonizationUNet
) -> None:
    """What Pillow makes of it is sRGB, unless it has a profile of RGB."""
    profile = {"Adobe RGB": profiles.icc_profile("Adobe RGB"), "none": None}.get(own, profiles.icc_profile("sRGB"))
    if own == "of another colour space":
        profile = profile[:16] + (b"CMYK" if mode == "CMYK" else b"GRAY") + profile[20:]
    background = odd_files.picture("RGB", (80, 60))
    background.save(folder / "a.png", icc_profile=profiles.icc_profile("ProPhoto RGB"))
    found = []
    grey, rgb = Image.new("L", (20, 10), 128).convert(mode), Image.new("RGB", (20, 10), (128, 128, 128))
    for cut, icc in ((grey, profile), (rgb, profile if own == "Adobe RGB" else None)):
        cut.save(folder / "cut.tif", **({} if icc is None else {"icc_profile": icc}))
        mask = Image.new("L", (20, 10), 255)
        mask.putpixel((0, 0), 0)
        mask.save(folder / "m.png")
        with pytest.warns(UserWarning, match="the strength is 0"):
            harmonize_cutout_file(
                folder / "cut.tif", folder / "a.png", folder / "m.png", folder / "out.png", small_model,
                Settings(strength=0), at=(5, 7),
            )  # fmt: skip
        found.append(Image.open(folder / "out.png").getpixel((20, 12)))
    assert np.abs(np.subtract(*found)).max() <= 1
    assert max(found[1]) < 120


def test_an_edit_saved_in_another_profile_is_found(folder: Path, small_model: HarmonizationUNet) -> None:
    """An editor that turned the whole picture to sRGB: the mask is the edit, not the whole picture."""
    vivid = np.asarray(odd_files.picture("RGB", (80, 60)))
    before = Image.fromarray((vivid // 3 + 80).astype(np.uint8))  # Adobe RGB has all of these colours
    before.save(folder / "a.png", icc_profile=profiles.icc_profile("Display P3"))
    before.info["icc_profile"] = profiles.icc_profile("Display P3")
    after = converted(before, profiles.icc_profile("Adobe RGB"))
    assert after is not None
    after.paste((250, 20, 20), (30, 20, 50, 40))
    after.save(folder / "after.png", icc_profile=profiles.icc_profile("Adobe RGB"))
    harmonize_edit_file(folder / "a.png", folder / "after.png", None, folder / "out.png", small_model)
    outside = np.ones((60, 80), bool)
    outside[18:42, 28:52] = False
    found = np.asarray(Image.open(folder / "out.png"))
    np.testing.assert_array_equal(found[outside], np.asarray(before)[outside])


def test_sixteen_bit_colours_of_another_profile_are_warned_of(folder: Path, small_model: HarmonizationUNet) -> None:
    deep = np.asarray(odd_files.picture("RGBA", (20, 10))).astype(np.uint16) * 257
    write_deep(DeepPicture(deep, profiles.icc_profile("Display P3")), folder / "cut.png")
    said = r"cut\.png: its colour profile is not that of .*a\.png, and 16-bit colours"
    with pytest.warns(UserWarning, match=said):
        harmonize_cutout_file(folder / "cut.png", folder / "a.png", None, folder / "out.png", small_model)
    mask = Image.new("L", (20, 10), 255)
    mask.putpixel((0, 0), 0)
    mask.save(folder / "m.png")
    odd_files.picture("I;16", (20, 10)).save(folder / "cut.png", icc_profile=profiles.icc_profile("Display P3"))
    with pytest.warns(UserWarning, match=said):
        harmonize_cutout_file(folder / "cut.png", folder / "a.png", folder / "m.png", folder / "out.png", small_model)


def test_every_file_of_a_folder_is_accounted_for(tmp_path: Path, small_model: HarmonizationUNet) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    masks.mkdir()
    (images / "inner").mkdir(parents=True)
    inside = np.zeros((60, 80), np.uint8)
    inside[20:40, 20:60] = 255
    for name in ("a.png", "b.avif", "loop.png", "pipe.png", "gone.jpg", "two.webp"):
        Image.fromarray(inside).save((masks / name).with_suffix(".png"))
    odd_files.picture("RGB", (80, 60)).save(images / "a.png")
    odd_files.picture("RGB", (80, 60)).save(images / "b.avif")
    (images / "loop.png").symlink_to(images / "loop.png")
    os.mkfifo(images / "pipe.png")
    (images / "gone.jpg").symlink_to(images / "nothing.jpg")
    (images / "two.webp").write_bytes(dict(odd_files.whole_files())["two.webp"])
    for name in ("c.gif", "notes.txt", "README", ".hidden"):
        (images / name).touch()
    Image.fromarray(inside).save(masks / "nobodys.png")

    report = harmonize_folder(images, masks, tmp_path / "out", small_model)
    assert sorted(path.name for path in report.written) == ["a.png", "b.avif"]
    reasons = {path.name: reason for path, reason in report.failed.items()}
    assert reasons.keys() == {"loop.png", "pipe.png", "gone.jpg", "two.webp"}
    assert "not a regular file" in reasons["pipe.png"]
    assert "several frames" in reasons["two.webp"]
    ignored = {path.name: reason for path, reason in report.ignored.items()}
    assert ignored.keys() == {"inner", "c.gif", "notes.txt", "README", ".hidden", "nobodys.png"}
    assert ignored["c.gif"].startswith(".gif is none of .jpg, ")
    assert ignored["nobodys.png"] == "a mask that belongs to no picture"
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert (written["pictures"], written["done"], written["failed"], written["not_reached"]) == (6, 2, 4, 0)
    assert len(written["files"]) + len(written["ignored"]) == len(os.listdir(images)) + 1


def hold(folder: str, held: object, done: object) -> None:
    with writing(folder):
        held.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


def test_two_runs_in_one_folder(folder: Path, small_model: HarmonizationUNet) -> None:
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    os.replace(folder / "a.png", folder / "images/a.png")
    os.replace(folder / "m.png", folder / "masks/a.png")
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(folder / "out"), held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(ScscoError, match=r"out: another run is writing to this folder"):
        harmonize_folder(folder / "images", folder / "masks", folder / "out", small_model)
    assert not (folder / "out/a.png").exists()
    other.kill()
    other.join()
    report = harmonize_folder(folder / "images", folder / "masks", folder / "out", small_model)
    assert len(report.written) == 1
    assert sorted(os.listdir(folder / "out")) == ["a.png", "report.json"]


def test_nothing_of_a_thousand_odd_inputs_comes_out_wrong() -> None:
    """The program whose table is in docs/odd-inputs.md; it says on stderr what is wrong."""
    assert odd_inputs.main() == 0
