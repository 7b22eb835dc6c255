"""Time and memory of one harmonization through the page, in a headless Chromium, with the package's model.

    python tests/demo/measure.py [WIDTH HEIGHT]     # 4000 3000 if not given; writes CSV

Seconds from pressing the button, uploads not counted: `result` until both previews are in the page, `files` until
picture and layer can be downloaded as well. `strength` is what the slider takes until another preview is there, and
`strength_files` until the files are. `peak_mib` is the most memory that the server ever held, of which `base_mib`
before the first picture. Each is the median of three; the cut-out is of half of the background's sides.
"""

import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import browser

from scsco_fast.benchmarks.harmonize import pictures

REPEATS = 3
COLUMNS = ("way", "width", "height", "result", "files", "strength", "strength_files", "peak_mib", "base_mib")


def resident(process: int, name: str) -> float:
    """MiB that a process holds (VmRSS), or has held at most (VmHWM)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def write(folder: Path, width: int, height: int) -> None:
    """The pictures of the three ways."""
    picture, mask = pictures(width, height)
    picture.save(folder / "picture.jpg", quality=95)
    mask.save(folder / "mask.png")
    Image.merge("RGB", [*picture.split()[1:], picture.split()[0]]).save(folder / "other.jpg", quality=95)
    half = width // 2, height // 2
    cutout = picture.resize(half)
    cutout.putalpha(mask.resize(half))
    cutout.save(folder / "cutout.png")
    edited = picture.copy()
    edited.paste(Image.open(folder / "other.jpg"), mask=mask)
    edited.save(folder / "edited.png")


def fill(page: browser.Page, way: str, folder: Path) -> None:
    """Upload what a way needs."""
    page.tab({"composite": "Composite", "cutout": "Cut-out", "edit": "Edit"}[way])
    files = {
        "composite": {"composite": "edited.png", "mask": "mask.png"},
        "cutout": {"cutout": "cutout.png", "background": "other.jpg"},
        "edit": {"before": "picture.jpg", "after": "edited.png"},
    }[way]
    for name, file in files.items():
        page.upload(name, folder / file)
    if way == "cutout":
        page.find("#stage .front[src]")
    page.idle()


def timed(page: browser.Page, action: Callable[[], None]) -> tuple[float, float]:
    """Seconds until both previews are new, and until the files are there."""
    before = page.each("#slider img", "e.src")
    start = time.perf_counter()
    action()
    page.until("a preview", lambda: len(now := page.each("#slider img", "e.src")) == 2 and now != before)
    shown = time.perf_counter() - start
    page.until("the layer", lambda: page.find("#layer").is_enabled())
    return shown, time.perf_counter() - start


def measure(way: str, folder: Path) -> list[tuple[float, float, float, float]]:
    found = []
    with browser.serving(None) as (address, process):
        base = resident(process, "VmRSS")
        page = browser.Page(address, folder)
        try:
            fill(page, way, folder)
            prefix = "" if way == "composite" else f"{way}_"
            for repeat in range(REPEATS):
                page.fill(f"#{prefix}grow input[type=number]", str(-repeat))  # else the result would be the same
                page.idle()
                pressed = timed(page, lambda: page.click(f"#{prefix}start"))
                found.append((*pressed, *timed(page, lambda: page.choose("keep", "Colour"))))
                timed(page, lambda: page.choose("keep", "Nothing"))
            return [*found, (base, resident(process, "VmHWM"), 0, 0)]
        finally:
            page.close()


if __name__ == "__main__":
    size = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (4000, 3000)
    rows = csv.writer(sys.stdout)
    rows.writerow(COLUMNS)
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), *size)
        for way in ("composite", "cutout", "edit"):
            *times, (base, peak, *_) = measure(way, Path(temporary))
            medians = [round(statistics.median(column), 2) for column in zip(*times, strict=True)]
            rows.writerow([way, *size, *medians, round(peak), round(base)])
            sys.stdout.flush()
