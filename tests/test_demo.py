"""The page of `scsco demo`: what it computes, what it refuses, what it does not show, and all of it in a browser."""

import io
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import browser
import numpy as np
import pytest
import torch
from PIL import Image

import scsco_fast as sf
from scsco_fast import demo
from scsco_fast.cli import main
from scsco_fast.data.masks import read_mask
from scsco_fast.harmonizing.files import read_image

pytest.importorskip("gradio", reason="needs gradio (the extra demo)")

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 220, 150
LIMIT = "0.1"  # megapixels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose network changes the foreground plainly."""
    torch.manual_seed(0)
    network = sf.HarmonizationUNet(base_channels=4, levels=5, head="residual").eval()
    with torch.no_grad():
        for parameter in network.up[0].parameters():
            parameter.mul_(20)
    network.working_size = 64
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    sf.save_model(network, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a composite and its mask, and of pictures that do not serve."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / "cat.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:110, 60:160] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:-10]).save(folder / "cut.png")
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "empty.png")
    Image.new("RGB", (400, 300)).save(folder / "large.png")
    return folder


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with browser.served(model, "--max-megapixels", LIMIT) as address:
        yield address


def get(
    url: str, data: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}


def test_no_file_of_the_server_can_be_read(address: str, model: Path) -> None:
    secrets = [Path("/etc/passwd"), ROOT / "pyproject.toml", Path(demo.__file__), model]
    for secret in secrets:
        inside = secret.read_bytes()[:40]
        for path in (str(secret), quote(str(secret), safe=""), f"..{secret}", f"{ROOT}/tests/../..{secret}"):
            for door in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/"):
                status, content, _ = get(address + door + path)
                assert status in (400, 403, 404, 405), (door + path, status)
                assert inside not in content


def test_no_upload_can_name_a_file_of_the_server(address: str) -> None:
    """What a visitor's script could send in the place of an upload of its own."""
    import json

    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    kind = {"content-type": "application/json"}
    for function in range(6):
        for data in ([file], [file, demo.UPLOAD, file, None, None, None]):
            body = json.dumps({"data": data, "fn_index": function, "session_hash": "abc"}).encode()
            status, content, _ = get(f"{address}/gradio_api/run/predict", body, kind)
            assert status >= 400, (function, content)
            assert b"root:" not in content
            get(f"{address}/gradio_api/queue/join", body, kind)
    status, content, _ = get(f"{address}/gradio_api/upload", b"x", {"content-type": "text/plain"})
    assert status >= 400


