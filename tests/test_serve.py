"""The server behind `scsco serve`: requests, answers, sockets and signals; and the command itself, on real pictures."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import serving
from PIL import Image
from serving import ask, get, post

import scsco_fast
from scsco_fast import cli
from scsco_fast import serve as serve_module
from scsco_fast.cli import serve as serve_command
from scsco_fast.cli import shared
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing import pictures as pictures_module
from scsco_fast.harmonizing.recolour import predict
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import save_model
from scsco_fast.serve import Run, Server, default_socket, listen, work

FACTS = {"version": "1.2.3", "model": "compact"}


@contextlib.contextmanager
def serving_with(path: Path, run: Run) -> Iterator[Server]:
    """A server in this process; `work` is in a thread, as tests have the main one."""
    server = listen(path, FACTS)
    Thread(target=work, args=(server, run), daemon=True).start()
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "serve.sock"


def echo(arguments: list[str]) -> tuple[int, str, str]:
    return 0, " ".join(arguments), ""


def refusal(path: Path) -> str:
    """The one line with which no server starts."""
    with pytest.raises(ScscoError) as caught:
        listen(path, FACTS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Requests and answers.


@pytest.mark.parametrize(("code", "status"), [(0, 200), (1, 422), (2, 422)])
def test_a_request_is_answered_with_what_the_run_gives(path: Path, code: int, status: int) -> None:
    with serving_with(path, lambda arguments: (code, f"out {arguments}", "err\n")):
        assert ask(path, "--a", "b c") == (
            status,
            {"code": code, "output": "out ['--a', 'b c']", "errors": "err\n"},
        )
        assert get(path) == (200, FACTS)


def test_names_of_files_that_are_no_text_come_through(path: Path) -> None:
    name = os.fsdecode(b"/a\xff.png")
    with serving_with(path, echo):
        assert ask(path, name)[1]["output"] == name


BAD = [
    (b"", 400, "no JSON"),
    (b"{", 400, "no JSON"),
    (b"[" * 100_000, 400, "no JSON"),
    (b"\xff\xfe", 400, "no JSON"),
    (b"[]", 400, 'no list of texts "arguments"'),
    (b"{}", 400, 'no list of texts "arguments"'),
    (b'{"arguments": "--image"}', 400, 'no list of texts "arguments"'),
    (b'{"arguments": ["--image", 1]}', 400, 'no list of texts "arguments"'),
    (b'{"arguments": ["a\\u0000b"]}', 400, 'no list of texts "arguments"'),
]


@pytest.mark.parametrize(("body", "status", "reason"), BAD)
def test_what_is_no_request_is_said_and_the_server_goes_on(path: Path, body: bytes, status: int, reason: str) -> None:
    with serving_with(path, echo):
        found, content = post(path, body)
        assert (found, content["code"], content["output"]) == (status, 2, "")
        assert reason in content["errors"]
        assert content["errors"].startswith("scsco: error: ")
        assert content["errors"].count("\n") == 1
        assert ask(path, "on")[1]["output"] == "on"


def test_other_paths_methods_and_sizes_are_refused(path: Path) -> None:
    with serving_with(path, echo):
        assert post(path, b"{}", "/")[0] == post(path, b"{}", "/else")[0] == get(path, "/harmonize")[0] == 404
        assert post(path, b"{}", method="PUT")[0] == 501
        for header, status in (
            (b"Content-Length: 9999999", 413),
            (b"Content-Length: -1", 411),
            (b"Content-Length: x", 411),
            (b"X: y", 411),
        ):
            assert raw(path, b"POST /harmonize HTTP/1.1\r\n" + header + b"\r\n\r\n").startswith(b"HTTP/1.1 %d" % status)
        assert b"scsco: error" in raw(path, b"no http at all\r\n\r\n")
        assert get(path) == (200, FACTS)


def raw(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(serving.PATIENCE)
        client.connect(str(path))
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_requests_are_worked_on_one_at_a_time(path: Path) -> None:
    started, go_on, order, answers = Event(), Event(), [], {}

    def run(arguments: list[str]) -> tuple[int, str, str]:
        order.append(("begin", *arguments))
        started.set()
        assert go_on.wait(serving.PATIENCE)
        order.append(("end", *arguments))
        return 0, arguments[0], ""

    def client(name: str) -> None:
        answers[name] = ask(path, name)[1]["output"]

    with serving_with(path, run) as server:
        first, second = (Thread(target=client, args=(name,)) for name in "ab")
        first.start()
        assert started.wait(serving.PATIENCE)
        second.start()
        until(lambda: not server.requests.empty())
        assert get(path) == (200, FACTS)  # while one is worked on
        assert order == [("begin", "a")]
        go_on.set()
        first.join(serving.PATIENCE)
        second.join(serving.PATIENCE)
    assert order == [("begin", "a"), ("end", "a"), ("begin", "b"), ("end", "b")]
    assert answers == {"a": "a", "b": "b"}


def until(condition: Any) -> None:
    """Wait for what another thread or process does."""
    deadline = time.monotonic() + serving.PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_goes_away_ends_nothing(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started, go_on, done = Event(), Event(), Event()

    def run(arguments: list[str]) -> tuple[int, str, str]:
        if arguments == ["leave"]:
            started.set()
            assert go_on.wait(serving.PATIENCE)
            done.set()
        return echo(arguments * 100_000)  # more than a socket takes that nobody reads

    with serving_with(path, run):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            body = b'{"arguments": ["leave"]}'
            client.sendall(b"POST /harmonize HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            assert started.wait(serving.PATIENCE)
        go_on.set()
        assert done.wait(serving.PATIENCE)
        with socket.socket(socket.AF_UNIX) as client:  # another leaves in the middle of its request
            client.connect(str(path))
            client.sendall(b"POST /harmonize HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert ask(path, "on")[0] == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyError("x"), "the server failed at this"), (MemoryError(), "not enough memory")]
)
def test_a_failure_is_answered_and_the_server_goes_on(
    path: Path, error: Exception, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: list[str]) -> tuple[int, str, str]:
        if arguments == ["fail"]:
            raise error
        return echo(arguments)

    with serving_with(path, run):
        status, content = ask(path, "fail")
        assert (status, content["code"]) == (500, 1)
        assert reason in content["errors"]
        assert ask(path, "on")[0] == 200
    assert ("KeyError: 'x'" in capfd.readouterr().err) == isinstance(error, KeyError)


def test_it_ends_when_nothing_was_asked(path: Path) -> None:
    server = listen(path, FACTS)
    work(server, echo, idle_seconds=0.01)  # returns
    server.end()
    assert not path.exists()


# The socket.


def test_only_the_user_can_open_the_socket(path: Path) -> None:
    before = os.umask(0)
    try:
        with serving_with(path, echo):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        assert os.umask(before) == 0
    assert not path.exists()


def test_a_socket_without_a_server_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with serving_with(path, echo):
        assert get(path) == (200, FACTS)


def test_a_living_server_stays(path: Path) -> None:
    with serving_with(path, echo):
        assert "another server answers there" in refusal(path)
        assert get(path) == (200, FACTS)


def test_a_file_of_the_user_stays(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine")
    assert "no socket" in refusal(path)
    assert path.read_text() == "mine"
    assert "no socket can be made there" in refusal(path / "below")


def test_a_path_that_is_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    assert "no socket can be made there (AF_UNIX path too long)" in refusal(tmp_path / ("x" * 120))


def test_a_system_without_such_sockets_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    assert "no Unix domain sockets" in refusal(path)
    assert not path.parent.exists()


def test_another_servers_socket_is_not_removed(path: Path) -> None:
    server = listen(path, FACTS)
    path.unlink()
    with serving_with(path, echo):
        server.end()
        assert get(path) == (200, FACTS)


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SCSCO_SOCKET", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_socket() == tmp_path / ".cache" / "scsco-fast" / "serve" / "serve.sock"
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_socket() == Path("/c/scsco-fast/serve/serve.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    assert default_socket() == Path("/c/scsco-fast/serve/serve.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_socket() == tmp_path / "scsco" / "serve.sock"
    monkeypatch.setenv("SCSCO_SOCKET", "/s.sock")
    assert default_socket() == Path("/s.sock")


# Signals. The run writes a file, and is interrupted before it is whole.

SLOW = """
import sys, time
from pathlib import Path
from scsco_fast.system.files import replacing
from scsco_fast.serve import serve

