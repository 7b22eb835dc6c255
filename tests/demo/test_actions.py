"""What the page computes and refuses, without a browser."""

import base64
import contextvars
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import scsco_fast as sf
from scsco_fast.data.deep_color import DeepPicture, read_deep, write_deep
from scsco_fast.data.masks import read_mask
from scsco_fast.data.salient import SIDE
from scsco_fast.demo.actions import Actions, Shown
from scsco_fast.demo.attention import attention_levels, attention_picture
from scsco_fast.demo.fields import in_the_page, in_thread
from scsco_fast.demo.painting import painting_value, read_painted
from scsco_fast.demo.requests import FIND, OWN, PAINT, Request
from scsco_fast.demo.samples import sample_composites, sample_cutouts, sample_edits
from scsco_fast.demo.stage import read_place, stage_value

WIDTH, HEIGHT = 220, 150
NOTHING = "Nothing"
PLACE = {"x": 250, "y": -7, "scale": 1.5}


@pytest.fixture(scope="module")
def model(model_file: Path) -> sf.HarmonizationUNet:
    return sf.load_model(model_file)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def actions(model: sf.HarmonizationUNet, tmp_path: Path, said: list[str]) -> Actions:
    return Actions(model, tmp_path / "results", 1.0, said.append)


def composite(pictures: Path, mask: str = "mask.png", **others: Any) -> Request:
    return Request("composite", str(pictures / "cat.png"), uploaded=str(pictures / mask), **others)


def cutout(pictures: Path, **others: Any) -> Request:
    paths = {"image": str(pictures / "cutout.png"), "under": str(pictures / "field.png")}
    return Request("cutout", **{**paths, "source": OWN["cutout"], "place": PLACE, **others})


def edit(pictures: Path, **others: Any) -> Request:
    paths = {"image": str(pictures / "edited.png"), "under": str(pictures / "cat.png")}
    return Request("edit", **{**paths, "source": OWN["edit"], **others})


def run(actions: Actions, request: Request, strength: float = 1, keep: str = NOTHING) -> Shown:
    now, (before, after), _ = actions.run(request, strength, keep, None, None)
    assert before.shape == after.shape
    return now


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def painted(alpha: np.ndarray) -> dict[str, str]:
    """What the browser answers."""
    data = io.BytesIO()
    Image.fromarray(np.dstack([np.zeros((*alpha.shape, 3), np.uint8), alpha])).save(data, "PNG")
    return {"painted": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()}


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def wanted(pictures: Path, model: sf.HarmonizationUNet, way: str, **options: Any) -> np.ndarray:
    cat = pixels(pictures / "cat.png")
    if way == "composite":
        return sf.harmonize(cat, read_mask(pictures / "mask.png"), model, **options)
    if way == "cutout":
        place = {"background": pixels(pictures / "field.png"), "at": (250, -7), "scale": 1.5}
        return sf.harmonize(pixels(pictures / "cutout.png"), model=model, **place, **options)
    return sf.harmonize(pixels(pictures / "edited.png"), model=model, before=cat, **options)


WAYS: dict[str, Callable[..., Request]] = {"composite": composite, "cutout": cutout, "edit": edit}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_gives_what_harmonize_gives(
    actions: Actions, model: sf.HarmonizationUNet, pictures: Path, way: str
) -> None:
    """The first result, its layer, and the same at another strength: bit for bit."""
    now = run(actions, WAYS[way](pictures), 0.7, "Brightness")
    first = wanted(pictures, model, way, strength=0.7, keep="luma")
    assert np.array_equal(pixels(now.result), first)
    assert (first != now.preview).any()
    layer = actions.layer(now)
    assert layer is not None
    assert np.array_equal(pixels(layer), wanted(pictures, model, way, strength=0.7, keep="luma", layer=True))

    quick = actions.adjusted(now, 0.4, NOTHING)[1].astype(int)
    then, (before, after) = actions.finish(now, 0.4, NOTHING)
    assert np.array_equal(pixels(then.result), wanted(pictures, model, way, strength=0.4))
    assert np.array_equal(before, now.preview)
    assert np.array_equal(after, pixels(then.result))  # small pictures are their own preview
    assert np.abs(quick - after).mean() < 0.1 * np.abs(quick - first).mean()  # soft edges are near, not equal
    assert then.result.parent == now.result.parent


