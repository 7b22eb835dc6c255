"""The cut-out on its background, to be dragged: what the browser is sent, its script, and what it answers.

The browser sees previews, and counts in pixels of the background at full size.
"""

from typing import Any

import numpy as np
from PIL import Image

from scsco_fast.data.photos import shrink
from scsco_fast.demo.previews import PREVIEW, jpeg_uri, png_uri
from scsco_fast.errors import ScscoError

_FARTHEST = 10**6  # pixels

TEMPLATE = """
<div class="stage" tabindex="0" role="group" aria-label="The cut-out on its background. Drag it, or move it with the
arrow keys; plus and minus scale it.">
  <img class="behind" alt="background" draggable="false"><img class="front" alt="cut-out" draggable="false">
</div>
<p class="hint">Once a cut-out and a background are there, drag the one over the other here.</p>
<div class="numbers">
  <label>x <input name="x" type="number" step="1"></label>
  <label>y <input name="y" type="number" step="1"></label>
  <label class="wide">Scale <input name="slider" type="range" step="0.01" aria-label="Scale"></label>
  <input name="scale" type="number" step="any" aria-label="Scale, as a number">
</div>
<p class="where"></p>
"""

STYLE = """
.stage { position: relative; overflow: hidden; margin: 0 auto; border-radius: 4px; outline-offset: 2px; }
.stage img { position: absolute; max-width: none; user-select: none; -webkit-user-drag: none; margin: 0; }
.stage .behind { left: 0; top: 0; width: 100%; height: 100%; }
.stage .front { cursor: grab; touch-action: none; }
.stage .front:active { cursor: grabbing; }
.stage:hover .front, .stage:focus .front { outline: 1px dashed #fff; box-shadow: 0 0 0 1px #0008; }
.stage:focus-visible { outline: 2px solid var(--color-accent); }
.hint { color: var(--body-text-color-subdued); text-align: center; padding: 2.5rem 1rem; margin: 0;
  border: 1px dashed var(--border-color-primary); border-radius: 4px; }
.where { color: var(--body-text-color-subdued); font-size: var(--text-sm); margin: 0.4rem 0 0; }
.numbers { display: flex; flex-wrap: wrap; gap: 0.6rem; align-items: center; margin-top: 0.7rem; }
.numbers label { display: flex; gap: 0.4rem; align-items: center; }
.numbers .wide { flex: 1 1 9rem; }
.numbers input[type=range] { flex: 1; min-width: 5rem; accent-color: var(--primary-600); }
.numbers input[type=number] { width: 5.2rem; padding: 0.3rem 0.4rem; border-radius: 4px; color: inherit;
  border: 1px solid var(--border-color-primary); background: var(--input-background-fill); }
"""

