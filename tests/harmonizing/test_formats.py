"""AVIF and HEIC: what is kept of a picture, and the one line where a file cannot be read or written."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from scsco_fast.cli import main
from scsco_fast.data import avif_heic
from scsco_fast.data.check import check_dataset
from scsco_fast.data.images import read_picture, stored_orientation
from scsco_fast.data.masks import read_mask
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import harmonize_file
from scsco_fast.harmonizing.image_files import read_image, write_image
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import save_model

if not features.check("avif"):
    pytest.skip("this Pillow was built without AVIF", allow_module_level=True)
pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif (the extra heif)")
pillow_heif.register_heif_opener()

SIZE = (70, 90)  # height, width
SUFFIXES = [".avif", ".heic", ".heif"]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    """(H, W) bool."""
    inside = np.zeros(SIZE, dtype=bool)
    inside[20:50, 30:70] = True
    return inside


def as_mode(pixels: np.ndarray, mode: str) -> Image.Image:
    return Image.fromarray(np.squeeze(pixels[:, :, : len(mode)]))


def error_of(path: Path, *arguments: int) -> str:
    with pytest.raises(ScscoError) as caught:
        read_image(path, *arguments)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(suffix: str, mode: str, pixels: np.ndarray, tmp_path: Path) -> None:
    """Bit for bit but for AVIF's colours, whose conversion costs up to 3 of 255."""
    image, path = as_mode(pixels, mode), tmp_path / f"a{suffix}"
    write_image(image, path)
    found = read_image(path)
    assert found.mode == {"LA": "RGBA"}.get(mode, mode)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(image.convert(found.mode)))
    colour = suffix == ".avif" and "RGB" in mode
    assert 0 < difference.max() <= 3 if colour else difference.max() == 0
    if "A" in mode:
        assert np.array_equal(found.getchannel("A"), image.getchannel("A"))


@pytest.mark.parametrize("suffix", [".heic", ".HEIF"])
def test_heic_keeps_the_background(
    suffix: str, pixels: np.ndarray, mask: np.ndarray, tmp_path: Path, small_model: HarmonizationUNet
) -> None:
    write_image(as_mode(pixels, "RGB"), tmp_path / f"a{suffix}")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    harmonize_file(tmp_path / f"a{suffix}", tmp_path / "mask.png", tmp_path / f"b{suffix}", small_model)
    written = np.asarray(read_image(tmp_path / f"b{suffix}"))
    assert np.array_equal(written[~mask], pixels[~mask][:, :3])
    assert (written[mask] != pixels[mask][:, :3]).any()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_profile_and_exif_are_kept_upright(
    suffix: str, pixels: np.ndarray, mask: np.ndarray, tmp_path: Path, small_model: HarmonizationUNet
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate by 90 degrees to view
    exif[0x010E] = "a caption"
    turned = as_mode(pixels, "RGB").transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / f"a{suffix}", quality=100, exif=exif.tobytes(), icc_profile=b"a profile")
    assert stored_orientation(tmp_path / f"a{suffix}") == 6
    assert read_picture(tmp_path / f"a{suffix}").rgb.shape == (*SIZE, 3)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    harmonize_file(tmp_path / f"a{suffix}", tmp_path / "mask.png", tmp_path / f"b{suffix}", small_model)
    written = Image.open(tmp_path / f"b{suffix}")
    assert written.size == (SIZE[1], SIZE[0])
    assert written.info["icc_profile"] == b"a profile"
    assert written.getexif().get(0x010E) == "a caption"
    assert written.getexif().get(0x0112, 1) == 1
    assert stored_orientation(tmp_path / f"b{suffix}") == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_exif_does_not_stop_writing(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    image = as_mode(pixels, "L")
    image.info["exif"] = b"Exif\0\0no tags"
    write_image(image, tmp_path / f"a{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), pixels[:, :, 0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks(suffix: str, mask: np.ndarray, tmp_path: Path) -> None:
    write_image(Image.fromarray(mask.astype(np.uint8) * 255), tmp_path / f"mask{suffix}")
    assert np.array_equal(read_mask(tmp_path / f"mask{suffix}"), mask)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".webp"])
