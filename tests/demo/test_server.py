"""The server of `scsco demo`: what it gives away, and to whom."""

import socket
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

import scsco_fast as sf
from scsco_fast import demo
from scsco_fast.cli import main
from scsco_fast.demo import requests

ROOT = Path(__file__).resolve().parents[2]


def get(
    url: str, data: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}


def test_no_file_of_the_server_can_be_read(address: str, model_file: Path) -> None:
    secrets = [Path("/etc/passwd"), ROOT / "pyproject.toml", Path(demo.__file__), model_file]
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
    for function in range(40):
        for data in ([file], [file, requests.UPLOAD, file, None, None, None], [{"painted": "/etc/passwd"}] * 11):
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

    monkeypatch.setattr("scsco_fast.demo.server.build", lambda *_: Page())
    with (
        pytest.warns(UserWarning, match=r"0\.0\.0\.0 is not loopback"),
        pytest.raises(sf.ScscoError, match="cannot be"),
    ):
        demo.serve(small_model, "0.0.0.0", 1)


def test_mistakes_are_one_line(
    address: str, model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = address.rsplit(":", 1)[1]
    for arguments, message in (
        (["--model", "/nowhere"], "/nowhere: no such file"),
        (["--model", str(model_file), "--max-megapixels", "0"], "--max-megapixels is 0; wanted more than 0"),
        (["--model", str(model_file), "--segment", "/nowhere.onnx"], "/nowhere.onnx: cannot be read"),
        (["--model", str(model_file), "--port", port], f"127.0.0.1:{port} cannot be bound"),
    ):
        assert main(["demo", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["demo", "--model", str(model_file)]) == 2
    assert capsys.readouterr().err == 'scsco: error: scsco demo needs gradio: pip install "scsco-fast[demo]"\n'
