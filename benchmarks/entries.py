"""Time and peak memory of every way in: the command line, Python, the resident server, the ComfyUI node.

    python -m benchmarks.entries [--csv FILE]     # about five minutes on two cores
    python -m benchmarks.entries --smoke          # small pictures: does the program work?

Each entry is a whole process, from its start to its end: Python, PyTorch, the package's model, decoding, harmonizing,
encoding. `seconds` is the median of the repetitions, `peak_mib` the most memory that one of them held. The entry
"served" is one request to `scsco serve`, after a first one; its memory is the server's.

The picture is smooth colours with noise, the mask an ellipse over 20 % of it, as in `benchmarks.harmonize`.
"""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from scsco_fast.benchmarks.harmonize import pictures
from scsco_fast.system.environment import git_revision

SIZES = ((1152, 864), (4000, 3000))  # 1 and 12 megapixels
SMOKE_SIZES = ((96, 64),)
COLUMNS = ("time", "git", "device", "threads", "torch", "entry", "width", "height", "seconds", "peak_mib")
SCSCO = (sys.executable, "-m", "scsco_fast")
STARTING = {
    "--version": ("--version",),
    "--help": ("--help",),
    "harmonize --help": ("harmonize", "--help"),
    "a wrong option": ("harmonize", "--strenght", "1"),
}
COMPOSITE = ("--image", "image.png", "--mask", "mask.png")
CUT_OUT = ("--foreground", "cut.png", "--background", "image.png", "--scale", "0.7")
HARMONIZING = {
    "composite, PNG to PNG": (*COMPOSITE, "--output", "out.png"),
    "composite, JPEG to JPEG": ("--image", "image.jpg", "--mask", "mask.png", "--output", "out.jpg"),
    "--strength 0.5 --keep colour": (*COMPOSITE, "--output", "out.png", "--strength", "0.5", "--keep", "colour"),
    "--grow-mask 20": (*COMPOSITE, "--output", "out.png", "--grow-mask", "20"),
    "--layer": (*COMPOSITE, "--output", "out.png", "--layer"),
    "--alpha-mask": ("--image", "own.png", "--alpha-mask", "--output", "out.png"),
    "--foreground --background": (*CUT_OUT, "--output", "out.png"),
    "--foreground --background --layer": (*CUT_OUT, "--output", "out.png", "--layer"),
    "--before --after": ("--before", "image.png", "--after", "edited.png", "--output", "out.png"),
    **({"composite, AVIF to AVIF": ("--image", "image.avif", "--mask", "mask.png", "--output", "out.avif")}
       if features.check("avif") else {}),
}  # fmt: skip
FOLDER = ("--images", "folder", "--output", "done", "--overwrite")
TENSORS = """
import numpy as np, torch, scsco_fast as sf
from PIL import Image
image, mask = (torch.from_numpy(np.asarray(Image.open(name))) for name in ("image.png", "mask.png"))
sf.harmonize(image.permute(2, 0, 1)[None].float().div(255).repeat(2, 1, 1, 1), mask)
"""
NODE = """
import sys, numpy as np, torch
from PIL import Image
sys.path.insert(0, sys.argv[1])
import comfyui
(node,) = comfyui.NODE_CLASS_MAPPINGS.values()
image, mask = (torch.from_numpy(np.asarray(Image.open(name))).float() / 255 for name in ("image.png", "mask.png"))
given = {"composite": image[None], "mask": mask[None]}
for name, (kind, *options) in {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}.items():
    given.setdefault(name, (options[0] if options else {}).get("default"))
getattr(node(), node.FUNCTION)(**given)
"""
# Linux counts what the parent held before exec to the child's peak, so the parent must be small.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(process, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss]))
"""
INTEGRATIONS = Path(__file__).resolve().parent.parent / "integrations"


def save_pictures(folder: Path, width: int, height: int) -> None:
    """What the entries read: a composite, its mask, a cut-out, an edit, and a folder of four composites."""
    folder.mkdir(parents=True)
    image, mask = pictures(width, height)
    pixels, inside = np.asarray(image), np.asarray(mask)[..., None] > 0
    for name in ("image.png", "image.jpg", *(["image.avif"] if features.check("avif") else [])):
        image.save(folder / name)
    mask.save(folder / "mask.png")
    Image.fromarray(np.dstack([pixels, np.asarray(mask)])).save(folder / "own.png")
    Image.fromarray(np.dstack([np.where(inside, pixels, 0), np.asarray(mask)])).save(folder / "cut.png")
    Image.fromarray(np.where(inside, pixels // 2 + 60, pixels).astype(np.uint8)).save(folder / "edited.png")
    (folder / "folder").mkdir()
    for index in range(4):
        (folder / "folder" / f"{index}.png").hardlink_to(folder / "image.png")
        (folder / "folder" / f"{index}_mask.png").hardlink_to(folder / "mask.png")


def run(command: tuple[str, ...], folder: Path, codes: tuple[int, ...] = (0,)) -> tuple[float, float]:
    """Seconds and peak MiB of a process; processes that it starts count in the time only."""
    light = (sys.executable, "-I", "-S", "-c", LAUNCHER, *command)
    done = subprocess.run(light, cwd=folder, capture_output=True, text=True, check=True)
    code, seconds, peak = json.loads(done.stdout)
    if code not in codes:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}: {done.stderr}")
    return seconds, peak / 1024


def served(folder: Path, repeats: int) -> list[tuple[float, float]]:
    """Seconds of requests to a resident server, and its peak memory after each."""
    socket = folder / "serve.sock"
    server = subprocess.Popen([*SCSCO, "serve", "--socket", str(socket)], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            time.sleep(0.05)
        ask(socket, folder)
        return [(ask(socket, folder), peak_of(server.pid)) for _ in range(repeats)]
    finally:
        server.terminate()
        server.wait()


def ask(path: Path, folder: Path) -> float:
    """Seconds of one request to harmonize the folder's composite."""
    import socket

    arguments = [str(folder / part) if "." in part else part for part in HARMONIZING["composite, PNG to PNG"]]
    start = time.perf_counter()
    connection = HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("POST", "/harmonize", json.dumps({"arguments": arguments}))
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the server answers {answer.status}: {answer.read().decode()}")
    answer.read()
    connection.close()
    return time.perf_counter() - start


