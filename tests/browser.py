"""`scsco demo` as a visitor uses it: the server in a process of its own, the page in a headless Chromium.

`python tests/browser.py FOLDER` writes the screenshots of docs/demo.md: demo_page.png and demo_place.png.
"""

import base64
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

PATIENCE = 60  # seconds


def missing() -> str | None:
    """Why no browser can be driven here, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "needs selenium (pip install selenium)"
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(absent)} (Debian's chromium and chromium-driver)" if absent else None


@contextmanager
def serving(model: Path | None, *options: str, first: str = "") -> Iterator[tuple[str, int]]:
    """The address and the process of a running `scsco demo`.

    Args:
        model: None is the package's.
        first: Python that runs in it before.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"import sys, scsco_fast.cli\n{first}\nsys.exit(scsco_fast.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "demo", "--device", "cpu", "--port", str(port), *options]
    command += [] if model is None else ["--model", str(model)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        line = next((line for line in server.stdout if "the page is at" in line), "the server ended")
        assert line == f"the page is at http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        threading.Thread(target=server.stdout.read, daemon=True).start()  # a full pipe would stop the server
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait(PATIENCE)


@contextmanager
def served(model: Path, *options: str, first: str = "") -> Iterator[str]:
    """The address alone."""
    with serving(model, *options, first=first) as (address, _):
        yield address


class Page:
    """The page in a browser; every method waits for what it names."""

    def __init__(self, address: str, downloads: Path, width: int = 1280, height: int = 1000) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        # Without a sandbox: a container's root has none. Nothing but the page's own server is opened.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"):
            options.add_argument(argument)
        options.add_argument(f"--window-size={width},{height}")
        options.add_argument("--disable-background-networking")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        self.downloads = downloads
        self.driver = webdriver.Chrome(options, Service(str(shutil.which("chromedriver"))))
        self.driver.get(address + "/?__theme=light")
        self.find("#start")

    def close(self) -> None:
        self.driver.quit()

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """What the condition gives once it is true; where the page replaced what it looks at, it looks again."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(StaleElementReferenceException):
                if found := condition():
                    return found
            assert time.monotonic() < deadline, f"{what} did not come; messages: {self.messages()}"
            time.sleep(0.1)

    def each(self, selector: str, expression: str) -> list[Any]:
        """What a JavaScript expression of `e` gives for each element, all at one moment."""
        script = f"return [...document.querySelectorAll(arguments[0])].map(e => {expression})"
        return list(self.driver.execute_script(script, selector))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def find(self, selector: str) -> Any:
        return self.until(selector, lambda: self.all(selector))[0]

    def upload(self, name: str, path: Path) -> None:
        """Put a file into the picture field `name`, in the place of what is in it."""
        self.each(f"#{name} button[aria-label='Clear'], #{name} button[aria-label='Remove Image']", "e.click()")
        self.until(f"an empty #{name}", lambda: self.all(f"#{name} input[type=file]") and not self.all(f"#{name} img"))
        self.find(f"#{name} input[type=file]").send_keys(str(path))
        self.until(f"the picture in #{name}", lambda: self.all(f"#{name} img"))
        self.idle()

    def idle(self) -> None:
        """Until the server works at nothing for this page."""
        time.sleep(0.3)
        self.until(
            "an idle page", lambda: not self.all("[data-testid='status-tracker'].generating, .eta-bar, .pending")
        )

    def choose(self, name: str, text: str) -> None:
        """Take an option of a group of radio buttons."""

        def label() -> Any:
            return next((label for label in self.all(f"#{name} label") if label.text.strip() == text), None)

        self.until(f"{text!r} in #{name}", label).click()

    def click(self, selector: str) -> None:
        self.until(f"{selector} to click", lambda: self.find(selector).is_enabled())
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def click_at(self, selector: str, x: float, y: float) -> None:
        """Click at a share of the width and height of an element."""
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        offset = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        ActionChains(self.driver).move_to_element_with_offset(element, *offset).click().perform()

    def stroke(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a line with the mouse, between shares of the width and height of an element."""
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        first, last = ((round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])) for x, y in (start, end))
        chain = ActionChains(self.driver).move_to_element_with_offset(element, *first).click_and_hold()
        for _ in range(5):
            chain.move_by_offset((last[0] - first[0]) // 5, (last[1] - first[1]) // 5)
        chain.release().perform()

    def tab(self, text: str) -> None:
        """Go to one of the three ways."""

        def button() -> Any:
            return next((one for one in self.all("#ways button[role=tab]") if one.text.strip() == text), None)

        self.until(f"{text!r} of the ways", button).click()

    def drag(self, selector: str, right: int, down: int, kind: str = "mouse") -> None:
        """Drag an element by pixels of the screen (multiples of 4), with a mouse or by touch."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        actions = ActionBuilder(self.driver, mouse=PointerInput(kind, kind))
        pointer = actions.pointer_action
        pointer.move_to(element)
        pointer.pointer_down()
        for part in (1, 1, 2):
            pointer.move_by(right * part // 4, down * part // 4)
        pointer.pointer_up()
        actions.perform()

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, in the place of what is in it."""
        field = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].select()", field)
        field.send_keys(text + "\n")

    def press(self, selector: str, *keys: str) -> None:
        self.find(selector).send_keys(*keys)

    def harmonize(self, start: str = "#start") -> None:
        """Press the button, and wait for a result that differs from the one before."""

        def shown() -> list[str]:
            return self.each("#slider img", "e.src")

        before = shown()
        self.click(start)
        self.until("a new result", lambda: len(shown()) == 2 and shown() != before)
        self.idle()

    def source(self, selector: str) -> str | None:
        """Where an image comes from, or None where there is none."""
        return next(iter(self.each(selector, "e.src")), None)

    def download(self, button: str = "#download") -> Path:
        """What a button downloads."""
        known = set(self.downloads.iterdir())
        self.click(button)

        def new() -> Path | None:
            files = set(self.downloads.iterdir()) - known
            return next((file for file in files if file.suffix == ".png"), None)

        found: Path = self.until("the download", new)
        return found

    def messages(self) -> list[str]:
        """The messages that stand on the page."""
        return [" ".join(text.split()) for text in self.each("[data-testid=toast-body]", "e.innerText")]

    def message(self, part: str) -> str:
        """The message that holds `part`, after it was closed."""
        text: str = self.until(f"{part!r}", lambda: next((line for line in self.messages() if part in line), None))
        self.each("[data-testid=toast-close]", "e.click()")
        self.until("no message", lambda: not self.messages())
        return text

    def screenshot(self, output: Path) -> None:
        """Of the whole page, with 192 colours."""
        time.sleep(1)  # for the toolbars to fade
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        whole = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", whole)
        picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        palette = picture.quantize(192, kmeans=1)
        picture.quantize(palette=palette).save(output, optimize=True)  # with a palette it is dithered

    def requests(self) -> set[str]:
        """The addresses that the page has asked for."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}


def screenshots(folder: Path) -> None:
    with serving(None) as (address, _):
        page = Page(address, folder, width=1295, height=1200)  # 15 of it are the scroll bar's
        try:
            page.click("#samples tbody tr")
            page.find("#mask img")
            page.find("#composite img")
            page.idle()
            page.harmonize()
            page.screenshot(folder / "demo_page.png")
            page.tab("Cut-out")
            page.click("#cutout_samples tbody tr")
            page.find("#stage .front[src]")
            page.idle()
            page.drag("#stage .front", 0, 70)
            page.harmonize("#cutout_start")
            page.screenshot(folder / "demo_place.png")
        finally:
            page.close()


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]))
