"""A mask that is painted over a picture: what the browser is sent, its script, and what it answers.

The browser paints on a preview. Gradio's own editor is not used: it lays a mask that is there already at another place
(gradio 6.31), and opens what it is sent with every reader that Pillow has.
"""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from scsco_fast.demo.previews import PREVIEW, jpeg_uri, png_uri, resized
from scsco_fast.errors import ScscoError

_COLOUR = (255, 51, 85)
_LEAST_FOUND = 0.05  # saliency below this is no paint, so that the background is not tinted
_START = "data:image/png;base64,"

TEMPLATE = """
<p class="hint">Once the picture is there, paint over the foreground here.</p>
<div class="paper"><img class="picture" alt="picture to paint over" draggable="false"><canvas></canvas></div>
<div class="tools">
  <button type="button" class="mode" value="source-over" aria-pressed="true">Brush</button>
  <button type="button" class="mode" value="destination-out" aria-pressed="false">Eraser</button>
  <button type="button" class="undo">Undo</button>
  <button type="button" class="clear">Clear</button>
  <label>Size <input class="size" type="range" min="2" max="200" value="40" aria-label="Size"></label>
</div>
"""

STYLE = """
.paper { position: relative; margin: 0 auto; line-height: 0; }
.paper img { width: 100%; height: 100%; max-width: none; margin: 0; border-radius: 4px; user-select: none; }
.paper canvas { position: absolute; left: 0; top: 0; width: 100%; height: 100%; opacity: 0.6; touch-action: none;
  cursor: crosshair; }
.hint { color: var(--body-text-color-subdued); text-align: center; padding: 2.5rem 1rem; margin: 0;
  border: 1px dashed var(--border-color-primary); border-radius: 4px; }
.tools { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; margin-top: 0.7rem; }
.tools label { display: flex; flex: 1 1 8rem; gap: 0.4rem; align-items: center; }
.tools input { flex: 1; min-width: 4rem; accent-color: var(--primary-600); }
.tools button { padding: 0.2rem 0.5rem; border-radius: 4px; background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); border: 2px solid transparent; }
.tools [aria-pressed=true] { border-color: var(--color-accent); }
"""

# `value` comes with the picture and the paint that is there, and goes back as the paint alone: {painted}.
SCRIPT = """
const one = selector => element.querySelector(selector), HEIGHT = 420, MOST_UNDONE = 10;
const paper = one(".paper"), canvas = one("canvas"), paint = canvas.getContext("2d", {willReadFrequently: true});
const modes = [...element.querySelectorAll(".mode")];
let undone = [], stroke = null;  // the stroke: which pointer, and where it was last

function tell() { props.value = {painted: canvas.toDataURL("image/png")}; }
function keep() {
  undone = [...undone, paint.getImageData(0, 0, canvas.width, canvas.height)].slice(-MOST_UNDONE);
}

function show(value) {
  if (value && !value.picture) return;  // this script's own answer
  for (const part of [paper, one(".tools")]) part.style.display = value ? "" : "none";
  one(".hint").style.display = value ? "none" : "";
  undone = [];
  if (!value) return;
  const [width, height] = value.size;
  Object.assign(canvas, {width, height});  // which empties it
  one(".picture").src = value.picture;
  paper.style.aspectRatio = `${width} / ${height}`;
  paper.style.width = `min(100%, ${HEIGHT * width / height}px)`;
  if (!value.mask) { props.value = {painted: null}; return; }
  const mask = new Image();
  mask.onload = () => { paint.globalCompositeOperation = "source-over"; paint.drawImage(mask, 0, 0); tell(); };
  mask.src = value.mask;
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top].map(side => side * canvas.width / box.width);
}

function line(from, to) {
  const scale = canvas.width / canvas.clientWidth;
  paint.globalCompositeOperation = modes.find(mode => mode.ariaPressed === "true").value;
  Object.assign(paint, {lineCap: "round", strokeStyle: "COLOUR", lineWidth: one(".size").value * scale});
  paint.beginPath();
  paint.moveTo(...from);
  paint.lineTo(...to);
  paint.stroke();
}

canvas.addEventListener("pointerdown", event => {
  if (stroke) return;
  canvas.setPointerCapture(event.pointerId);
  keep();
  stroke = {id: event.pointerId, last: at(event)};
  line(stroke.last, stroke.last);
  event.preventDefault();
});
canvas.addEventListener("pointermove", event => {
  if (!stroke || stroke.id !== event.pointerId) return;
  const next = at(event);
  line(stroke.last, next);
  stroke.last = next;
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, event => { if (stroke && stroke.id === event.pointerId) { stroke = null; tell(); } });
}
for (const mode of modes) {
  mode.addEventListener("click", () => modes.forEach(other => { other.ariaPressed = String(other === mode); }));
}
one(".undo").addEventListener("click", () => {
  if (undone.length) { paint.putImageData(undone.pop(), 0, 0); tell(); }
});
one(".clear").addEventListener("click", () => { keep(); paint.clearRect(0, 0, canvas.width, canvas.height); tell(); });
watch("value", () => show(props.value));
show(props.value);
""".replace("COLOUR", f"rgb{_COLOUR}")


def painting_value(preview: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Any]:
    """What the browser shows to be painted over.

    Args:
        preview: (h, w, 3) uint8.
        mask: of any size, in [0, 1]: painted already; None is nothing.
    """
    height, width = preview.shape[:2]
    painted = None if mask is None else _paint(resized(mask, (height, width)))
    return {"picture": jpeg_uri(preview), "size": [width, height], "mask": painted}


def read_painted(value: Any) -> np.ndarray | None:
    """(h, w) uint8, 255 where it is painted, of what the browser answers; None where nothing is.

    Raises:
        ScscoError: no PNG, or larger than a preview.
    """
    sent = (value.get("painted") or value.get("mask")) if isinstance(value, dict) else None
    if sent is None:
        return None
    try:
        data = base64.b64decode(str(sent).removeprefix(_START), validate=True)
        # Of Pillow's readers only the one of what a browser's canvas writes.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            if max(opened.size) > PREVIEW:
                raise ValueError(opened.size)
            painted = np.asarray(opened.convert("RGBA").getchannel("A"))
    except (OSError, SyntaxError, ValueError) as error:
        wanted = f"wanted a PNG of at most {PREVIEW} pixels a side"
        raise ScscoError(f"what is painted cannot be read, {wanted}; paint it again") from error
    return painted if painted.any() else None


def _paint(mask: np.ndarray) -> str:
    alpha = np.where(mask < _LEAST_FOUND, 0, np.rint(mask * 255))
    return png_uri(np.dstack([np.full((*mask.shape, 3), _COLOUR), alpha]).astype(np.uint8))
