"""How the page is laid out, and what happens when something in it is used."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scsco_fast.data.salient import Saliency
from scsco_fast.demo.actions import Actions, Shown, forget
from scsco_fast.demo.address import require_packages
from scsco_fast.demo.attention import attention_levels
from scsco_fast.demo.fields import MaskFields, errors_shown, in_thread, mask_fields, picture, warn
from scsco_fast.demo.requests import FIND, KEEP, TITLES, Request, Way
from scsco_fast.demo.samples import sample_composites, sample_cutouts, sample_edits
from scsco_fast.demo.stage import SCRIPT, TEMPLATE
from scsco_fast.demo.stage import STYLE as STAGE_STYLE
from scsco_fast.nn.unet import HarmonizationUNet

WAITING = 16  # requests in the queue; one is computed at a time
KEPT = 3600  # seconds that uploads and results stay on disk
STYLE = "#attention img { width: 100%; max-height: 420px; object-fit: contain }"  # small pictures are enlarged
DOWNLOAD, LAYER = "Download at full size (PNG)", "Download the layer (RGBA)"
# On a phone the result is below all fields.
_TO_RESULT = "() => { if (innerWidth < 768) document.querySelector('#slider').scrollIntoView({behavior: 'smooth'}); }"
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


class WayFields(NamedTuple):
    """The fields of one way, and what starts it."""

    way: Way
    image: Any
    under: Any
    mask: MaskFields
    stage: Any
    start: Any


class ResultFields(NamedTuple):
    """What is shown of a result, and what can be changed afterwards."""

    slider: Any
    strength: Any
    keep: Any
    download: Any
    layer: Any
    attention: Any
    level: Any


def require_gradio() -> None:
    """Raise a ScscoError of one line if gradio is missing; import it without its reports to its makers otherwise."""
    for name, value in {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}.items():
        os.environ[name] = value
    require_packages()


def build(model: HarmonizationUNet, folder: Path, max_megapixels: float, saliency: Saliency | None = None) -> Any:
    """The page, a `gradio.Blocks`; uploads, samples and results are kept in `folder`.

    Args:
        max_megapixels: larger pictures are refused.
        saliency: finds the most striking object of a picture; None: that is not offered.
    """
    require_gradio()
    import gradio as gr

    os.environ["GRADIO_TEMP_DIR"] = str(folder / "served")
    levels = attention_levels(model)
    actions = Actions(model, folder / "results", max_megapixels, partial(warn, folder=folder), saliency)
    with gr.Blocks(title="scsco demo", analytics_enabled=False, delete_cache=(KEPT // 2, KEPT)) as page:
        gr.Markdown("# Fit a pasted foreground to its background\n" + _description(bool(levels), max_megapixels))
        shown = gr.State(None, time_to_live=KEPT, delete_callback=forget)
        with gr.Row():
            with gr.Column(min_width=300), gr.Tabs(elem_id="ways"):
                finds = saliency is not None
                ways = [_composite(folder, finds), _cutout(folder, finds), _edit(folder)]
            with gr.Column(min_width=300):
                result = _result(list(levels))
        _Wiring(actions, folder, levels, shown, result, ways).connect()
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _composite(folder: Path, finds: bool) -> WayFields:
    import gradio as gr

    with gr.Tab(TITLES["composite"]):
        gr.Markdown("A picture into which something was pasted, and the mask of that.")
        image = picture("Composite", "composite", 300)
        mask = mask_fields("composite", "", "Mask of the foreground", finds)
        start = gr.Button("Harmonize", variant="primary", elem_id="start")
        pairs = sample_composites(folder / "samples")
        gr.Examples(pairs, [image, mask.uploaded], label="Sample pictures", elem_id="samples")
    return WayFields("composite", image, None, mask, None, start)


def _cutout(folder: Path, finds: bool) -> WayFields:
    import gradio as gr

    with gr.Tab(TITLES["cutout"]):
        gr.Markdown("Something cut out, and the background that it is laid on: drag it to its place.")
        with gr.Row():
            image = picture("Cut-out", "cutout", 220)
            under = picture("Background", "background", 220)
        stage = gr.HTML(
            html_template=TEMPLATE, css_template=STAGE_STYLE, js_on_load=SCRIPT, apply_default_css=False,
            elem_id="stage", container=True, padding=True,
        )  # fmt: skip
        mask = mask_fields("cutout", "cutout_", "Mask of the cut-out", finds)
        start = gr.Button("Harmonize", variant="primary", elem_id="cutout_start")
        pairs = sample_cutouts(folder / "samples")
        gr.Examples(pairs, [image, under], label="Sample pictures", elem_id="cutout_samples")
    return WayFields("cutout", image, under, mask, stage, start)


def _edit(folder: Path) -> WayFields:
    import gradio as gr

    with gr.Tab(TITLES["edit"]):
        gr.Markdown("A picture before and after a part of it was edited; the rest stays as it was before.")
        with gr.Row():
            under = picture("Before the edit", "before", 220)
            image = picture("After the edit", "after", 220)
        mask = mask_fields("edit", "edit_", "Mask of the edit", False)
        start = gr.Button("Harmonize", variant="primary", elem_id="edit_start")
        pairs = sample_edits(folder / "samples")
        gr.Examples(pairs, [under, image], label="Sample pictures", elem_id="edit_samples")
    return WayFields("edit", image, under, mask, None, start)


def _result(levels: list[str]) -> ResultFields:
    import gradio as gr

    slider = gr.ImageSlider(
        label="Before / after", elem_id="slider", type="numpy", format="png", buttons=[], max_height=420
    )
    with gr.Row():
        strength = gr.Slider(
            **{"minimum": 0, "maximum": 1, "value": 1, "step": 0.05, "label": "Strength", "elem_id": "strength"},
            **{"min_width": 170, "scale": 1, "buttons": ["reset"]},
        )
        keep = gr.Radio(
            **{"choices": list(KEEP), "value": next(iter(KEEP)), "label": "Keep the foreground's own"},
            **{"elem_id": "keep", "min_width": 320, "scale": 2},
        )
    with gr.Row():
        download = gr.DownloadButton(DOWNLOAD, elem_id="download", interactive=False)
        layer = gr.DownloadButton(LAYER, elem_id="layer", interactive=False)
    attention = gr.Image(
        **{"label": "Attention: click a point of the foreground", "elem_id": "attention", "buttons": []},
        **{"interactive": False, "format": "png", "type": "numpy"},
    )
    level = gr.Radio(
        levels, value=_middle_one(levels), label="At which resolution", elem_id="level", visible=len(levels) > 1
    )
    return ResultFields(slider, strength, keep, download, layer, attention, level)


class _Wiring:
    """What happens when something in the page is used."""

    def __init__(
        self,
        actions: Actions,
        folder: Path,
        levels: dict[str, str],
        shown: Any,
        result: ResultFields,
        ways: list[WayFields],
    ) -> None:
        self.actions, self.levels, self.shown, self.result, self.ways = actions, levels, shown, result, ways
        self.errors_shown, self.worker = partial(errors_shown, folder=folder), ThreadPoolExecutor(1)

    def alone(self, action: Callable[..., Any]) -> Callable[..., Any]:
        """The action in the page's one thread, and with its errors shown."""
        return self.errors_shown(in_thread(self.worker, action))

    def connect(self) -> None:
        import gradio as gr

        result = self.result
        for way in self.ways:
            self._connect_way(way)

        def look(now: Shown | None, at: str, event: gr.SelectData) -> Any:
            return self.actions.look(now, self.levels.get(at), event.index)

        def look_again(now: Shown | None, at: str) -> Any:
            return self.actions.look(now, self.levels.get(at), None)[0]

        point = [self.shown, result.level]
        result.attention.select(self.alone(look), point, [result.attention, self.shown], **_PRIVATE)
        result.level.input(self.alone(look_again), point, result.attention, **_PRIVATE)
        self._connect_strength()

    def _connect_way(self, way: WayFields) -> None:
        import gradio as gr

        result, fields = self.result, [way.image, way.under, *way.mask, way.stage]
        given = [field for field in fields if field is not None]

        def request(values: dict[Any, Any]) -> Request:
            of: list[Any] = [None if field is None else values[field] for field in fields]
            return Request(way.way, *of)

        def canvas(image: str | None, source: str) -> Any:
            return self.actions.canvas(image, source)

        def found(image: str | None, source: str) -> Any:
            return self.actions.canvas(image, source) if source == FIND else gr.skip()

        def stage(values: dict[Any, Any]) -> Any:
            return self.actions.stage(request(values))

        def run(values: dict[Any, Any]) -> Any:
            asked = request(values), values[result.strength], values[result.keep], self.levels.get(values[result.level])
            now, previews, attention = self.actions.run(*asked, values[self.shown])
            return now, previews, attention, _ready(now), _later()

        painted = way.under if way.way == "edit" else way.image
        painted.change(self.alone(canvas), [painted, way.mask.source], way.mask.painted, **_PRIVATE)
        way.mask.source.input(self.alone(found), [painted, way.mask.source], way.mask.painted, **_PRIVATE)
        if way.stage is not None:
            events = [field.change for field in (way.image, way.under, *way.mask)]
            gr.on(events, self.alone(stage), set(given), way.stage, trigger_mode="always_last", **_PRIVATE)
        inputs = {*given, result.strength, result.keep, result.level, self.shown}
        outputs = [self.shown, result.slider, result.attention, result.download, result.layer]
        done = way.start.click(self.alone(run), inputs, outputs, **_PRIVATE)
        done.success(None, js=_TO_RESULT, **_PRIVATE)
        self._then_layer(done)

    def _connect_strength(self) -> None:
        """The preview at once, and then the files."""
        import gradio as gr

        result = self.result

        def adjust(now: Shown | None, strength: float, keep: str) -> Any:
            if now is None:
                return gr.skip(), gr.skip(), gr.skip()
            return self.actions.adjusted(now, strength, keep), _later(), _later()

        def finish(now: Shown | None, strength: float, keep: str) -> Any:
            if now is None:
                return gr.skip(), gr.skip(), gr.skip()
            now, previews = self.actions.finish(now, strength, keep)
            return now, previews, _ready(now)

        inputs = [self.shown, result.strength, result.keep]
        # Neither in the page's queue nor in its thread: a preview need not wait for the full size.
        changed = gr.on(
            [result.strength.input, result.keep.input], self.errors_shown(adjust), inputs,
            [result.slider, result.download, result.layer], trigger_mode="always_last", show_progress="hidden",
            concurrency_id="adjust", concurrency_limit=1, **_PRIVATE,
        )  # fmt: skip
        done = changed.success(
            self.alone(finish), inputs, [self.shown, result.slider, result.download], trigger_mode="always_last",
            show_progress="hidden", **_PRIVATE,
        )  # fmt: skip
        self._then_layer(done)

    def _then_layer(self, event: Any) -> None:
        import gradio as gr

        def layer(now: Shown | None) -> Any:
            path = None if now is None else self.actions.layer(now)
            return _later() if path is None else gr.DownloadButton(value=str(path), interactive=True)

        event.success(
            self.alone(layer), self.shown, self.result.layer, trigger_mode="always_last", show_progress="hidden",
            **_PRIVATE,
        )  # fmt: skip


def _ready(now: Shown) -> Any:
    import gradio as gr

    return gr.DownloadButton(value=str(now.result), interactive=True)


def _later() -> Any:
    """A download that is not there yet."""
    import gradio as gr

    return gr.DownloadButton(interactive=False)


def _middle_one(levels: list[str]) -> str | None:
    """The finest level's map is dotted, the coarsest one's says little."""
    return levels[(len(levels) - 1) // 2] if levels else None


def _description(attends: bool, max_megapixels: float) -> str:
    none = "" if attends else " This model has no BAIN, so there is no attention to show."
    return (
        f"Only the foreground's colours change; pixels outside of the mask stay as they are. Pictures of up to "
        f"{max_megapixels:g} megapixels stay on this server for at most {KEPT * 3 // 2 // 60} minutes.{none}"
    )