def test_sixteen_bit_grey_is_not_written(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    with pytest.raises(ScscoError, match=rf"a{suffix}: {suffix} cannot hold 16 bits \(mode I;16\); name a \.png"):
        write_image(deep, tmp_path / f"a{suffix}")
    assert not (tmp_path / f"a{suffix}").exists()


def test_ten_bit_colour_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    wide = (pixels[:, :, :3].astype(np.uint16) * 257).tobytes()
    pillow_heif.from_bytes("RGB;16", (SIZE[1], SIZE[0]), wide).save(tmp_path / "a.heic")
    wanted = "10-bit pixels would be cut to 8 bits; save it as 8 bits or as 16-bit PNG"
    assert error_of(tmp_path / "a.heic").endswith(wanted)

    write_image(as_mode(pixels, "RGB"), tmp_path / "a.avif")
    eight = (tmp_path / "a.avif").read_bytes()
    flags = eight.index(b"av1C") + 6
    assert eight.count(b"\3\x08\x08\x08") == 1  # the number of channels, and their bits, once more
    for bits, high in ((10, 0x40), (12, 0x60)):
        made = eight[:flags] + bytes([eight[flags] | high]) + eight[flags + 1 :]
        (tmp_path / "b.avif").write_bytes(made.replace(b"\3\x08\x08\x08", bytes([3, bits, bits, bits])))
        assert f"{bits}-bit pixels" in error_of(tmp_path / "b.avif")


def test_ten_bit_grey_heic_is_sixteen_bit_grey(pixels: np.ndarray, tmp_path: Path) -> None:
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    deep.save(tmp_path / "a.heic", quality=-1)
    found = read_image(tmp_path / "a.heic")
    assert found.mode == "I;16"
    assert np.abs(np.asarray(found).astype(int) - np.asarray(deep)).max() < 64  # 10 of 16 bits


@pytest.mark.parametrize("suffix", [".avif", ".heic"])
def test_several_pictures_in_a_file_are_refused(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    frame = as_mode(pixels, "RGB")
    frame.save(tmp_path / f"a{suffix}", save_all=True, append_images=[Image.new("RGB", frame.size)])
    assert "holds several frames or pages" in error_of(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_many_pixels(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    write_image(as_mode(pixels, "RGB"), tmp_path / f"a{suffix}")
    assert "90x70, 0.0063 megapixels; the limit is 0.005" in error_of(tmp_path / f"a{suffix}", 5000)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    write_image(as_mode(pixels, "RGB"), tmp_path / f"a{suffix}")
    whole, damaged = (tmp_path / f"a{suffix}").read_bytes(), tmp_path / f"b{suffix}"
    for length in (40, 150, 300, len(whole) // 2, len(whole) - 9):
        damaged.write_bytes(whole[:length])
        assert "the file is truncated or damaged" in error_of(damaged)
    rng = np.random.default_rng(0)
    for _ in range(100):
        wrong = bytearray(whole)
        wrong[rng.integers(12, 500)] = rng.integers(256)
        damaged.write_bytes(wrong)
        try:
            read_image(damaged)
        except ScscoError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most of them do no harm


def test_other_files_of_that_container_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(200))
    assert "not a picture of a known format" in error_of(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", [".heic", ".heif"])
def test_a_missing_package_is_named(
    suffix: str, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the file holds, whatever it is called; and before anything is computed where it is to be written."""
    write_image(as_mode(pixels, "RGB"), tmp_path / f"a{suffix}")
    (tmp_path / "b.jpg").write_bytes((tmp_path / f"a{suffix}").read_bytes())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    line = 'HEIC needs pillow-heif: pip install "scsco-fast[heif]"'
    for path in (tmp_path / f"a{suffix}", tmp_path / "b.jpg"):
        assert error_of(path) == f"{path}: {line}"
    with pytest.raises(ScscoError) as caught:
        write_image(as_mode(pixels, "RGB"), tmp_path / f"c{suffix}")
    assert str(caught.value) == f"{tmp_path}/c{suffix}: {line}"


def test_a_pillow_without_avif_is_named(pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.avif"
    write_image(as_mode(pixels, "RGB"), path)
    monkeypatch.setattr(avif_heic, "_has_avif", lambda: False)
    line = 'this Pillow was built without AVIF; pip install "pillow>=11.3", or use PNG'
    assert error_of(path) == f"{path}: this is an AVIF file, and {line}"
    with pytest.raises(ScscoError) as caught:
        write_image(as_mode(pixels, "RGB"), path)
    assert str(caught.value) == f"{path}: {line}"


def test_a_heif_library_that_only_reads(pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avif_heic, "_writes_heif", lambda: False)
    with pytest.raises(ScscoError, match=r"a\.heic: this pillow-heif reads HEIC and does not write it; name a \.png"):
        write_image(as_mode(pixels, "RGB"), tmp_path / "a.heic")


def test_a_folder(
    pixels: np.ndarray,
    mask: np.ndarray,
    tmp_path: Path,
    small_model: HarmonizationUNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    save_model(small_model, tmp_path / "model.safetensors")
    for name, mask_name in {"a.avif": "a.png", "b.heic": "b_mask.avif", "c.png": "c.heif"}.items():
        write_image(as_mode(pixels, "RGB"), tmp_path / "images" / name)
        write_image(Image.fromarray(mask.astype(np.uint8) * 255), tmp_path / "masks" / mask_name)
    command = ["harmonize", "--model", str(tmp_path / "model.safetensors"), "--images", str(tmp_path), "--workers", "0"]
    for format, wanted in {"same": ["a.avif", "b.heic", "c.png"], "avif": ["a.avif", "b.avif", "c.avif"]}.items():
        output = tmp_path / format
        assert main([*command, "--output", str(output), "--format", format]) == 0, capsys.readouterr().err
        assert sorted(path.name for path in output.iterdir() if path.suffix != ".json") == wanted
        assert {read_image(output / name).size for name in wanted} == {(SIZE[1], SIZE[0])}
        assert [Image.open(output / name).format for name in wanted].count("AVIF") == str(wanted).count("avif")


def test_a_data_set_is_checked(pixels: np.ndarray, mask: np.ndarray, tmp_path: Path) -> None:
    for part in ("composite_images", "masks", "real_images"):
        (tmp_path / part).mkdir()
    for name, suffix in {"c1": ".avif", "c2": ".heic"}.items():
        write_image(as_mode(pixels, "RGB"), tmp_path / f"composite_images/{name}_1_1{suffix}")
        write_image(as_mode(pixels, "RGB"), tmp_path / f"real_images/{name}{suffix}")
        write_image(Image.fromarray(mask.astype(np.uint8) * 255), tmp_path / f"masks/{name}_1.png")
    (tmp_path / "real_images/c2.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    report = check_dataset(tmp_path, tmp_path / "journal.jsonl", 0)
    assert {Path(problem.file).name for problem in report.problems} == {"c2.heic"}
