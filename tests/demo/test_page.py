"""The page in a browser: the three ways, what can be changed afterwards, and what is said."""

import os
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

import scsco_fast as sf
from scsco_fast.data.deep_color import DeepPicture, read_deep, write_deep
from scsco_fast.data.masks import read_mask
from scsco_fast.demo.requests import FIND, OWN, PAINT, UPLOAD

WIDTH, HEIGHT = 220, 150
LIMIT = "0.1"  # megapixels
RIGHT = "\ue014"  # the arrow key
# The network of `--segment` in small: what is not dark is the object.
STAND_IN = """
import numpy as np, scsco_fast.demo.server as server
server.load_u2netp = lambda path: lambda rgb: (rgb.max(axis=2) > 100).astype(np.float32)
"""


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if (reason := browser.missing()) is not None:
        pytest.skip(reason)
    page = browser.Page(address, tmp_path_factory.mktemp("downloads"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def model(model_file: Path) -> sf.HarmonizationUNet:
    return sf.load_model(model_file)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def numbers(page: browser.Page) -> tuple[int, int, float]:
    """Where the stage says that the cut-out is: x, y and scale."""
    x, y, scale = (page.each(f"#stage [name={name}]", "Number(e.value)")[0] for name in ("x", "y", "scale"))
    return int(x), int(y), scale


def place(page: browser.Page, pictures: Path) -> None:
    """A cut-out of 60x80 on a background of 320x240."""
    page.tab("Cut-out")
    page.upload("cutout", pictures / "cutout.png")
    page.upload("background", pictures / "field.png")
    page.find("#stage .front[src]")
    page.idle()
    for name, value in (("x", 130), ("y", 80), ("scale", 1)):
        page.fill(f"#stage [name={name}]", str(value))


def test_a_composite(page: browser.Page, address: str, model: sf.HarmonizationUNet, pictures: Path) -> None:
    """Upload, harmonize, look at a point, download: the files are what `sf.harmonize` gives, bit for bit."""
    page.upload("composite", pictures / "cat.png")
    page.upload("mask", pictures / "mask.png")
    page.harmonize()
    assert len(page.all("#slider img")) == 2
    file = page.download()
    assert file.name == "cat_harmonized.png"
    cat, mask = pixels(pictures / "cat.png"), read_mask(pictures / "mask.png")
    wanted = sf.harmonize(cat, mask, model)
    assert np.array_equal(pixels(file), wanted)
    assert (wanted != cat).any()
    layer = page.download("#layer")
    assert layer.name == "cat_layer.png"
    assert np.array_equal(pixels(layer), sf.harmonize(cat, mask, model, layer=True))

    first = page.source("#attention img")
    page.click_at("#attention img", 0.35, 0.35)
    page.until("another map", lambda: page.source("#attention img") != first)
    page.click_at("#attention img", 0.05, 0.05)
    assert "that point is background" in page.message("background")
    assert all(url.startswith((address, "data:", "blob:")) for url in page.requests())


@pytest.mark.filterwarnings("ignore:the mask covers")
def test_the_strength_is_changed_afterwards(page: browser.Page, model: sf.HarmonizationUNet, pictures: Path) -> None:
    page.upload("composite", pictures / "cat.png")
    page.upload("mask", pictures / "inverted.png")
    page.harmonize()
    page.message("the mask covers")
    cat, mask = pixels(pictures / "cat.png"), read_mask(pictures / "inverted.png")
    for change, options in (
        (lambda: page.fill("#strength input[type=number]", "0.35"), {"strength": 0.35}),
        (lambda: page.choose("keep", "Brightness"), {"strength": 0.35, "keep": "luma"}),
    ):
        before = page.each("#slider img", "e.src")
        change()
        page.until("another preview", lambda before=before: page.each("#slider img", "e.src") != before)
        page.idle()
        assert_near(pixels(page.download()), sf.harmonize(cat, mask, model, **options))
        assert_near(pixels(page.download("#layer")), sf.harmonize(cat, mask, model, layer=True, **options))
    page.choose("keep", "Nothing")
    page.fill("#strength input[type=number]", "1")
    page.idle()


def test_a_cutout_is_dragged_to_its_place(page: browser.Page, model: sf.HarmonizationUNet, pictures: Path) -> None:
    place(page, pictures)
    assert numbers(page) == (130, 80, 1)
    screen = page.each("#stage .stage", "e.clientWidth / 320")[0]  # pixels of the screen for one of the background
    page.drag("#stage .front", 60, -40)
    dragged = numbers(page)
    assert dragged == (pytest.approx(130 + 60 / screen, abs=1), pytest.approx(80 - 40 / screen, abs=1), 1)
    page.drag("#stage .front", -80, 32, "touch")
    touched = numbers(page)
    assert touched[:2] == (
        pytest.approx(dragged[0] - 80 / screen, abs=1), pytest.approx(dragged[1] + 32 / screen, abs=1)
    )  # fmt: skip
    page.press("#stage .stage", RIGHT, RIGHT, RIGHT)
    assert numbers(page) == (touched[0] + 3, touched[1], 1)
    page.fill("#stage [name=scale]", "1.5")
    x, y, scale = numbers(page)
    assert (x, y, scale) == (touched[0] + 3 - 15, touched[1] - 20, 1.5)  # its middle stays
    page.harmonize("#cutout_start")
    wanted = sf.harmonize(
        pixels(pictures / "cutout.png"), model=model, background=pixels(pictures / "field.png"), at=(x, y), scale=scale
    )
    assert_near(pixels(page.download()), wanted)

    page.fill("#stage [name=x]", "99999")  # some of it stays inside
    assert numbers(page)[0] == 320 - 5
    page.tab("Composite")
    page.tab("Cut-out")
    assert numbers(page)[0] == 320 - 5
    page.tab("Composite")


def test_what_is_dragged_counts_at_full_size(page: browser.Page, pictures: Path, tmp_path: Path) -> None:
    """A background of 3000 pixels is shown reduced to 1024."""
    Image.new("RGB", (3000, 30), "gray").save(tmp_path / "long.png")
    place(page, pictures)
    page.upload("background", tmp_path / "long.png")
    page.until("the long background", lambda: "3000 x 30" in page.each("#stage .where", "e.textContent")[0])
    page.idle()
    start = numbers(page)
    screen = page.each("#stage .stage", "e.clientWidth / 3000")[0]
    assert screen < 0.5
    page.drag("#stage .front", 48, 0)
    assert numbers(page)[0] == pytest.approx(start[0] + 48 / screen, abs=1)
    assert page.each("#stage .behind", "e.naturalWidth") == [1024]
    page.tab("Composite")


def test_an_edit(page: browser.Page, model: sf.HarmonizationUNet, pictures: Path) -> None:
    page.tab("Edit")
    page.upload("before", pictures / "cat.png")
    page.upload("after", pictures / "edited.png")
    page.harmonize("#edit_start")
    cat, edited = pixels(pictures / "cat.png"), pixels(pictures / "edited.png")
    assert_near(pixels(page.download()), sf.harmonize(edited, model=model, before=cat))
    page.choose("edit_source", UPLOAD)
    page.upload("edit_mask", pictures / "mask.png")
    page.harmonize("#edit_start")
    wanted = sf.harmonize(edited, read_mask(pictures / "mask.png"), model, before=cat)
    assert_near(pixels(page.download()), wanted)
    page.tab("Composite")


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Tests before may leave this process another number of threads than the server's, which then rounds otherwise."""
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_tall_narrow_picture_in_each_way(page: browser.Page, model: sf.HarmonizationUNet, tmp_path: Path) -> None:
    """As it is shown too: on the screen it is less than a pixel wide."""
    rng = np.random.default_rng(0)
    tall = rng.integers(0, 255, (3000, 2, 3), dtype=np.uint8)
    mask = np.zeros(tall.shape[:2], np.uint8)
    mask[800:1700] = 255
    edited = np.where(mask[..., None] > 0, 255 - tall, tall).astype(np.uint8)
    cut = np.dstack([edited, mask])[700:1800]
    for name, values in (("tall", tall), ("mask", mask), ("edited", edited), ("cut", cut)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    page.upload("composite", tmp_path / "tall.png")
    page.upload("mask", tmp_path / "mask.png")
    page.harmonize()
    assert_near(pixels(page.download()), sf.harmonize(tall, mask, model))
    page.tab("Edit")
    page.choose("edit_source", UPLOAD)
    page.upload("before", tmp_path / "tall.png")
    page.upload("after", tmp_path / "edited.png")
    page.upload("edit_mask", tmp_path / "mask.png")
    page.harmonize("#edit_start")
    assert_near(pixels(page.download()), sf.harmonize(edited, mask, model, before=tall))
    page.choose("edit_source", OWN["edit"])
    page.tab("Cut-out")
    page.upload("cutout", tmp_path / "cut.png")
    page.upload("background", tmp_path / "tall.png")
    page.until("the background", lambda: "2 x 3000" in page.each("#stage .where", "e.textContent")[0])
    page.idle()
    page.fill("#stage [name=y]", "900")
    page.harmonize("#cutout_start")
    x, y, scale = numbers(page)
    wanted = sf.harmonize(cut, model=model, background=tall, at=(x, y), scale=scale)
    assert_near(pixels(page.download()), wanted)
    page.tab("Composite")


def test_sixteen_bit_colour(page: browser.Page, model: sf.HarmonizationUNet, pictures: Path, tmp_path: Path) -> None:
    """What the browser cannot show of it, as TIFF, it uploads nevertheless; what is downloaded has all its bits."""
    deep = pixels(pictures / "cat.png").astype(np.uint16)[::-1] // 2 * 257 + np.uint16(3)
    for suffix, values in (("png", deep), ("tif", deep[:, ::-1].copy())):
        write_deep(DeepPicture(values), tmp_path / f"deep.{suffix}")
        page.upload("composite", tmp_path / f"deep.{suffix}")
        page.upload("mask", pictures / "mask.png")
        page.harmonize()
        result = read_deep(page.download(), 10**6).pixels
        mask = read_mask(pictures / "mask.png")
        assert np.array_equal(result[mask == 0], values[mask == 0])
        assert np.abs(result.astype(int) - sf.harmonize(values, mask, model)).max() <= 4  # of 65535: other threads


def test_a_painted_mask(page: browser.Page, pictures: Path) -> None:
    page.upload("composite", pictures / "cat.png")
    page.choose("source", PAINT)
    page.find("#painted .picture[src]")
    page.idle()
    page.stroke("#painted canvas", (0.4, 0.5), (0.6, 0.5))
    page.stroke("#painted canvas", (0.1, 0.1), (0.2, 0.1))
    page.click("#painted .undo")
    page.harmonize()
    changed = (pixels(page.download()) != pixels(pictures / "cat.png")).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 0.02 < changed.mean() < 0.5
    assert abs(rows.mean() / HEIGHT - 0.5) < 0.1
    assert abs(columns.mean() / WIDTH - 0.5) < 0.1
    page.click("#painted [value=destination-out]")
    page.stroke("#painted canvas", (0.5, 0.5), (0.7, 0.5))
    page.harmonize()
    less = (pixels(page.download()) != pixels(pictures / "cat.png")).any(axis=2)
    assert not (less & ~changed).any()
    assert less.sum() < 0.8 * changed.sum()
    page.click("#painted .clear")
    page.click("#start")
    assert "there is no mask; upload one, or paint over the foreground" in page.message("no mask")
    page.choose("source", UPLOAD)


def test_what_cannot_be_used_is_said_in_the_page(page: browser.Page, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    page.upload("composite", pictures / "cat.png")
    page.choose("source", PAINT)
    page.idle()
    page.choose("source", UPLOAD)
    page.until("the field for the mask", lambda: any(field.is_displayed() for field in page.all("#mask")))
    page.upload("mask", tmp_path / "note.png")  # hidden before: gradio must not open it
    page.click("#start")
    assert "note.png: not a picture of a known format" in page.message("note.png")
    page.upload("mask", pictures / "cut.png")
    page.click("#start")
    text = page.message("the mask is")
    assert f"cut.png: the mask is {WIDTH}x{HEIGHT - 10} (width x height) but its picture is {WIDTH}x{HEIGHT}" in text
    assert os.sep not in text.replace("before / after", "")
    assert "--" not in text
    page.upload("mask", pictures / "empty.png")
    page.click("#start")
    assert "the mask is empty" in page.message("empty")
    page.upload("mask", pictures / "inverted.png")
    page.harmonize()
    assert 'tick "Invert the mask"' in page.message("the mask covers")
    page.upload("composite", pictures / "large.png")
    assert f"large.png: 400x300 are 0.1 megapixels, the limit is {LIMIT}" in page.message("megapixels")
    page.upload("composite", pictures / "cutout.png")
    page.each("#mask button[aria-label='Remove Image'], #mask button[aria-label='Clear']", "e.click()")
    page.until("no mask", lambda: not page.all("#mask img"))
    page.click("#start")
    assert 'so this is a cut-out and no composite; go to "Cut-out"' in page.message("cut-out")


def test_the_mask_is_found_only_where_that_was_asked_for(
    page: browser.Page, model_file: Path, pictures: Path, tmp_path: Path
) -> None:
    assert FIND not in [label.text.strip() for label in page.all("#source label")]
    photograph = np.zeros((120, 160, 3), np.uint8)
    photograph[30:90, 40:100] = (250, 140, 60)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    with browser.served(model_file, "--segment", "u2netp.onnx", first=STAND_IN) as address:
        finding = browser.Page(address, tmp_path)
        try:
            finding.tab("Cut-out")
            finding.upload("cutout", tmp_path / "photograph.png")
            finding.upload("background", pictures / "field.png")
            finding.choose("cutout_source", FIND)
            finding.find("#cutout_painted .picture[src]")
            finding.idle()
            finding.harmonize("#cutout_start")
            changed = (pixels(finding.download()) != pixels(pictures / "field.png")).any(axis=2)
            assert changed.sum() == pytest.approx(60 * 60, rel=0.1)
            assert finding.all(f"#cutout_source input[value='{OWN['cutout']}']")
        finally:
            finding.close()


def test_a_sample_picture(page: browser.Page) -> None:
    page.click("#samples tbody tr")
    # `until` asserts that it comes in time.
    page.until("the sample", lambda: "cup" in str(page.source("#composite img")) + str(page.source("#mask img")))
