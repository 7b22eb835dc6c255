"""Parts of the page that occur several times: pictures to upload, masks, and errors in one line."""

import contextvars
import functools
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from scsco_fast.demo.painting import SCRIPT, STYLE, TEMPLATE
from scsco_fast.demo.requests import FIND, OWN, PAINT, UPLOAD, Way
from scsco_fast.errors import ScscoError

MOST_GROWTH = 50  # pixels

# What the command line offers, in the words of the page.
_WORDS = {
    " (--invert-mask)": ' (tick "Invert the mask")',
    ", or --fit-mask to resize it": "",
    ", or raise --max-megapixels if there is memory for it": "",
}

_log = logging.getLogger("scsco_fast")


class MaskFields(NamedTuple):
    """The fields by which a mask is given."""

    source: Any
    uploaded: Any
    painted: Any
    grow: Any
    invert: Any


def picture(label: str, name: str, height: int) -> Any:
    """A field for a picture file; what it gives is the file's path.

    Show and hide a column around it: gradio makes a new object of a field that is shown or hidden, and this one's
    `preprocess` would be lost.
    """
    import gradio as gr

    shown: dict[str, Any] = {"sources": ["upload", "clipboard"], "type": "filepath", "image_mode": None, "buttons": []}
    field = gr.Image(label=label, elem_id=name, height=height, **shown)
    # Gradio would open the file with every reader that Pillow has. It is this project that opens it, or refuses.
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def mask_fields(way: Way, name: str, label: str, finds: bool) -> MaskFields:
    """Where the mask of one way comes from, the mask, and what is done to it.

    Args:
        name: begins the elements' names.
        label: what is asked.
        finds: whether a network can find the mask.
    """
    import gradio as gr

    own = [OWN[way]] if way in OWN else []
    choices = [*own, UPLOAD, PAINT, *([FIND] if finds and way != "edit" else [])]
    source = gr.Radio(choices, value=choices[0], label=label, elem_id=f"{name}source")
    with gr.Column(visible=not own) as upload:
        uploaded = picture("Mask (white: foreground)", f"{name}mask", 220)
    painted = gr.HTML(
        html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, apply_default_css=False, container=True,
        padding=True, elem_id=f"{name}painted", visible="hidden",
    )  # fmt: skip
    with gr.Row():
        grow = gr.Slider(
            -MOST_GROWTH, MOST_GROWTH, 0, step=1, label="Grow mask (pixels)",
            elem_id=f"{name}grow", min_width=220, buttons=["reset"],
        )  # fmt: skip
        invert = gr.Checkbox(label="Invert the mask", elem_id=f"{name}invert", min_width=160)
    source.change(
        lambda chosen: (gr.update(visible=chosen == UPLOAD), gr.update(visible=chosen in (PAINT, FIND) or "hidden")),
        source, [upload, painted], api_visibility="private",
    )  # fmt: skip
    return MaskFields(source, uploaded, painted, grow, invert)


def in_thread(worker: ThreadPoolExecutor, action: Callable[..., Any]) -> Callable[..., Any]:
    """The action, carried out by a worker's thread: that of the page, for one at a time.

    Gradio's own threads take turns, and the C library keeps memory for each of them: 2.1 GB instead of 1.2 GB after
    ten pictures of 12 megapixels. Nor may two of them change at once which warnings are recorded.
    """

    @functools.wraps(action)
    def there(*arguments: Any) -> Any:
        return worker.submit(contextvars.copy_context().run, action, *arguments).result()

    return there


def errors_shown(action: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The action, with its errors shown in the page in one line that names files as the visitor does.

    Args:
        folder: where all files of visitors are.
    """
    import gradio as gr

    @functools.wraps(action)
    def wrapped(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except ScscoError as error:
            text = in_the_page(str(error), folder)
        except MemoryError:
            text = "not enough memory for this picture; make it smaller"
        except Exception:
            _log.exception("the page could not do what was asked")
            text = "the server failed at this; its log says how"
        raise gr.Error(text, duration=None, print_exception=False, title="Not possible")

    return wrapped


def warn(text: str, folder: Path) -> None:
    """Show a warning until it is closed."""
    import gradio as gr

    gr.Warning(in_the_page(text, folder), duration=None)


def in_the_page(text: str, folder: Path) -> str:
    """A message in one line, with the names that the visitor's files have, and the page's words for options.

    Examples:
        >>> in_the_page("uploads/a1/cat.png: is 4x4; give another,\\n or --fit-mask to resize it", Path("uploads"))
        'cat.png: is 4x4; give another'
    """
    line = " ".join(text.split())
    for option, words in _WORDS.items():
        line = line.replace(option, words)
    return re.sub(rf"{re.escape(str(folder))}/(?:[^/\s]+/)*", "", line)