def test_other_pages_and_large_uploads_are_refused(address: str) -> None:
    status, _, headers = get(address)
    assert status == 200
    assert headers["content-security-policy"] == demo.POLICY
    assert headers["x-content-type-options"] == "nosniff"
    *_, headers = get(address, headers={"origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in headers
    status, _, _ = get(address, headers={"host": "elsewhere.example"})
    assert status == 400
    form = {"content-type": "multipart/form-data; boundary=x"}
    start = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    status, _, _ = get(f"{address}/gradio_api/upload", start + bytes(1000) + b"\r\n--x--\r\n", form)
    assert status == 200
    status, content, _ = get(f"{address}/gradio_api/upload", start + bytes(65 << 20) + b"\r\n--x--\r\n", form)
    assert status == 413, content


def test_only_this_machine_reaches_it(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    with socket.socket() as elsewhere:  # were the server bound to all addresses, this one would be taken
        elsewhere.bind(("127.0.0.2", port))


def test_another_address_is_warned_of(monkeypatch: pytest.MonkeyPatch, small_model: sf.HarmonizationUNet) -> None:
    class Page:
        def launch(self, **options: object) -> None:
            assert options["share"] is False
            raise OSError("no such address")

    monkeypatch.setattr(demo, "build", lambda *_: Page())
    with (
        pytest.warns(UserWarning, match=r"0\.0\.0\.0 is not loopback"),
        pytest.raises(sf.ScscoError, match="cannot be"),
    ):
        demo.serve(small_model, "0.0.0.0", 1)


def test_mistakes_are_one_line(
    address: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = address.rsplit(":", 1)[1]
    for arguments, message in (
        (["--model", "/nowhere"], "/nowhere: no such file"),
        (["--model", str(model), "--max-megapixels", "0"], "--max-megapixels is 0; wanted more than 0"),
        (["--model", str(model), "--port", port], f"127.0.0.1:{port} cannot be bound"),
    ):
        assert main(["demo", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["demo", "--model", str(model)]) == 2
    assert capsys.readouterr().err == 'scsco: error: scsco demo needs gradio: pip install "scsco-fast[demo]"\n'


def test_attention_is_of_the_clicked_point(model: Path, pictures: Path, tmp_path: Path) -> None:
    actions = demo._Actions(sf.load_model(model), tmp_path, 1.0)
    cat, mask = str(pictures / "cat.png"), str(pictures / "mask.png")
    now, (before, after), middle = actions.run(cat, mask, "norm.0", None)
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
    again, *_ = actions.run(cat, mask, "norm.0", now)
    assert not now.result.exists()
    assert again.result.exists()


def test_heat_is_where_the_weights_are() -> None:
    rgb, inside, rows = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), bool), np.zeros((4, 6), np.float32)
    inside[10:30, 20:40] = True
    rows[0, 5] = 0.9
    picture = demo.attention_picture(rgb, inside, rows, (20, 30)).astype(int)
    redness = picture[..., 0] - picture[..., 2]
    assert np.unravel_index(redness.argmax(), redness.shape) >= (0, 50)
    assert (redness[20:, :20] == 0).all()
    assert (picture[12, 22] == 128).all()


# In a browser.


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if (reason := browser.missing()) is not None:
        pytest.skip(reason)
    page = browser.Page(address, tmp_path_factory.mktemp("downloads"))
    yield page
    page.close()


def test_a_visit(page: browser.Page, address: str, model: Path, pictures: Path) -> None:
    """Upload, harmonize, look at a point, download: the file is what `sf.harmonize` gives, bit for bit."""
    page.upload("composite", pictures / "cat.png")
    page.upload("mask", pictures / "mask.png")
    page.harmonize()
    assert len(page.all("#slider img")) == 2
    file = page.download()
    assert file.name == "cat_harmonized.png"
    cat, mask = read_image(pictures / "cat.png"), read_mask(pictures / "mask.png")
    wanted = sf.harmonize(cat, mask, sf.load_model(model))
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(wanted))
    assert (np.asarray(wanted) != np.asarray(cat)).any()

    first = page.source("#attention img")
    page.click_at("#attention img", 0.35, 0.35)
    page.until("another map", lambda: page.source("#attention img") != first)
    _, content, _ = get(str(page.source("#attention img")))
    assert Image.open(io.BytesIO(content)).size == (WIDTH, HEIGHT)
    page.click_at("#attention img", 0.05, 0.05)
    assert "that point is background" in page.message("background")

    assert all(url.startswith((address, "data:", "blob:")) for url in page.requests())


def test_a_painted_mask(page: browser.Page, pictures: Path) -> None:
    page.upload("composite", pictures / "cat.png")
    page.choose("source", demo.PAINT)
    page.find("#painted canvas")
    page.idle()
    page.stroke("#painted canvas", (0.4, 0.5), (0.6, 0.5))
    page.idle()
    page.harmonize()
    changed = (np.asarray(Image.open(page.download())) != np.asarray(Image.open(pictures / "cat.png"))).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 0.02 < changed.mean() < 0.5
    assert abs(rows.mean() / HEIGHT - 0.5) < 0.1
    assert abs(columns.mean() / WIDTH - 0.5) < 0.1
    page.choose("source", demo.UPLOAD)


def test_what_cannot_be_used_is_said_in_the_page(page: browser.Page, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    page.upload("composite", pictures / "cat.png")
    page.choose("source", demo.UPLOAD)
    page.upload("mask", pictures / "cut.png")
    page.click("#start")
    text = page.message("the mask is")
    assert f"cut.png: the mask is {WIDTH}x{HEIGHT - 10} (width x height) but its picture is {WIDTH}x{HEIGHT}" in text
    assert os.sep not in text.replace("before / after", "")
    page.upload("mask", pictures / "empty.png")
    page.click("#start")
    assert "the mask is empty" in page.message("empty")
    page.upload("composite", pictures / "large.png")
    assert f"large.png: 400x300 are 0.1 megapixels, the limit is {LIMIT}" in page.message("megapixels")


def test_a_sample_picture(page: browser.Page) -> None:
    page.click("#samples tbody tr")
    page.until("the sample", lambda: "sample_" in str(page.source("#composite img")) + str(page.source("#mask img")))
