"""`scsco demo`: a page to try a model on one's own pictures, in a browser, on this machine.

Gradio serves it (the extra `demo`). A browser is given nothing but the page and what it has uploaded or made: no path
of this machine is allowed, and the page loads nothing from another host.
"""

import functools
import ipaddress
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from scsco_fast.data.images import image_to_tensor, read_picture, tensor_to_image
from scsco_fast.data.masks import read_mask
from scsco_fast.data.photos import load_photos, shrink
from scsco_fast.data.samples import Sample
from scsco_fast.data.synthetic import SyntheticComposites
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import read_image, write_image
from scsco_fast.harmonizing.pictures import harmonize
from scsco_fast.nn.attention_maps import attention_maps
from scsco_fast.nn.norm import BAIN
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.regions import THRESHOLD

HOST, PORT = "127.0.0.1", 7860
MAX_MEGAPIXELS = 24.0
MAX_UPLOAD = "64mb"
WAITING = 16  # requests in the queue; one is computed at a time
PREVIEW = 1024  # long side of what the page shows
KEPT = 3600  # seconds that uploads and results stay on disk
SAMPLES, SAMPLE_SIZE, SAMPLE_SEED = (19, 12, 30), 384, 5  # chosen for foregrounds that look like objects
UPLOAD, PAINT = "Upload it", "Paint it"

# The page's own scripts and styles are inline; from another host nothing may come, and none may frame it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
STYLE = "#attention img { width: 100%; max-height: 420px; object-fit: contain }"  # small pictures are enlarged
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

_log = logging.getLogger("scsco_fast")


@dataclass(frozen=True)
class Shown:
    """What a visitor sees, for the attention of the point that is clicked next.

    Attributes:
        preview: (h, w, 3) uint8, the composite at most `PREVIEW` pixels long.
        inside: (h, w) bool, its foreground.
        composite, mask: (1, 3, H, W) and (1, 1, H, W), what the network sees: at its working size.
        result: the file to download.
        point: row and column in the preview.
    """

    preview: np.ndarray
    inside: np.ndarray
    composite: torch.Tensor
    mask: torch.Tensor
    result: Path
    point: tuple[int, int]


