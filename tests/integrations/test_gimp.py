"""The GIMP plug-in without GIMP: its core for real, and the rest with a strict fake of GIMP's API."""

import contextlib
import importlib.util
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

import fake_gimp
import gimp_cases
import numpy as np
import pytest
import serving
from gimp_expected import TREES, check_sent, write_pictures
from PIL import Image

import scsco_fast as sf
from scsco_fast import serve

ROOT = Path(__file__).resolve().parents[2]
PLUG_IN = ROOT / "integrations" / "gimp" / "scsco-harmonize"
GIMP = fake_gimp.RunMode


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    yield load(PLUG_IN / "scsco_core.py", "scsco_core")
    del sys.modules["scsco_core"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server and no program but a test's own; temporary files are the test's too."""
    monkeypatch.setenv("SCSCO_SOCKET", str(tmp_path / "serve.sock"))
    monkeypatch.delenv("SCSCO_PROGRAM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()


def program(path: Path, code: str) -> Path:
    """An executable file with a line of Python; `arguments` is what it is called with."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\narguments = sys.argv[1:]\n{code}\n")
    path.chmod(0o755)
    return path


# The core.


def test_the_arguments_are_those_of_scsco_harmonize(core: Any) -> None:
    paths = Path("/t/p.png"), Path("/t/m.pgm"), Path("/t/l.png")
    plain = ["--image", "/t/p.png", "--mask", "/t/m.pgm", "--output", "/t/l.png", "--layer"]
    assert core.harmonize_arguments(*paths, core.Settings()) == [*plain, "--strength", "1.0", "--grow-mask", "0"]
    settings = core.Settings(strength=0.25, grow=-3, keep="colour")
    wanted = [*plain, "--strength", "0.25", "--grow-mask", "-3", "--keep", "colour"]
    assert core.harmonize_arguments(*paths, settings) == wanted


@pytest.mark.parametrize("given", ["", "/s.sock"])
@pytest.mark.parametrize("runtime", ["", "none", "."])
@pytest.mark.parametrize("cache", ["", "/c"])
def test_it_looks_for_the_server_where_the_server_is(
    core: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, runtime: str, cache: str
) -> None:
    monkeypatch.setenv("SCSCO_SOCKET", given)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / runtime) if runtime else "")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert core.socket_path() == serve.default_socket()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[serve.Run], None]]:
    """Starts a server of this process on the test's socket, which does what a function says."""
    servers = []

    def start(run: serve.Run) -> None:
        server = serve.listen(tmp_path / "serve.sock", {})
        servers.append(server)
        Thread(target=serve.work, args=(server, run), daemon=True).start()

    yield start
    for server in servers:
        server.end()


def test_the_server_is_asked(core: Any, answering: Callable[[serve.Run], None], tmp_path: Path) -> None:
    answering(lambda arguments: (2, "out", f"scsco: error: {arguments}\n"))
    answer = core.ask_server(tmp_path / "serve.sock", ["--a", "ä b"])
    assert answer == core.Answer(2, "scsco: error: ['--a', 'ä b']\n")