def run(arguments):
    try:
        with replacing(arguments[0]) as temporary:
            temporary.write_text("half")
            Path(arguments[1]).touch()
            time.sleep(600)
    except (KeyboardInterrupt, SystemExit):  # what the command line takes for its own
        pass
    return 0, "", ""

try:
    serve(Path(sys.argv[1]), run, {})
except KeyboardInterrupt:
    sys.exit(130)
"""


def ask_in_vain(path: Path, *arguments: Path) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(path, *map(str, arguments))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("busy", [False, True])
def test_a_signal_ends_it_in_order(path: Path, tmp_path: Path, number: int, code: int, busy: bool) -> None:
    with serving.started([sys.executable, "-c", SLOW, str(path)]) as server:
        if busy:
            Thread(target=ask_in_vain, args=(path, tmp_path / "half.txt", tmp_path / "begun"), daemon=True).start()
            until((tmp_path / "begun").exists)
        server.send_signal(number)
        assert server.wait(serving.PATIENCE) == code
    assert not path.exists()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["begun", "folder"] if busy else ["folder"]


# The command.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a photograph with a region that is too bright, its mask, and a mask of another size."""
    from skimage.data import chelsea

    folder = tmp_path_factory.mktemp("pictures")
    picture = chelsea()  # (300, 451, 3) uint8
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[80:220, 120:300] = 255
    picture[mask > 0] = np.minimum(picture[mask > 0] * 1.6, 255)
    Image.fromarray(picture).save(folder / "cat.png")
    Image.fromarray(mask).save(folder / "cat_mask.png")
    Image.fromarray(mask[::2, ::2]).save(folder / "half.png")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a running `scsco serve`."""
    path = tmp_path_factory.mktemp("served") / "serve.sock"
    with serving.started(serving.scsco_serve(path)):
        yield path


def taken(file: Path) -> np.ndarray | None:
    """The picture in a file, which is removed; None where there is none."""
    pixels = np.asarray(Image.open(file)).astype(int) if file.exists() else None
    file.unlink(missing_ok=True)
    return pixels


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--image {cat} --mask {mask} --output {output}", 0),
        ("--image {cat} --mask {half} --fit-mask --model compact-free --output {output}", 0),  # with a warning
        ("--image {cat} --mask {half} --output {output}", 2),
        ("--image {cat} --mask {mask} --outptu {output}", 2),
        ("--image {cat} --mask {mask} --output {output} --model {cat}", 2),
        ("--images {folder} --output {folder}/done --workers 0", 1),  # only one of the pictures has a mask
        ("--help", 0),
    ],
)
def test_it_does_and_says_what_the_command_line_does(
    served: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, code: int
) -> None:
    cat, mask, half = (str(pictures / f"{name}.png") for name in ("cat", "cat_mask", "half"))
    output = tmp_path / "done.png"
    given = arguments.format(cat=cat, mask=mask, half=half, output=output, folder=pictures).split()
    assert cli.main(["harmonize", *given]) == code
    written, wanted = capsys.readouterr(), taken(output)
    shutil.rmtree(pictures / "done", ignore_errors=True)
    status, answer = ask(served, *given)
    assert answer == {"code": code, "output": written.out, "errors": written.err}
    assert status == (200 if code == 0 else 422)
    found = taken(output)
    assert (found is not None) == (wanted is not None) == (code == 0 and "--output" in given)
    if found is not None and wanted is not None:  # other tests may have left this process with other threads
        assert np.abs(found - wanted).max() <= 1
    shutil.rmtree(pictures / "done", ignore_errors=True)


def test_it_says_what_it_is(served: Path) -> None:
    assert get(served) == (200, {"version": scsco_fast.__version__, "model": "compact"})


@pytest.mark.parametrize("name", ["image", "mask", "output", "model"])
def test_a_path_that_is_not_full_is_refused(served: Path, pictures: Path, tmp_path: Path, name: str) -> None:
    given = {"image": pictures / "cat.png", "mask": pictures / "cat_mask.png", "output": tmp_path / "done.png"}
    given[name] = Path("here.png")
    status, answer = ask(served, *(text for key, path in given.items() for text in (f"--{key}", str(path))))
    reason = "here.png: not a full path, and the server's folder is another than yours; start it with /"
    assert (status, answer) == (422, {"code": 2, "output": "", "errors": f"scsco: error: {reason}\n"})


def test_the_servers_model_is_for_requests_that_name_none(pictures: Path, small_model: HarmonizationUNet) -> None:
    save_model(small_model, pictures / "mine.safetensors")
    full = pictures / "mine.safetensors"
    assert serve_command._completed(["--output", "/b.png"], full) == ["--output", "/b.png", "--model", str(full)]
    assert serve_command._completed(["--output", "/b.png"], None) == ["--output", "/b.png"]
    named = ["--output", "/b.png", "--model", "compact"]
    assert serve_command._completed(named, full) == named


def test_a_model_file_is_read_once_until_it_changes(
    small_model: HarmonizationUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    save_model(small_model, file)
    first = shared.read_model(file, "cpu")
    assert shared.read_model(file, "cpu") is first
    assert shared.read_model(None, "cpu") is shared.read_model(None, "cpu") is not first
    os.utime(file, ns=(0, 0))
    second = shared.read_model(file, "cpu")
    assert second is not first
    monkeypatch.chdir(tmp_path)
    file.rename(tmp_path / "compact")  # a file of that name comes before the package's own
    assert shared.read_model("compact", "cpu").config == small_model.config
    assert shared.read_model(None, "cpu").config != small_model.config


def test_a_model_is_used_before_anybody_asks(
    path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """What a first picture waits for is then over."""
    used: list[HarmonizationUNet] = []
    monkeypatch.setattr(pictures_module, "predict", lambda *given: used.append(given[3]) or predict(*given))
    monkeypatch.setattr(serve_module, "serve", lambda *_: None)
    assert cli.main(["serve", "--socket", str(path)]) == 0
    assert used == [shared.read_model(None, "auto")]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "/nowhere"], "/nowhere: no such file"),
        (["--idle-minutes", "-1"], "--idle-minutes is -1; wanted 0 (for ever) to 525600"),
        (["--idle-minutes", "nan"], "--idle-minutes is nan"),
        (["--port", "1"], "--port"),
    ],
)
def test_mistakes_are_one_line(path: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--socket", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not path.exists()


def test_a_second_server_is_refused_and_a_killed_one_replaced(tmp_path: Path) -> None:
    """In the place that the environment names."""
    path, place = tmp_path / "scsco" / "serve.sock", {"SCSCO_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "scsco_fast", "serve", "--model", "compact-free"]
    with serving.started(command, **place) as first:
        second = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **place}, check=False)
        assert (second.returncode, second.stdout) == (2, "")
        assert "another server answers there" in second.stderr
        first.kill()
        first.wait(serving.PATIENCE)
        assert path.exists()
        with serving.started(command, **place) as third:
            assert get(path)[1]["model"] == "compact-free"
            third.send_signal(signal.SIGINT)
            assert third.wait(serving.PATIENCE) == 130
            assert third.stderr is not None
            assert third.stderr.read() == "scsco: interrupted\n"
    assert not path.exists()
