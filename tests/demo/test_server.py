"""The server of `scsco demo`: what it gives away, and to whom."""

import asyncio
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
from scsco_fast.demo.address import check_address
from scsco_fast.demo.guard import Guard, refusal

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
    status, _, headers = get(address, headers={"origin": "http://elsewhere.example"})
    assert (status, "access-control-allow-origin" in headers) == (403, False)
    status, _, _ = get(address, headers={"host": "elsewhere.example"})
    assert status == 400
    form = {"content-type": "multipart/form-data; boundary=x"}
    start = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    status, _, _ = get(f"{address}/gradio_api/upload", start + bytes(1000) + b"\r\n--x--\r\n", form)
    assert status == 200
    status, content, _ = get(f"{address}/gradio_api/upload", start + bytes(65 << 20) + b"\r\n--x--\r\n", form)
    assert status == 413, content


START = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}
FOREIGN = [
    {"origin": "http://elsewhere.example"},
    {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_site_can_change_nothing(address: str, headers: dict[str, str], served_folder: Path) -> None:
    """Whatever gradio offers, another site's request gets no further than its headers."""
    before = sorted(served_folder.rglob("*"))
    status, _, _ = get(f"{address}/gradio_api/upload", START + bytes(1000) + b"\r\n--x--\r\n", {**FORM, **headers})
    assert status == 403
    assert sorted(served_folder.rglob("*")) == before
    for path in ("queue/join", "run/predict", "call/any", "component_server", "reset", "cancel", "login"):
        data = b'{"data": [], "fn_index": 0, "session_hash": "x"}'
        assert get(f"{address}/gradio_api/{path}", data, {"content-type": "text/plain", **headers})[0] == 403
    for path in ("queue/data?session_hash=x", "heartbeat/x", "startup-events", "upload_progress?upload_id=x", "info"):
        assert get(f"{address}/gradio_api/{path}", headers=headers)[0] == 403


def test_the_page_itself_and_programs_are_answered(address: str) -> None:
    host = address.removeprefix("http://")
    port = host.rpartition(":")[2]
    for headers in (
        {},
        {"origin": address, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"origin": f"http://localhost:{port}", "host": f"localhost:{port}"},
        {"origin": "https://page.example", "x-forwarded-host": "page.example"},  # behind a proxy
    ):
        status, _, _ = get(f"{address}/gradio_api/upload", START + b"x\r\n--x--\r\n", {**FORM, **headers})
        assert status == 200, headers
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert get(address, headers=linked)[0] == 200
    assert get(address, b"", linked)[0] == 403  # a form that another site sends here


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "192.0.2.1:7860", "origin": "http://192.0.2.1:7860"}, None),
        ({"host": "Machine.local:80", "origin": "http://machine.local"}, None),
        ({"host": "[2001:db8::1]:7860", "origin": "http://[2001:db8::1]:7860"}, None),
        ({"host": "machine.local"}, None),
        ({"host": "machine.local", "origin": "https://machine.local"}, None),
        ({"host": "machine.local", "origin": "http://machine.local:8080"}, 403),
        ({"host": "machine.local", "origin": "http://machine.local.elsewhere.example"}, 403),
        ({"host": "machine.local", "origin": "http://["}, 403),
        ({"host": "", "origin": "null"}, 403),
        ({"host": "", "origin": ""}, 403),
    ],
    ids=str,
)
def test_on_all_addresses_any_name_of_the_machine_serves(headers: dict[str, str], status: int | None) -> None:
    found = refusal(headers, "POST", None)
    assert (found and found[0]) == status


def test_loopback_answers_to_its_own_names_only() -> None:
    names = {"127.0.0.1", "localhost", "::1"}
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1"):
        assert refusal({"host": host}, "GET", names) is None
    for host in ("elsewhere.example", "127.0.0.1.elsewhere.example:7860", "", "[::2]:1", "["):
        assert refusal({"host": host}, "GET", names) == (400, "this page answers to no such host name")


def test_a_websocket_of_another_site_is_closed() -> None:
    sent = []

    async def unreachable(*_: object) -> None:
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])

    scope = {"type": "websocket", "headers": [(b"host", b"localhost"), (b"origin", b"http://elsewhere.example")]}
    asyncio.run(Guard(unreachable)(scope, None, send))
    assert sent == ["websocket.close"]


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 99999, "--port is 99999; wanted 1 to 65535"),
        ("127.0.0.1", 0, "--port is 0; wanted"),
        ("127.0.0.1", -1, "--port is -1; wanted"),
        ("192.0.2.1", 7860, r"192\.0\.2\.1:7860 cannot be bound"),
        ("nowhere.invalid", 7860, r"nowhere\.invalid:7860 cannot be bound"),
        ("x" * 300, 7860, "--host is 'x{80}', which is no name of a machine"),
        ("\udcff", 7860, "which is no name of a machine"),
    ],
)
def test_addresses_that_cannot_be_used(host: str, port: int, message: str) -> None:
    with pytest.raises(sf.ScscoError, match=message) as caught:
        check_address(host, port)
    assert "\n" not in str(caught.value)


def test_a_port_is_free_again_after_the_check(address: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    for _ in range(2):
        check_address("127.0.0.1", port)
    with pytest.raises(sf.ScscoError, match="in use"):
        check_address("127.0.0.1", int(address.rpartition(":")[2]))


def test_only_this_machine_reaches_it(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port)).close()
    # Another address of this machine: a server that is bound to all addresses would answer there.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_another_address_is_warned_of(monkeypatch: pytest.MonkeyPatch, small_model: sf.HarmonizationUNet) -> None:
    class Page:
        def launch(self, **options: object) -> None:
            assert options["share"] is False
            raise OSError("no such address")

    monkeypatch.setattr("scsco_fast.demo.server.build", lambda *_: Page())
    monkeypatch.setattr("scsco_fast.demo.server.check_address", lambda *_: None)
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