def listening(path: Path, behave: Callable[[socket.socket], None]) -> None:
    """A server that treats its one client as a function says."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def work() -> None:
        with server, server.accept()[0] as client:
            behave(client)

    Thread(target=work, daemon=True).start()


def test_without_a_living_server_there_is_no_answer(core: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serve.sock"
    assert core.ask_server(path, []) is None
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert core.ask_server(path, []) is None
    path.unlink()
    listening(path, lambda client: client.close())  # as one that is ended while it works
    assert core.ask_server(path, []) is None
    assert core.ask_server(tmp_path / ("x" * 200), []) is None
    monkeypatch.delattr(socket, "AF_UNIX")
    assert core.ask_server(path, []) is None


def test_a_server_that_is_no_scsco_or_hangs_is_said(core: Any, tmp_path: Path) -> None:
    foreign, silent, done = tmp_path / "a", tmp_path / "b", Event()

    def greet(client: socket.socket) -> None:
        received = b""
        while not received.endswith(b"}"):  # the whole request, or its sender would not read
            received += client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    listening(foreign, greet)
    with pytest.raises(core.HarmonizeError, match=r"a is no scsco serve; end it, or set SCSCO_SOCKET$"):
        core.ask_server(foreign, [])
    listening(silent, lambda client: done.wait() and None)
    with pytest.raises(core.HarmonizeError, match=r"^scsco serve did not answer within 0.05 seconds"):
        core.ask_server(silent, [], patience=0.05)
    done.set()


def test_which_program_is_taken(core: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(core.HarmonizeError, match=r"^the program scsco is not in PATH; install") as caught:
        core.find_program("")
    assert "\n" not in str(caught.value)
    in_path = program(tmp_path / "bin" / "scsco", "")
    assert core.find_program("") == str(in_path)
    named = program(tmp_path / "named", "")
    monkeypatch.setenv("SCSCO_PROGRAM", str(named))
    assert core.find_program("") == str(named)
    assert core.find_program(str(in_path)) == str(in_path)
    named.chmod(0o644)
    with pytest.raises(core.HarmonizeError, match=f"^the program scsco is not at {named};"):
        core.find_program("")


def test_the_program_runs_with_a_python_of_its_own(core: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/gimp")
    found = program(
        tmp_path / "scsco", "sys.stderr.write(json.dumps([arguments, os.environ.get('PYTHONPATH')])); sys.exit(3)"
    )
    answer = core.run_program(str(found), ["--a b"])
    assert (answer.code, json.loads(answer.errors)) == (3, [["harmonize", "--a b"], None])


def test_a_program_that_hangs_or_cannot_be_started_is_said(core: Any, tmp_path: Path) -> None:
    hanging = program(tmp_path / "scsco", "time.sleep(600)")
    with pytest.raises(core.HarmonizeError, match=r"scsco did not end within 0.05 seconds; make the picture smaller$"):
        core.run_program(str(hanging), [], patience=0.05)
    hanging.write_text("#!/no/such/interpreter\n")
    with pytest.raises(core.HarmonizeError, match=r"cannot be started \(No such file or directory\); name another"):
        core.run_program(str(hanging), [])


WRITES = "open(arguments[arguments.index('--output') + 1], 'w').write('program')"


def test_the_server_comes_before_the_program(core: Any, answering: Callable[[serve.Run], None], tmp_path: Path) -> None:
    def run(arguments: list[str]) -> tuple[int, str, str]:
        Path(arguments[arguments.index("--output") + 1]).write_text("server")
        return 0, "", ""

    program(tmp_path / "bin" / "scsco", WRITES)
    paths = tmp_path / "p.png", tmp_path / "m.pgm", tmp_path / "l.png"
    core.harmonize(*paths, core.Settings())
    assert paths[2].read_text() == "program"
    answering(run)
    core.harmonize(*paths, core.Settings())
    assert paths[2].read_text() == "server"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit(5)", "scsco ended with the exit code 5 and said nothing"),
        ("pass", "scsco ended with the exit code 0 and said nothing"),
        ("sys.exit('scsco: warning: odd\\nscsco: error: ' + arguments[2] + ': not so\\n')", "the picture: not so"),
        ("sys.exit('scsco: error: ' + arguments[4] + ' is not of ' + arguments[2])", "the mask is not of the picture"),
        ("raise KeyError(1)", "KeyError: 1"),
    ],
)
def test_why_there_is_no_result_is_one_line(core: Any, tmp_path: Path, code: str, reason: str) -> None:
    program(tmp_path / "bin" / "scsco", code)
    with pytest.raises(core.HarmonizeError) as caught:
        core.harmonize(tmp_path / "p.png", tmp_path / "m.pgm", tmp_path / "l.png", core.Settings())
    assert str(caught.value) == reason


def test_masks_are_written_as_they_are(core: Any, tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    core.write_mask(tmp_path / "m.pgm", 4, 3, values.tobytes())
    assert np.array_equal(Image.open(tmp_path / "m.pgm"), values)
    for value, reason in ((0, "there is no foreground"), (255, "covers the whole picture")):
        with pytest.raises(core.HarmonizeError, match=reason):
            core.write_mask(tmp_path / "none.pgm", 4, 3, bytes([value]) * 12)
    assert not (tmp_path / "none.pgm").exists()


def test_temporary_files_are_the_users_alone_and_go(core: Any, tmp_path: Path) -> None:
    with core.temporary_folder() as folder:
        assert folder.parent == tmp_path / "temporary"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "picture.png").touch()
    assert list((tmp_path / "temporary").iterdir()) == []


# The core, with scsco itself.


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a photograph with a region that is too bright, and its mask with a soft edge."""
    from skimage.data import chelsea

    folder = tmp_path_factory.mktemp("cat")
    picture = chelsea()  # (300, 451, 3) uint8
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[80:220, 120:300], mask[80, 120:300] = 255, 128
    picture[mask > 0] = np.minimum(picture[mask > 0] * 1.6, 255)
    Image.fromarray(picture).save(folder / "picture.png")
    Image.fromarray(mask).save(folder / "mask.pgm")
    return folder