SHAPES = [(1, 2), (2, 1), (1, 300), (300, 1), (500, 2), (4, 1000), (9000, 64), (30000, 1), (1, 30000)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_pictures_of_any_shape(
    actions: Actions, tmp_path: Path, said: list[str], way: str, height: int, width: int
) -> None:
    """Everything that the page does with a picture: painting, stage, result, layer, strength, attention."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    box = np.s_[height // 3 : max(height // 3 + 1, height // 2), width // 3 : max(width // 3 + 1, width // 2)]
    mask[box] = 255
    edited = np.where(mask[..., None] > 0, 255 - picture, picture).astype(np.uint8)
    for name, values in (("a", picture), ("m", mask), ("e", edited), ("c", np.dstack([picture, mask]))):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    path = {name: str(tmp_path / f"{name}.png") for name in "amec"}
    request = {
        "composite": Request("composite", path["a"], uploaded=path["m"]),
        "cutout": Request("cutout", path["c"], path["a"], OWN["cutout"], place={"x": 0, "y": 0, "scale": 1}),
        "edit": Request("edit", path["e"], path["a"], uploaded=path["m"]),
    }[way]
    assert actions.canvas(path["a"], PAINT) is not None
    assert (actions.stage(request) is None) == (way == "composite")
    level = next(iter(attention_levels(actions.model).values()))
    now, (before, after), attention = actions.run(request, 1, NOTHING, level, None)
    assert before.shape == after.shape
    assert attention is not None
    assert actions.layer(now) is not None
    assert actions.adjusted(now, 0.5, NOTHING)[1].shape == before.shape
    now, _ = actions.finish(now, 0.5, "Brightness")
    result = pixels(now.result)
    assert result.shape == picture.shape
    assert np.array_equal(result[mask == 0], picture[mask == 0])
    assert all("no pixel was changed" in text or "the mask covers" in text for text in said)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_stay_sixteen_bits(
    actions: Actions, model: sf.HarmonizationUNet, pictures: Path, tmp_path: Path, way: str, suffix: str
) -> None:
    """16-bit RGB is shown, painted over, harmonized and given back with all its bits, in each way."""
    rng = np.random.default_rng(0)
    names = {"composite": ("cat",), "cutout": ("cutout", "field"), "edit": ("edited", "cat")}[way]
    deep = []
    for name in names:
        values = pixels(pictures / f"{name}.png").astype(np.uint16)
        values = values * 257 - np.where(values > 0, rng.integers(0, 200, values.shape), 0).astype(np.uint16)
        if values.shape[2] == 4:
            values[..., 3] = np.where(values[..., 3] > 0, 65535, 0)
        write_deep(DeepPicture(values), tmp_path / f"{name}.{suffix}")
        deep.append(values)
    paths = [str(tmp_path / f"{name}.{suffix}") for name in names]
    assert actions.canvas(paths[0], PAINT) is not None
    uploaded = str(pictures / "mask.png")
    if way == "composite":
        now = run(actions, Request("composite", paths[0], uploaded=uploaded))
        wanted = sf.harmonize(deep[0], read_mask(uploaded), model)
    elif way == "cutout":
        request = Request("cutout", *paths, OWN["cutout"], place=PLACE)
        assert actions.stage(request) is not None
        now = run(actions, request)
        wanted = sf.harmonize(deep[0], model=model, background=deep[1], at=(250, -7), scale=1.5)
    else:
        now = run(actions, Request("edit", *paths, uploaded=uploaded))
        wanted = sf.harmonize(deep[0], read_mask(uploaded), model, before=deep[1])
    result = read_deep(now.result, 10**6).pixels
    assert result.dtype == wanted.dtype == np.uint16
    assert np.array_equal(result, wanted)
    assert (result % 257 != 0).any()
    layer = actions.layer(now)
    assert layer is not None
    assert read_deep(layer, 10**6).pixels.shape == (*wanted.shape[:2], 4)


def test_a_mask_can_be_grown_and_inverted(actions: Actions, model: sf.HarmonizationUNet, pictures: Path) -> None:
    now = run(actions, composite(pictures, "inverted.png", grow=7, invert=True))
    assert np.array_equal(pixels(now.result), wanted(pictures, model, "composite", grow_mask=7))
    assert (now.weight > 0.5).sum() == (70 + 14) * (100 + 14)
    shrunk = run(actions, cutout(pictures, grow=-3))
    assert np.array_equal(pixels(shrunk.result), wanted(pictures, model, "cutout", grow_mask=-3))
    with pytest.raises(sf.ScscoError, match="there is no mask to invert"):
        run(actions, cutout(pictures, invert=True))
    with pytest.raises(sf.ScscoError, match="cannot be grown into"):
        run(actions, cutout(pictures, grow=3))


def test_a_painted_mask_is_one_of_the_full_size(actions: Actions, model: sf.HarmonizationUNet, pictures: Path) -> None:
    half = np.zeros((HEIGHT // 2, WIDTH // 2), np.uint8)
    half[20:55, 30:80] = 255
    now = run(actions, composite(pictures, source=PAINT, painted=painted(half)))
    mask = read_mask(now.result.parent / "painted mask.png")
    assert mask.shape == (HEIGHT, WIDTH)
    assert ((mask > 0.5) == (read_mask(pictures / "mask.png") > 0.5)).all()
    assert np.array_equal(pixels(now.result), sf.harmonize(pixels(pictures / "cat.png"), mask, model))
    of_edit = run(actions, edit(pictures, source=PAINT, painted=painted(half)))
    assert np.array_equal(
        pixels(of_edit.result),
        sf.harmonize(pixels(pictures / "edited.png"), mask, model, before=pixels(pictures / "cat.png")),
    )


def test_what_is_painted_is_read_by_one_reader_only() -> None:
    assert read_painted(None) is None
    assert read_painted({"painted": None}) is None
    assert read_painted(painted(np.zeros((4, 6), np.uint8))) is None
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "GIF")
    for value in ("/etc/passwd", "data:image/png;base64,AAAA", base64.b64encode(data.getvalue()).decode()):
        with pytest.raises(sf.ScscoError, match="cannot be read, wanted a PNG of at most 1024"):
            read_painted({"painted": value})
    with pytest.raises(sf.ScscoError, match="wanted a PNG of at most 1024"):
        read_painted(painted(np.full((2, 1025), 255, np.uint8)))


def test_the_object_of_a_picture_is_found(
    model: sf.HarmonizationUNet, pictures: Path, tmp_path: Path, said: list[str]
) -> None:
    found = np.zeros((SIDE, SIDE), np.float32)
    found[100:200, 80:240] = 1
    finding = Actions(model, tmp_path, 1.0, said.append, lambda rgb: found)
    cat = str(pictures / "cat.png")
    value = finding.canvas(cat, FIND)
    assert value is not None
    assert value["size"] == [WIDTH, HEIGHT]
    paint = read_painted(value)
    assert paint is not None
    assert paint.shape == (HEIGHT, WIDTH)
    assert np.mean(paint > 127) == pytest.approx(found.mean(), rel=0.03)
    assert not said
    plain = finding.canvas(cat, PAINT)
    assert plain is not None
    assert plain["mask"] is None
    found[:] = 0.5  # neither object nor background
    assert finding.canvas(cat, FIND) is not None
    assert "no object stands out clearly" in said[0]
    assert finding.canvas(None, FIND) is None


def test_the_place_is_in_pixels_of_the_background(actions: Actions, pictures: Path) -> None:
    value = actions.stage(cutout(pictures))
    assert value is not None
    assert (value["size"], value["cut"]) == ([320, 240], [60, 80])
    large = stage_value(np.zeros((50, 3000, 3), np.uint8), np.ones((50, 3000)), np.zeros((4000, 2000, 3), np.uint8))
    assert (large["size"], large["cut"]) == ([2000, 4000], [3000, 50])
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(large[name].split(",")[1]))).size for name in ("background", "cutout")
    ]
    assert sizes == [(512, 1024), (1024, 17)]
    assert actions.stage(cutout(pictures, under=None)) is None


def test_the_stage_shows_what_the_mask_leaves(actions: Actions, pictures: Path) -> None:
    mask = np.zeros((80, 60), np.uint8)
    mask[:40] = 255
    value = actions.stage(cutout(pictures, source=PAINT, painted=painted(mask)))
    assert value is not None
    shown = np.asarray(opened(value["cutout"]))
    assert (shown[10:40, 10:50, 3] == 255).all()
    assert not shown[40:, :, 3].any()


@pytest.mark.parametrize(
    "value", [None, {}, {"x": "a", "y": 1, "scale": 1}, {"x": 1, "y": float("inf"), "scale": 1}, 7]
)
def test_what_is_no_place_is_refused(value: Any) -> None:
    with pytest.raises(sf.ScscoError, match="the cut-out"):
        read_place(value)


@pytest.mark.parametrize("place", [{"x": 10**7, "y": 0, "scale": 1}, {"x": 0, "y": 0, "scale": 0}])
def test_what_is_far_out_is_refused(place: dict[str, float]) -> None:
    with pytest.raises(sf.ScscoError, match="move it"):
        read_place(place)


def test_a_cutout_is_no_composite(actions: Actions, pictures: Path, tmp_path: Path) -> None:
    """Background removers leave one colour behind their transparency; a composite with round corners is one."""
    alone = str(pictures / "cutout.png")
    own = tmp_path / "own.png"
    Image.fromarray(pixels(pictures / "cutout.png")[..., 3]).save(own)
    for request in (
        Request("composite", alone),
        Request("composite", alone, source=PAINT),
        Request("composite", alone, uploaded=str(own)),
    ):
        with pytest.raises(sf.ScscoError, match=r'only one colour \(0, 0, 0\), so this is a cut-out .* "Cut-out"'):
            run(actions, request)
    part = np.zeros((80, 60), np.uint8)
    part[20:40, 20:40] = 255
    now = run(actions, Request("composite", alone, source=PAINT, painted=painted(part)))
    assert now.result.exists()
    with pytest.raises(sf.ScscoError, match="there is no mask; upload one, or paint"):
        run(actions, Request("composite", str(pictures / "cat.png")))


def test_masks_of_files_are_refused_as_elsewhere(actions: Actions, pictures: Path, said: list[str]) -> None:
    with pytest.raises(sf.ScscoError, match="the mask is empty, no pixel is above 127 of 255"):
        run(actions, composite(pictures, "empty.png"))
    with pytest.raises(sf.ScscoError, match="the mask is 220x140"):
        run(actions, composite(pictures, "cut.png"))
    with pytest.raises(sf.ScscoError, match="differ nowhere"):
        run(actions, edit(pictures, image=str(pictures / "cat.png")))
    with pytest.raises(sf.ScscoError, match=r"field.png: is 320x240 but the picture before the edit is 220x150"):
        run(actions, edit(pictures, image=str(pictures / "field.png")))
    assert not list(actions.results.iterdir())  # nothing is left of what failed
    run(actions, composite(pictures, "inverted.png"))
    assert [line[:15] for line in said] == ["the mask covers"]


def test_an_edit_of_most_of_a_picture_is_no_inverted_mask(
    actions: Actions, pictures: Path, tmp_path: Path, said: list[str]
) -> None:
    edited = np.array(Image.open(pictures / "cat.png"))
    edited[:130] //= 2
    Image.fromarray(edited).save(tmp_path / "edited.png")
    now = run(actions, edit(pictures, image=str(tmp_path / "edited.png")))
    assert (now.weight > 0.5).mean() > 0.6
    assert not said


def test_a_result_without_change_is_said_once(actions: Actions, pictures: Path, said: list[str]) -> None:
    now = run(actions, composite(pictures, "inverted.png"))
    said.clear()
    now, _ = actions.finish(now, 0, NOTHING)
    assert [line[:20] for line in said] == ["no pixel was changed"]
    actions.layer(now)
    actions.finish(now, 0, NOTHING)
    assert len(said) == 1


def test_a_layer_that_cannot_be_written_is_said(actions: Actions, pictures: Path, said: list[str]) -> None:
    now = run(actions, composite(pictures))
    said.clear()
    path = now.result.with_name(f"{now.job.image.stem}_layer.png")
    path.mkdir()
    assert actions.layer(now) is None
    assert [line.split(" (")[0] for line in said] == [f"there is no layer: {path}: cannot be written"]


def test_a_layer_of_sixteen_bit_grey(actions: Actions, pictures: Path, tmp_path: Path) -> None:
    deep = np.asarray(Image.open(pictures / "cat.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    now = run(actions, Request("composite", str(tmp_path / "deep.png"), uploaded=str(pictures / "mask.png")))
    layer = actions.layer(now)
    assert layer is not None
    assert read_deep(layer, 10**6).pixels.shape == (*deep.shape, 4)


def test_all_is_done_in_one_thread_that_knows_the_visitor() -> None:
    visitor: contextvars.ContextVar[str] = contextvars.ContextVar("visitor")
    action = in_thread(ThreadPoolExecutor(1), lambda _: (threading.get_ident(), visitor.get()))

    def visit(name: str) -> tuple[int, str]:
        visitor.set(name)
        return action(None)

    with ThreadPoolExecutor(2) as visitors:
        answers = list(visitors.map(visit, "ab"))
    assert [name for _, name in answers] == ["a", "b"]
    assert len({thread for thread, _ in answers}) == 1


def test_messages_are_in_the_words_of_the_page(tmp_path: Path) -> None:
    text = f"{tmp_path}/served/0a1/my cat.png: the mask is 4x4; give another,\n or --fit-mask to resize it"
    assert in_the_page(text, tmp_path) == "my cat.png: the mask is 4x4; give another"
    assert in_the_page("invert the mask (--invert-mask); white", tmp_path).startswith('invert the mask (tick "Invert')


def test_attention_is_of_the_clicked_point(actions: Actions, pictures: Path) -> None:
    now, (before, after), middle = actions.run(composite(pictures), 1, NOTHING, "norm.0", None)
    assert before.shape == after.shape == (HEIGHT, WIDTH, 3)
    assert middle is not None
    assert now.point == (74, 109)
    other, moved = actions.look(now, "norm.0", (70, 50))
    assert moved is not None
    assert moved.point == (50, 70)
    assert other is not None
    assert (other != middle).any()
    with pytest.raises(sf.ScscoError, match="that point is background"):
        actions.look(now, "norm.0", (5, 5))
    again, *_ = actions.run(composite(pictures), 1, NOTHING, "norm.0", now)
    assert not now.result.exists()
    assert again.result.exists()


def test_heat_is_where_the_weights_are() -> None:
    rgb, inside, rows = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), bool), np.zeros((4, 6), np.float32)
    inside[10:30, 20:40] = True
    rows[0, 5] = 0.9
    picture = attention_picture(rgb, inside, rows, (20, 30)).astype(int)
    redness = picture[..., 0] - picture[..., 2]
    assert np.unravel_index(redness.argmax(), redness.shape) >= (0, 50)
    assert (redness[20:, :20] == 0).all()
    assert (picture[12, 22] == 128).all()


def test_every_sample_can_be_harmonized(actions: Actions, tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "samples"
    for image, mask in sample_composites(folder):
        run(actions, Request("composite", image, uploaded=mask))
    for image, under in sample_cutouts(folder):
        run(actions, Request("cutout", image, under, source=OWN["cutout"], place={"x": 9, "y": 9, "scale": 0.5}))
    for before, after in sample_edits(folder):
        now = run(actions, Request("edit", after, before, source=OWN["edit"]))
        assert (now.weight > 0.5).mean() == pytest.approx(60 * 225 / (640 * 427), rel=0.2)
    assert not [line for line in said if "no pixel" in line]


def test_a_painting_is_what_the_browser_answers() -> None:
    value = painting_value(np.zeros((30, 40, 3), np.uint8), np.eye(10, dtype=np.float32))
    assert value["picture"].startswith("data:image/jpeg;base64,")
    assert np.array_equal(read_painted(value), read_painted({"painted": value["mask"]}))