def peak_of(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def entries(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and command of every entry that reads pictures."""
    for name, arguments in HARMONIZING.items():
        yield name, (*SCSCO, "harmonize", *arguments)
    yield "--images, a folder of 4", (*SCSCO, "harmonize", *FOLDER)
    yield "Python, a batch of 2 as a tensor", (sys.executable, "-c", TENSORS)
    yield "ComfyUI's node", (sys.executable, "-c", NODE, str(INTEGRATIONS))


def measured(sizes: tuple[tuple[int, int], ...], repeats: int) -> Iterator[tuple[str, int, int, float, float]]:
    """Entry, width, height, median seconds, peak MiB."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, arguments in STARTING.items():
            yield name, 0, 0, *summary([run((*SCSCO, *arguments), Path(temporary), (0, 2)) for _ in range(repeats)])
        for width, height in sizes:
            folder = Path(temporary) / str(width)
            save_pictures(folder, width, height)
            for name, command in entries(folder):
                yield name, width, height, *summary([run(command, folder) for _ in range(repeats)])
            yield "served", width, height, *summary(served(folder, repeats))


def summary(found: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(seconds for seconds, _ in found), max(peak for _, peak in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--smoke", action="store_true", help="small pictures, a repetition each")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of each entry")
    options = parser.parse_args()
    sizes, repeats = (SMOKE_SIZES, 1) if options.smoke else (SIZES, options.repeats)
    machine = (time.strftime("%Y-%m-%dT%H:%M:%S"), git_revision(), platform.machine(), torch.get_num_threads())
    rows = []
    for name, width, height, seconds, peak in measured(sizes, repeats):
        print(f"{name:36} {f'{width}x{height}' if width else '':>10} {seconds:7.2f} s {peak:6.0f} MiB", flush=True)
        rows.append((*machine, torch.__version__, name, width, height, round(seconds, 4), round(peak, 1)))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