def check_layer(cat: Path, layer: Path, **settings: Any) -> None:
    """Laid over the picture, the layer is what `sf.harmonize` makes of it."""
    picture, mask = Image.open(cat / "picture.png"), Image.open(cat / "mask.pgm")
    made = Image.open(layer)
    assert (made.mode, made.size) == ("RGBA", picture.size)
    assert np.array_equal(made.getchannel("A"), mask)
    laid = np.asarray(Image.alpha_composite(picture.convert("RGBA"), made).convert("RGB")).astype(int)
    wanted = np.asarray(sf.harmonize(picture, mask, **settings)).astype(int)
    assert np.abs(laid - wanted).max() <= 1  # Pillow rounds soft edges by itself
    assert (wanted != np.asarray(picture))[np.asarray(mask) > 0].mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("served", [False, True])
def test_a_photograph_through_scsco(core: Any, cat: Path, tmp_path: Path, served: bool) -> None:
    """By the program, and by the server: the program is then one that fails."""
    scsco = Path(sys.executable).with_name("scsco")
    failing = program(tmp_path / "failing", "sys.exit('not this one')")
    settings = core.Settings(strength=0.75, keep="luma", program=str(failing if served else scsco))
    paths = cat / "picture.png", cat / "mask.pgm", tmp_path / "layer.png"
    running = serving.started(serving.scsco_serve(tmp_path / "serve.sock")) if served else contextlib.nullcontext()
    with running:
        core.harmonize(*paths, settings)
        check_layer(cat, paths[2], strength=0.75, keep="luma")
        grown = core.Settings(grow=-3, program=settings.program)
        core.harmonize(*paths, grown)
        assert 0 < np.count_nonzero(Image.open(paths[2]).getchannel("A")) < np.count_nonzero(Image.open(paths[1]))
        Image.new("L", (9, 9), 255).save(tmp_path / "small.pgm")
        with pytest.raises(core.HarmonizeError) as caught:
            core.harmonize(paths[0], tmp_path / "small.pgm", paths[2], settings)
    assert str(caught.value).startswith("the mask: the mask is 9x9 (width x height) but its picture is 451x300;")


# The plug-in, with a fake of GIMP.