# `value` comes with the pictures and goes back without them: {x, y, scale}. Sides are [width, height].
SCRIPT = """
const one = selector => element.querySelector(selector), input = name => one(`[name=${name}]`);
const stage = one(".stage"), front = one(".front"), HEIGHT = 420;
let now = null;  // {size: the background's sides, cut: the cut-out's, x, y, scale}

const within = (value, low, high) => Math.min(Math.max(value, low), high);
const sides = () => now.cut.map(side => Math.max(1, Math.round(side * now.scale)));

function draw() {
  const [width, height] = now.size, [w, h] = sides();
  Object.assign(front.style, {
    left: `${100 * now.x / width}%`, top: `${100 * now.y / height}%`,
    width: `${100 * w / width}%`, height: `${100 * h / height}%`,
  });
  Object.assign(input("x"), {value: now.x});
  Object.assign(input("y"), {value: now.y});
  Object.assign(input("slider"), {value: Math.log2(now.scale)});
  Object.assign(input("scale"), {value: Number(now.scale.toPrecision(3))});
  one(".where").textContent =
    `${w} x ${h} pixels, its upper left corner at ${now.x}, ${now.y} of the background's ${width} x ${height}`;
}

function tell() { props.value = {x: now.x, y: now.y, scale: now.scale}; }

function move(x, y) {  // some of it stays inside
  const [width, height] = now.size, [w, h] = sides(), rest = Math.ceil(Math.min(width, height) / 50);
  now.x = Math.round(within(x, Math.min(rest, w) - w, width - rest));
  now.y = Math.round(within(y, Math.min(rest, h) - h, height - rest));
  draw();
}

function resize(scale) {  // its middle stays
  const [w, h] = sides(), middle = [now.x + w / 2, now.y + h / 2];
  now.scale = within(scale || 1, 0.001, 100);
  const [newWidth, newHeight] = sides();
  move(middle[0] - newWidth / 2, middle[1] - newHeight / 2);
}

function show(value) {
  if (value && !value.background) return;  // this script's own answer
  for (const part of [stage, one(".numbers"), one(".where")]) part.style.display = value ? "" : "none";
  one(".hint").style.display = value ? "none" : "";
  if (!value) { now = null; return; }
  one(".behind").src = value.background;
  front.src = value.cutout;
  const [width, height] = value.size, [w, h] = value.cut;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.width = `min(100%, ${HEIGHT * width / height}px)`;
  if (!now || String([now.size, now.cut]) !== String([value.size, value.cut])) {
    const scale = Number(Math.min(1, 0.8 * width / w, 0.8 * height / h).toPrecision(2));
    now = {size: value.size, cut: value.cut, x: 0, y: 0, scale};
    Object.assign(input("slider"), {min: Math.log2(scale / 8), max: Math.log2(scale * 8)});
    now.x = Math.round((width - sides()[0]) / 2);
    now.y = Math.round((height - sides()[1]) / 2);
  }
  draw();
  tell();
}

let grip = null;  // where the pointer took hold
front.addEventListener("pointerdown", event => {
  front.setPointerCapture(event.pointerId);
  grip = {id: event.pointerId, left: event.clientX, top: event.clientY, x: now.x, y: now.y};
  stage.focus({preventScroll: true});
  event.preventDefault();
});
front.addEventListener("pointermove", event => {
  if (!grip || grip.id !== event.pointerId) return;
  const scale = now.size[0] / Math.max(stage.clientWidth, 1);  // of the background's pixels to the screen's
  move(grip.x + (event.clientX - grip.left) * scale, grip.y + (event.clientY - grip.top) * scale);
});
for (const end of ["pointerup", "pointercancel"]) {
  front.addEventListener(end, event => { if (grip && grip.id === event.pointerId) { grip = null; tell(); } });
}
stage.addEventListener("keydown", event => {
  const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  const step = steps[event.key], by = event.shiftKey ? 10 : 1;
  if (step) move(now.x + by * step[0], now.y + by * step[1]);
  else if (event.key === "+" || event.key === "-") resize(now.scale * (event.key === "+" ? 1.05 : 1 / 1.05));
  else return;
  tell();
  event.preventDefault();
});
for (const name of ["x", "y"]) {
  input(name).addEventListener("change", () => {
    move(Number(input("x").value) || 0, Number(input("y").value) || 0);
    tell();
  });
}
input("slider").addEventListener("input", () => { resize(2 ** Number(input("slider").value)); tell(); });
input("scale").addEventListener("change", () => { resize(Number(input("scale").value)); tell(); });
watch("value", () => show(props.value));
show(props.value);
"""


def stage_value(cutout: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> dict[str, Any]:
    """What the browser shows: previews as data URIs, and the sides of both pictures at full size, width first.

    Args:
        cutout: (h, w, 3) uint8.
        alpha: (h, w) float32 in [0, 1], how much of it is visible.
        background: (H, W, 3) uint8.
    """
    rgba = Image.fromarray(np.dstack([cutout, np.rint(alpha * 255).astype(np.uint8)]))
    rgba.thumbnail((PREVIEW, PREVIEW), Image.Resampling.BILINEAR)  # weighted by alpha: hidden colours bleed in nowhere
    return {
        "background": jpeg_uri(shrink(background, PREVIEW)),
        "cutout": png_uri(np.asarray(rgba)),
        "size": [background.shape[1], background.shape[0]],
        "cut": [cutout.shape[1], cutout.shape[0]],
    }


def read_place(value: Any) -> tuple[tuple[int, int], float]:
    """Where the cut-out lies, x and y in pixels of the background, and its scale, from what the browser answers.

    Raises:
        ScscoError: nothing has been placed, or what came is no place.

    Examples:
        >>> read_place({"x": 40, "y": -7, "scale": 0.5})
        ((40, -7), 0.5)
    """
    if value is None:
        raise ScscoError("the cut-out has no place yet; wait until it lies on its background")
    try:
        x, y, scale = int(value["x"]), int(value["y"]), float(value["scale"])
    except (TypeError, KeyError, ValueError, OverflowError):
        raise ScscoError("the cut-out's place cannot be read; load the page again") from None
    if max(abs(x), abs(y)) > _FARTHEST or not 0 < scale < _FARTHEST:
        raise ScscoError(f"the cut-out cannot lie at {x},{y} with scale {scale:g}; move it")
    return (x, y), scale