def serve(model: HarmonizationUNet, host: str = HOST, port: int = PORT, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Show the page at http://host:port until the process is interrupted.

    Args:
        host: an address of this machine. One that is not loopback lets the whole network use the page, which asks for
            no password; a warning says so.
        max_megapixels: larger pictures are refused before they are decoded.

    Raises:
        ScscoError: gradio is not installed, or the address cannot be bound.
    """
    require_gradio()
    if not max_megapixels > 0:
        raise ScscoError(f"--max-megapixels is {max_megapixels:g}; wanted more than 0")
    if not _is_loopback(host):
        warnings.warn(f"{host} is not loopback: whoever reaches it can use the page, without a password", stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="scsco-demo-") as folder:
        page = build(model, Path(folder), max_megapixels)
        try:
            page.launch(**_launch_options(host, port))
        except OSError as error:
            raise ScscoError(f"{host}:{port} cannot be bound ({error}); give another --port or --host") from error
        try:
            sys.stdout.write(f"the page is at http://{host}:{port} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            _wait()
        finally:
            page.close(verbose=False)


def require_gradio() -> None:
    """Raise a ScscoError of one line if gradio is missing; import it without its reports to its makers otherwise."""
    for name, value in {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}.items():
        os.environ[name] = value
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ScscoError('scsco demo needs gradio: pip install "scsco-fast[demo]"') from error


def build(model: HarmonizationUNet, folder: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Any:
    """The page, a `gradio.Blocks`; uploads, samples and results are kept in `folder`."""
    require_gradio()
    import gradio as gr

    os.environ["GRADIO_TEMP_DIR"] = str(folder / "served")
    levels = _attention_levels(model)
    actions = _Actions(model, folder / "results", max_megapixels)

    def picture(label: str, name: str, height: int) -> Any:
        shown = {"sources": ["upload", "clipboard"], "type": "filepath", "image_mode": None, "buttons": []}
        field = gr.Image(label=label, elem_id=name, height=height, **shown)
        # Gradio would open the file with every reader that Pillow has. It is this project that opens it, or refuses.
        field.preprocess = lambda payload: None if payload is None else payload.path
        return field

    private: dict[str, Any] = {"api_visibility": "private"}
    with gr.Blocks(title="scsco demo", analytics_enabled=False, delete_cache=(KEPT // 2, KEPT)) as page:
        gr.Markdown("# Fit a pasted foreground to its background\n" + _description(model, max_megapixels))
        shown = gr.State(None, time_to_live=KEPT, delete_callback=_forget)
        with gr.Row():
            with gr.Column():
                composite = picture("Composite", "composite", 300)
                source = gr.Radio([UPLOAD, PAINT], value=UPLOAD, label="Mask of the foreground", elem_id="source")
                mask = picture("Mask: white is foreground, black is background", "mask", 220)
                painted = gr.ImageEditor(
                    **{"label": "Paint over the foreground", "elem_id": "painted", "visible": False, "layers": False},
                    **{"sources": (), "transforms": (), "type": "numpy", "height": 420, "buttons": []},
                    brush=gr.Brush(colors=["#ff3355"], default_size=40, color_mode="fixed"),
                )
                start = gr.Button("Harmonize", variant="primary", elem_id="start")
                gr.Examples(_samples(folder / "samples"), [composite, mask], label="Sample pictures", elem_id="samples")
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Before / after", elem_id="slider", type="numpy", format="png", buttons=[], max_height=420
                )
                download = gr.DownloadButton("Download at full size (PNG)", elem_id="download", interactive=False)
                attention = gr.Image(
                    **{"label": "Attention: click a point of the foreground", "elem_id": "attention", "buttons": []},
                    **{"interactive": False, "format": "png", "type": "numpy"},
                )
                level = gr.Radio(
                    list(levels), value=_middle_one(levels), label="At which resolution", elem_id="level",
                    visible=len(levels) > 1,
                )  # fmt: skip

        def look(now: Shown | None, at: str, event: gr.SelectData) -> Any:
            return actions.look(now, levels.get(at), event.index)

        def look_again(now: Shown | None, at: str) -> Any:
            return actions.look(now, levels.get(at), None)[0]

        def run(composite: str | None, source: str, mask: str | None, painted: Any, at: str, now: Shown | None) -> Any:
            done = actions.run(composite, mask if source == UPLOAD else painted, levels.get(at), now)
            file = gr.DownloadButton(value=str(done[0].result), interactive=True)
            return done[0], done[1], done[2], file

        source.change(
            lambda chosen: (gr.update(visible=chosen == UPLOAD), gr.update(visible=chosen == PAINT)),
            source, [mask, painted], **private,
        )  # fmt: skip
        composite.change(_said(actions.canvas), composite, painted, **private)
        inputs = [composite, source, mask, painted, level, shown]
        start.click(_said(run), inputs, [shown, slider, attention, download], **private)
        attention.select(_said(look), [shown, level], [attention, shown], **private)
        level.input(_said(look_again), [shown, level], attention, **private)
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


class _Actions:
    """What the page's buttons do, without gradio."""

    def __init__(self, model: HarmonizationUNet, results: Path, max_megapixels: float) -> None:
        self.model, self.results, self.max_megapixels = model, results, max_megapixels

    def canvas(self, composite: str | None) -> dict[str, Any] | None:
        """The composite as what is painted over, or nothing."""
        if composite is None:
            return None
        preview = shrink(self._read(composite), PREVIEW)
        return {"background": preview, "layers": [], "composite": preview}

    def run(
        self, composite: str | None, mask: str | dict[str, Any] | None, level: str | None, before: Shown | None
    ) -> tuple[Shown, tuple[np.ndarray, np.ndarray], np.ndarray | None]:
        """Harmonize: what is shown, the previews before and after, and the attention of the foreground's middle."""
        if composite is None:
            raise ScscoError("there is no composite; upload one, or take a sample picture")
        rgb = self._read(composite)
        image = read_image(composite)
        if isinstance(mask, str):
            self._check_pixels(mask)
            values = read_mask(mask, size=rgb.shape[:2])
        else:
            values = painted_mask(mask, rgb.shape[:2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            output = harmonize(image, values, self.model)
        for warning in caught:
            _warn(str(warning.message))
        _forget(before)
        self.results.mkdir(parents=True, exist_ok=True)
        result = Path(tempfile.mkdtemp(dir=self.results)) / f"{Path(composite).stem}_harmonized.png"
        write_image(output, result)
        now = self._shown(rgb, values, result)
        previews = now.preview, shrink(read_picture(result).rgb, PREVIEW)
        return now, previews, self.look(now, level, None)[0]

    def look(
        self, now: Shown | None, level: str | None, at: tuple[int, int] | None
    ) -> tuple[np.ndarray | None, Shown | None]:
        """The attention map of a point (x, y) of the preview, drawn over it; without a point, of the last one."""
        if now is None or level is None:
            return None, now
        if at is not None:
            x, y = (min(max(int(value), 0), side - 1) for value, side in zip(at, now.inside.shape[::-1], strict=True))
            if not now.inside[y, x]:
                raise ScscoError("that point is background; click one of the foreground, inside of the outline")
            now = replace(now, point=(y, x))
        height, width = now.composite.shape[-2:]
        row, column = now.point
        wanted = torch.tensor([[row * height // now.inside.shape[0], column * width // now.inside.shape[1]]])
        device = next(self.model.parameters()).device
        maps = attention_maps(self.model, now.composite.to(device), now.mask.to(device), wanted.to(device))
        return attention_picture(now.preview, now.inside, maps[level][0].cpu().numpy(), now.point), now

    def _shown(self, rgb: np.ndarray, mask: np.ndarray, result: Path) -> Shown:
        preview, small = shrink(rgb, PREVIEW), shrink(rgb, self.model.working_size)
        inside = resized(mask, preview.shape[:2]) > THRESHOLD
        seen = torch.from_numpy(resized(mask, small.shape[:2]) > THRESHOLD)[None, None].float()
        point = _middle(inside)
        return Shown(preview, inside, image_to_tensor(small)[None], seen, result, point)

    def _read(self, path: str) -> np.ndarray:
        self._check_pixels(path)
        return read_picture(path).rgb

    def _check_pixels(self, path: str) -> None:
        """By the header, before anything is decoded; what has none is `read_picture`'s to name."""
        try:
            with Image.open(path) as opened:
                width, height = opened.size
        except Image.DecompressionBombError:
            raise ScscoError(f"{path}: far more than {self.max_megapixels:g} megapixels; make it smaller") from None
        except Exception:
            return
        if width * height > self.max_megapixels * 1e6:
            raise ScscoError(
                f"{path}: {width}x{height} are {width * height / 1e6:.1f} megapixels, the limit is "
                f"{self.max_megapixels:g}; make it smaller, or start scsco demo with --max-megapixels"
            )


def _forget(shown: Shown | None) -> None:
    """Delete the result; gradio serves, and deletes, a copy of its own."""
    if shown is not None:
        shutil.rmtree(shown.result.parent, ignore_errors=True)


def painted_mask(painted: dict[str, Any] | None, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 of `size` from what an ImageEditor gives: 1 where any of its layers is painted.

    Raises:
        ScscoError: nothing is painted.

    Examples:
        >>> layer = np.zeros((4, 6, 4), np.uint8)
        >>> layer[1:3, 2:4, 3] = 255
        >>> painted_mask({"layers": [layer]}, (8, 12)).shape
        (8, 12)
    """
    layers = [] if painted is None else [layer[..., 3] for layer in painted["layers"] if layer is not None]
    if not any(layer.any() for layer in layers):
        raise ScscoError("there is no mask; upload one, or paint over the foreground")
    covered = np.maximum.reduce(layers).astype(np.float32) / 255
    return resized(covered, size)


def resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 in [0, 1] at another size, bilinear and antialiased."""
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).clip(0, 1)


def attention_picture(rgb: np.ndarray, inside: np.ndarray, rows: np.ndarray, point: tuple[int, int]) -> np.ndarray:
    """Heat over a darkened background, the foreground as it is, an outline between them and a ring at the point.

    Args:
        rgb: (H, W, 3) uint8.
        inside: (H, W) bool, the foreground.
        rows: (h, w), weights of the background from `attention_map`; the heat is their share of the largest one.
        point: row and column.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib import colormaps

    heat = resized(rows / max(float(rows.max()), 1e-12), inside.shape)[..., None]  # (H, W, 1)
    grey = (rgb @ np.array([0.299, 0.587, 0.114]))[..., None] * 0.45
    background = grey * (1 - heat) + colormaps["inferno"](0.25 + 0.75 * heat[..., 0])[..., :3] * 255 * heat
    picture = np.where(inside[..., None], rgb, background).astype(np.uint8)
    picture[_outline(inside)] = 255
    image = Image.fromarray(picture)
    draw, radius = ImageDraw.Draw(image), max(4, max(inside.shape) // 80)
    for grown, colour in ((2, "black"), (0, "white")):
        corners = [(point[1] + sign * (radius + grown), point[0] + sign * (radius + grown)) for sign in (-1, 1)]
        draw.ellipse(corners, outline=colour, width=2 + grown)
    return np.asarray(image)


def _outline(inside: np.ndarray) -> np.ndarray:
    padded = np.pad(inside, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return inside & ~np.logical_and.reduce(neighbours)


def _middle(inside: np.ndarray) -> tuple[int, int]:
    """The foreground pixel next to the mean of all; the picture's middle where there is none."""
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return inside.shape[0] // 2, inside.shape[1] // 2
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(rows[nearest]), int(columns[nearest])


def _attention_levels(model: HarmonizationUNet) -> dict[str, str]:
    """What the page calls the resolutions of the decoder's BAINs, finest first, to the names of the modules."""
    return {f"1/{2 ** (level + 1)}": f"norm.{level}" for level, norm in enumerate(model.norm) if isinstance(norm, BAIN)}


def _middle_one(levels: dict[str, str]) -> str | None:
    """The finest level's map is dotted, the coarsest one's says little."""
    return list(levels)[(len(levels) - 1) // 2] if levels else None


def _samples(folder: Path) -> list[list[str]]:
    """Composites and masks made of two photographs that come with scikit-image, as files."""
    photos = load_photos("builtin", "test")
    made = SyntheticComposites(photos, size=SAMPLE_SIZE, length=len(SAMPLES), seed=SAMPLE_SEED, augment=False)
    folder.mkdir(parents=True)
    pairs = []
    for index, sample in ((index, made[index]) for index in SAMPLES):
        if not isinstance(sample, Sample):
            continue
        pair = [folder / f"sample_{index}.png", folder / f"sample_{index}_mask.png"]
        for path, picture in zip(pair, (sample.composite, sample.mask.expand(3, -1, -1)), strict=True):
            Image.fromarray(tensor_to_image(picture)).save(path)
        pairs.append([str(path) for path in pair])
    return pairs


def _description(model: HarmonizationUNet, max_megapixels: float) -> str:
    attends = "" if _attention_levels(model) else " This model has no BAIN, so there is no attention to show."
    return (
        f"Only the foreground's colours change; pixels outside of the mask stay as they are. Pictures of up to "
        f"{max_megapixels:g} megapixels stay on this server for at most {KEPT * 3 // 2 // 60} minutes.{attends}"
    )


def _said(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action, with its errors shown in the page in one line that names files as the visitor does."""
    import gradio as gr

    @functools.wraps(action)
    def wrapped(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except ScscoError as error:
            text = " ".join(str(error).split())
        except MemoryError:
            text = "not enough memory for this picture; make it smaller"
        except Exception:
            _log.exception("the page could not do what was asked")
            text = "the server failed at this; its log says how"
        for path in (value for value in arguments if isinstance(value, str) and os.sep in value):
            text = text.replace(path, Path(path).name)
        raise gr.Error(text, duration=None, print_exception=False, title="Not possible")

    return wrapped


def _warn(text: str) -> None:
    import gradio as gr

    gr.Warning(text, duration=None)


class _WithHeaders:
    """ASGI middleware: `HEADERS` on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self.app(scope, receive, send_with)


def _launch_options(host: str, port: int) -> dict[str, Any]:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(_WithHeaders)]
    if (
        _is_loopback(host) and ":" not in host
    ):  # another site whose name is made to lead here is no name of this machine
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1"]))
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "max_file_size": MAX_UPLOAD,
        "allowed_paths": [],
        "strict_cors": True,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": [],
        "state_session_capacity": 2 * WAITING,
        "app_kwargs": {"middleware": middleware},
        "css": STYLE,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait() -> None:
    """Until Ctrl-C; SIGTERM ends the process in order too, so that uploads are deleted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Event().wait()