@pytest.fixture
def plug_in(core: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plug-in's module, started by GIMP; `Gimp` in it is the fake."""
    for name, module in fake_gimp.repository().items():
        monkeypatch.setitem(sys.modules, name, module)
    module = load(PLUG_IN / "scsco-harmonize.py", "scsco_harmonize")
    del sys.modules["scsco_harmonize"]
    return module


@pytest.fixture
def procedure(plug_in: Any) -> fake_gimp.ImageProcedure:
    """The procedure as GIMP gets it from the plug-in."""
    started = plug_in.Gimp.started()
    (name,) = started.do_query_procedures()
    created = started.do_create_procedure(name)
    assert created.name == name == "plug-in-scsco-harmonize"
    return created


def call(
    procedure: Any, image: Any, drawables: list[Any], mode: fake_gimp.RunMode = GIMP.NONINTERACTIVE, **values: Any
) -> tuple[str, str]:
    """Status and message of a run."""
    config = fake_gimp.ProcedureConfig({**procedure.defaults, **values})
    status, message = procedure.run(procedure, mode, image, drawables, config, None)
    return status.name, message


@pytest.fixture
def sent(answering: Callable[[serve.Run], None]) -> dict[str, Any]:
    """What the server was asked last: its arguments, the picture and the mask. It answers with a red layer."""
    last: dict[str, Any] = {}

    def run(arguments: list[str]) -> tuple[int, str, str]:
        given = {name: arguments[arguments.index(f"--{name}") + 1] for name in ("image", "mask", "output")}
        last.update(arguments=arguments, image=np.array(Image.open(given["image"])))
        last["mask"] = np.array(Image.open(given["mask"]))
        red = Image.new("RGB", last["mask"].shape[::-1], "red")
        red.putalpha(Image.fromarray(last["mask"]))
        red.save(given["output"])
        return 0, "", ""

    answering(run)
    return last


@pytest.fixture
def studio(plug_in: Any, tmp_path: Path) -> gimp_cases.Studio:
    write_pictures(tmp_path)
    return gimp_cases.Studio(plug_in.Gimp, plug_in.Gio, tmp_path)


@pytest.mark.parametrize("case", gimp_cases.DONE)
def test_the_picture_and_the_mask_are_what_is_seen(
    procedure: Any, studio: gimp_cases.Studio, sent: dict[str, Any], tmp_path: Path, case: Any
) -> None:
    before = fake_gimp.Image.images
    image, drawables = case(studio)
    visible = {layer.get_name(): layer.get_visible() for layer in image._all()}
    image.history.clear()
    assert call(procedure, image, drawables) == ("SUCCESS", "unknown error")
    check_sent(case.__name__, tmp_path, sent["image"], sent["mask"])
    assert gimp_cases.tree(image.get_layers()) == TREES[case.__name__]
    (made,) = (layer for layer in image._all() if layer.get_name().endswith("harmonized"))
    assert np.array_equal(made._pixels[..., 3], sent["mask"])
    assert image.history == ["start", f"insert {made.get_name()}", "end"]
    assert {layer.get_name(): layer.get_visible() for layer in image._all()} == {**visible, made.get_name(): True}
    assert fake_gimp.Image.images == before + 1
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("case", gimp_cases.REFUSED)
def test_what_cannot_be_harmonized_is_said_in_one_line(
    procedure: Any, studio: gimp_cases.Studio, sent: dict[str, Any], tmp_path: Path, case: Any
) -> None:
    image, drawables = case(studio)
    before = fake_gimp.Image.images, gimp_cases.tree(image.get_layers())
    assert call(procedure, image, drawables) == ("EXECUTION_ERROR", gimp_cases.REFUSED[case])
    assert (fake_gimp.Image.images, gimp_cases.tree(image.get_layers())) == before
    assert sent == {}
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_floating_selection_is_said(
    procedure: Any, studio: gimp_cases.Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, drawables = gimp_cases.plain(studio)
    monkeypatch.setattr(image, "get_floating_sel", lambda: drawables[0])
    status, message = call(procedure, image, drawables)
    assert (status, message.split(";")[0]) == ("EXECUTION_ERROR", "there is a floating selection")


def test_an_error_of_scsco_is_gimps_message(
    procedure: Any, studio: gimp_cases.Studio, answering: Callable[[serve.Run], None], tmp_path: Path
) -> None:
    answering(lambda arguments: (2, "", f"scsco: error: {arguments[1]}: is odd\n"))
    image, drawables = gimp_cases.plain(studio)
    assert call(procedure, image, drawables) == ("EXECUTION_ERROR", "the picture: is odd")
    assert image.history[-1] == "insert top"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_result_that_gimp_cannot_read_is_said(procedure: Any, studio: gimp_cases.Studio, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "scsco", WRITES)
    image, drawables = gimp_cases.plain(studio)
    status, message = call(procedure, image, drawables)
    assert (status, message.split(";")[0]) == ("EXECUTION_ERROR", "GIMP cannot read the PNG that scsco wrote")
    assert image.history[-1] == "insert top"


def test_the_settings_reach_scsco(procedure: Any, studio: gimp_cases.Studio, sent: dict[str, Any]) -> None:
    assert procedure.defaults == {"strength": 1.0, "grow": 0, "keep": "nothing", "program": ""}
    image, drawables = gimp_cases.plain(studio)
    assert call(procedure, image, drawables, strength=0.5, grow=3, keep="luma")[0] == "SUCCESS"
    assert sent["arguments"][6:] == ["--layer", "--strength", "0.5", "--grow-mask", "3", "--keep", "luma"]


def test_the_program_can_be_named(procedure: Any, studio: gimp_cases.Studio, tmp_path: Path) -> None:
    image, drawables = gimp_cases.plain(studio)
    status, message = call(procedure, image, drawables, program="/no/scsco")
    assert (status, message.split(";")[0]) == ("EXECUTION_ERROR", "the program scsco is not at /no/scsco")


@pytest.mark.parametrize("answer", [True, False])
def test_the_dialog_is_shown_and_can_be_left(
    procedure: Any, studio: gimp_cases.Studio, sent: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    shown: list[None] = []
    monkeypatch.setattr(fake_gimp.ProcedureDialog, "answer", answer)
    monkeypatch.setattr(fake_gimp.ProcedureDialog, "fill", lambda dialog, properties: shown.append(properties))
    image, drawables = gimp_cases.plain(studio)
    assert call(procedure, image, drawables, GIMP.INTERACTIVE)[0] == ("SUCCESS" if answer else "CANCEL")
    assert shown == [None]
    assert bool(sent) == answer


def test_what_gimp_is_told(procedure: Any) -> None:
    assert procedure.facts["menu"] == "<Image>/Filters/SCS-Co"
    assert procedure.facts["image types"] == "RGB*, GRAY*"
    assert procedure.facts["sensitivity"] is fake_gimp.ProcedureSensitivityMask.DRAWABLE
    blurb, help_text, name = procedure.facts["documentation"]
    assert blurb
    assert help_text
    assert name == procedure.name


def test_gimp_can_start_it() -> None:
    """GIMP runs an executable file that is called as its folder, by its first line."""
    file = PLUG_IN / f"{PLUG_IN.name}.py"
    assert os.access(file, os.X_OK)
    assert file.read_text().startswith("#!/usr/bin/env python3\n")
