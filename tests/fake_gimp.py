"""The part of GIMP 3's Python API that the plug-in and its tests use, with real pixels and nothing else.

Written from GIMP's documentation (developer.gimp.org, libgimp 3.0). Whatever is not here is an AttributeError, and a
call with another number of arguments a TypeError; `test_gimp3.py` compares every name and its arguments with GIMP's
own, and what comes out with what GIMP gives, where a GIMP 3 is at hand.

`repository()` makes the modules that `gi.repository` holds.
"""

import enum
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow


class RunMode(enum.Enum):
    INTERACTIVE, NONINTERACTIVE = range(2)


class PDBStatusType(enum.Enum):
    EXECUTION_ERROR, CALLING_ERROR, PASS_THROUGH, SUCCESS, CANCEL = range(5)


class PDBProcType(enum.Enum):
    PLUGIN = 1


class ProcedureSensitivityMask(enum.Flag):
    DRAWABLE, DRAWABLES = 1, 4


class MergeType(enum.Enum):
    CLIP_TO_IMAGE = 1


class ChannelOps(enum.Enum):
    ADD, SUBTRACT, REPLACE, INTERSECT = range(4)


class Precision(enum.Enum):
    U8_LINEAR, U8_NON_LINEAR, U8_PERCEPTUAL, U16_LINEAR, U16_NON_LINEAR = 100, 150, 175, 200, 250


class MaskApplyMode(enum.Enum):
    APPLY, DISCARD = range(2)


class AddMaskType(enum.Enum):
    SELECTION = 4


class Item:
    """Anything in an image that has a name, a place and pixels: (h, w, 4) uint8 of a layer, (h, w) of a channel."""

    def __init__(self, image: "Image", name: str, pixels: np.ndarray, opaque: bool = False) -> None:
        self._image, self._name, self._pixels, self._opaque = image, name, pixels, opaque
        self._offsets, self._visible, self._parent = (0, 0), True, None

    def get_name(self) -> str:
        return self._name

    def set_name(self, name: str) -> bool:
        self._name = name
        return True

    def get_parent(self) -> "Layer | None":
        return self._parent

    def get_children(self) -> list["Layer"]:
        raise AssertionError(f"{self._name} is no group")

    def get_visible(self) -> bool:
        return self._visible

    def set_visible(self, visible: bool) -> bool:
        self._visible = visible
        return True

    def is_layer(self) -> bool:
        return isinstance(self, Layer)

    def is_layer_mask(self) -> bool:
        return isinstance(self, LayerMask)


class Drawable(Item):
    def get_width(self) -> int:
        return self._pixels.shape[1]

    def get_height(self) -> int:
        return self._pixels.shape[0]

    def has_alpha(self) -> bool:
        return not self._opaque

    def get_offsets(self) -> tuple[bool, int, int]:
        return True, *self._offsets


class Channel(Drawable):
    pass


class LayerMask(Channel):
    pass


class Layer(Drawable):
    _mask: LayerMask | None = None
    _apply_mask = True

    @staticmethod
    def from_mask(mask: LayerMask) -> "Layer":
        return next(layer for layer in mask._image._all() if layer._mask is mask)

    def set_offsets(self, offx: int, offy: int) -> bool:
        self._offsets = offx, offy
        return True

    def get_mask(self) -> LayerMask | None:
        return self._mask

    def create_mask(self, mask_type: AddMaskType) -> LayerMask:
        assert mask_type is AddMaskType.SELECTION
        return LayerMask(self._image, f"{self._name} mask", self._own_part(self._image._selected()))

    def add_mask(self, mask: LayerMask) -> bool:
        self._mask = mask
        return True

    def get_apply_mask(self) -> bool:
        return self._apply_mask

    def set_apply_mask(self, apply_mask: bool) -> bool:
        self._apply_mask = apply_mask
        return True

    def remove_mask(self, mode: MaskApplyMode) -> bool:
        assert self._mask is not None
        if mode is MaskApplyMode.APPLY:  # also of a mask that is switched off
            self._apply_mask = True
            self._pixels[..., 3] = self._seen_alpha()
        self._mask = None
        return True

    def add_alpha(self) -> bool:
        self._opaque = False
        return True

    def resize_to_image_size(self) -> bool:
        self._pixels, self._offsets = self._at_image_size(self._pixels), (0, 0)
        if self._opaque:
            self._pixels[..., 3] = 255  # GIMP fills with the background's colour
        return True

    def _seen_alpha(self) -> np.ndarray:
        """(h, w) uint8: alpha times the layer mask."""
        alpha = self._pixels[..., 3]
        if self._mask is None or not self._apply_mask:
            return alpha
        return np.rint(alpha / 255.0 * self._mask._pixels).astype(np.uint8)

    def _box(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the layer and the image overlap: in the image, and in the layer."""
        ranges = []
        for start, length, whole in zip(
            self._offsets[::-1], self._pixels.shape[:2], (self._image._height, self._image._width), strict=True
        ):
            low, high = min(max(start, 0), whole), min(max(start + length, 0), whole)
            ranges.append((slice(low, high), slice(low - start, high - start)))
        (rows, own_rows), (columns, own_columns) = ranges
        return (rows, columns), (own_rows, own_columns)

    def _at_image_size(self, values: np.ndarray) -> np.ndarray:
        whole = np.zeros((self._image._height, self._image._width, *values.shape[2:]), np.uint8)
        inside, own = self._box()
        whole[inside] = values[own]
        return whole

    def _own_part(self, values: np.ndarray) -> np.ndarray:
        part = np.zeros(self._pixels.shape[:2], np.uint8)
        inside, own = self._box()
        part[own] = values[inside]
        return part


class GroupLayer(Layer):
    @staticmethod
    def new(image: "Image", name: str) -> "GroupLayer":
        group = GroupLayer(image, name, np.zeros((1, 1, 4), np.uint8))
        group._children = []
        return group

    def get_children(self) -> list[Layer]:
        return list(self._children)


class Image:
    """Layers, the top one first, and a selection: (H, W) uint8, or None for none."""

    images = 0  # that were made and not deleted

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._layers: list[Layer] = []
        self._selection: np.ndarray | None = None
        self._precision = Precision.U8_NON_LINEAR
        self.history: list[str] = []
        Image.images += 1

    def get_width(self) -> int:
        return self._width

    def get_height(self) -> int:
        return self._height

    def get_layers(self) -> list[Layer]:
        return list(self._layers)

    def get_precision(self) -> Precision:
        return self._precision

    def convert_precision(self, precision: Precision) -> bool:
        assert precision is not self._precision, "GIMP refuses this"
        self._precision = precision
        return True

    def get_floating_sel(self) -> Layer | None:
        return None

    def get_selection(self) -> "Selection":
        return Selection(self, "selection", self._selected())

    def get_item_position(self, item: Item) -> int:
        return self._beside(item._parent).index(item)

    def insert_layer(self, layer: Layer, parent: Layer | None, position: int) -> bool:
        layer._parent = parent
        self._beside(parent).insert(position, layer)
        self.history.append(f"insert {layer._name}")
        return True

    def duplicate(self) -> "Image":
        copy = Image(self._width, self._height)
        copy._layers = [_copied(layer, copy, None) for layer in self._layers]
        copy._precision = self._precision
        copy._selection = None if self._selection is None else self._selection.copy()
        return copy

    def delete(self) -> bool:
        Image.images -= 1
        return True

    def select_rectangle(self, operation: ChannelOps, x: float, y: float, width: float, height: float) -> bool:
        rectangle = np.zeros((self._height, self._width), np.uint8)
        rectangle[int(y) : int(y + height), int(x) : int(x + width)] = 255
        return self._select(operation, rectangle)

    def select_item(self, operation: ChannelOps, item: Item) -> bool:
        if isinstance(item, Layer):
            return self._select(operation, item._at_image_size(item._pixels[..., 3]))
        return self._select(operation, item._pixels)

    def merge_visible_layers(self, merge_type: MergeType) -> Layer:
        assert merge_type is MergeType.CLIP_TO_IMAGE
        shown = list(_shown(self._layers))
        merged = Layer(self, shown[-1]._name, np.zeros((self._height, self._width, 4), np.uint8))
        for layer in reversed(shown):
            over, alpha = layer._at_image_size(layer._pixels), layer._at_image_size(layer._seen_alpha())
            where = alpha > 127  # tests compare soft edges with nothing
            merged._pixels[where] = np.dstack([over[..., :3], np.full_like(alpha, 255)])[where]
        boxes = [layer._box()[0] for layer in shown]
        rows, columns = (
            slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in (0, 1)
        )
        merged._pixels, merged._offsets = merged._pixels[rows, columns], (columns.start, rows.start)
        merged._opaque = shown[-1]._opaque
        self._layers = [merged]
        return merged

    def undo_group_start(self) -> bool:
        self.history.append("start")
        return True

    def undo_group_end(self) -> bool:
        self.history.append("end")
        return True

    def _all(self) -> Iterator[Layer]:
        waiting = list(self._layers)
        while waiting:
            layer = waiting.pop()
            yield layer
            waiting += layer._children if isinstance(layer, GroupLayer) else []

    def _beside(self, parent: Layer | None) -> list[Any]:
        return self._layers if parent is None else parent._children  # type: ignore[attr-defined]

    def _selected(self) -> np.ndarray:
        return np.full((self._height, self._width), 255, np.uint8) if self._selection is None else self._selection

    def _select(self, operation: ChannelOps, values: np.ndarray) -> bool:
        assert operation in (ChannelOps.REPLACE, ChannelOps.INTERSECT)
        self._selection = values if operation is ChannelOps.REPLACE else np.minimum(self._selected(), values)
        return True


def _copied(layer: Layer, image: Image, parent: Layer | None) -> Layer:
    copy = type(layer)(image, f"{layer._name} copy", layer._pixels.copy(), layer._opaque)
    copy._offsets, copy._visible, copy._parent = layer._offsets, layer._visible, parent
    copy._apply_mask = layer._apply_mask
    if layer._mask is not None:
        copy._mask = LayerMask(image, layer._mask._name, layer._mask._pixels.copy())
    if isinstance(layer, GroupLayer):
        copy._children = [_copied(child, image, copy) for child in layer._children]  # type: ignore[attr-defined]
    return copy


def _shown(layers: list[Layer]) -> Iterator[Layer]:
    for layer in layers:
        if layer._visible:
            yield from _shown(layer._children) if isinstance(layer, GroupLayer) else [layer]


class Selection(Channel):
    """Of all drawables only this one's pixels are read: those of others depend on the image's precision."""

    def get_buffer(self) -> "Buffer":
        return Buffer(self._pixels)

    @staticmethod
    def is_empty(image: Image) -> bool:
        return image._selection is None

    @staticmethod
    def save(image: Image) -> Channel:
        return Channel(image, "selection", image._selected().copy())


class Buffer:
    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def get(self, rectangle: "Rectangle", scale: float, format_name: str, repeat_mode: "AbyssPolicy") -> bytes:
        assert (scale, format_name, repeat_mode) == (1.0, "Y u8", AbyssPolicy.NONE)
        height, width = self._values.shape
        assert rectangle == (0, 0, width, height)
        return self._values.tobytes()


class Rectangle(tuple):  # type: ignore[type-arg]
    @staticmethod
    def new(x: int, y: int, width: int, height: int) -> "Rectangle":
        return Rectangle((x, y, width, height))


class AbyssPolicy(enum.Enum):
    NONE = 0


class File:
    def __init__(self, path: str) -> None:
        self._path = Path(path)

    @staticmethod
    def new_for_path(path: str) -> "File":
        return File(path)


def file_load(run_mode: RunMode, file: File) -> Image:
    assert run_mode is RunMode.NONINTERACTIVE
    with Pillow.open(file._path) as opened:
        image = Image(*opened.size)
    image.insert_layer(file_load_layer(run_mode, image, file), None, 0)
    return image


def file_load_layer(run_mode: RunMode, image: Image, file: File) -> Layer | None:
    assert run_mode is RunMode.NONINTERACTIVE
    try:
        with Pillow.open(file._path) as opened:
            return Layer(image, file._path.name, np.array(opened.convert("RGBA")), opened.mode in ("RGB", "L"))
    except OSError:
        return None


def file_save(run_mode: RunMode, image: Image, file: File, options: None) -> bool:
    assert run_mode is RunMode.NONINTERACTIVE
    (layer,) = image._layers
    assert (layer.get_width(), layer.get_height()) == (image._width, image._height), "GIMP would write the layer alone"
    assert image._precision in (Precision.U8_NON_LINEAR, Precision.U16_NON_LINEAR), "of 8 linear bits GIMP writes noise"
    Pillow.fromarray(layer._pixels).convert("RGB" if layer._opaque else "RGBA").save(file._path)
    return True


def progress_init(message: str) -> bool:
    assert message
    return True


def displays_flush() -> bool:
    return True


def init(prog_name: str) -> None:
    """GimpUi.init."""


class Error(Exception):
    """GLib.Error."""

    def __init__(self, message: str = "unknown error") -> None:
        super().__init__(message)
        self.message = message


class Choice:
    def __init__(self) -> None:
        self.nicks: list[str] = []

    @staticmethod
    def new() -> "Choice":
        return Choice()

    def add(self, nick: str, id: int, label: str, help: str) -> None:
        assert id == len(self.nicks)
        assert label
        self.nicks.append(nick)


class ImageProcedure:
    """A procedure: what it is called with, and what it told GIMP of itself."""

    @staticmethod
    def new(plug_in: Any, name: str, proc_type: PDBProcType, run_func: Any, run_data: Any) -> "ImageProcedure":
        assert isinstance(plug_in, PlugIn)
        procedure = ImageProcedure()
        procedure.name, procedure.run, procedure.facts, procedure.defaults = name, run_func, {}, {}
        return procedure

    def set_image_types(self, image_types: str) -> None:
        self.facts["image types"] = image_types

    def set_sensitivity_mask(self, sensitivity_mask: ProcedureSensitivityMask) -> None:
        self.facts["sensitivity"] = sensitivity_mask

    def set_documentation(self, blurb: str, help: str, help_id: str) -> None:
        self.facts["documentation"] = (blurb, help, help_id)

    def set_menu_label(self, menu_label: str) -> None:
        self.facts["label"] = menu_label

    def add_menu_path(self, menu_path: str) -> None:
        self.facts["menu"] = menu_path

    def set_attribution(self, authors: str, copyright: str, date: str) -> None:
        self.facts["attribution"] = (authors, copyright, date)

    def add_double_argument(
        self, name: str, nick: str, blurb: str, min: float, max: float, value: float, flags: int
    ) -> None:
        assert min <= value <= max
        self.defaults[name] = value

    def add_int_argument(self, name: str, nick: str, blurb: str, min: int, max: int, value: int, flags: int) -> None:
        assert min <= value <= max
        self.defaults[name] = value

    def add_choice_argument(self, name: str, nick: str, blurb: str, choice: Choice, value: str, flags: int) -> None:
        assert value in choice.nicks
        self.defaults[name] = value

    def add_string_argument(self, name: str, nick: str, blurb: str, value: str, flags: int) -> None:
        self.defaults[name] = value

    def new_return_values(self, status: PDBStatusType, error: Error) -> tuple[PDBStatusType, str]:
        assert isinstance(error, Error)
        return status, error.message


class ProcedureConfig:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def get_property(self, property_name: str) -> Any:
        return self._values[property_name]


class PlugIn:
    def __init_subclass__(cls) -> None:
        cls.__gtype__ = cls  # type: ignore[attr-defined]


class ProcedureDialog:
    """A dialog that is answered with `answer`."""

    answer = True
    shown = 0

    @staticmethod
    def new(procedure: ImageProcedure, config: ProcedureConfig, title: str) -> "ProcedureDialog":
        assert title
        return ProcedureDialog()

    def fill(self, properties: None) -> None:
        ProcedureDialog.shown += 1

    def run(self) -> bool:
        return ProcedureDialog.answer

    def destroy(self) -> None:
        ProcedureDialog.shown -= 1


def repository() -> dict[str, types.ModuleType]:
    """`gi` and `gi.repository`; what is given to `Gimp.main` is kept as `Gimp.started`."""
    gimp = _module(
        "Gimp",
        *(
            RunMode,
            PDBStatusType,
            PDBProcType,
            ProcedureSensitivityMask,
            MergeType,
            ChannelOps,
            MaskApplyMode,
            Precision,
        ),
        *(AddMaskType, Item, Drawable, Channel, LayerMask, Layer, GroupLayer, Image, Selection, Choice),
        *(ImageProcedure, ProcedureConfig, PlugIn, file_load, file_load_layer, file_save),
        *(progress_init, displays_flush),
    )
    gimp.main = lambda plug_in_type, argv: setattr(gimp, "started", plug_in_type)
    parts = {
        "Gimp": gimp,
        "GimpUi": _module("GimpUi", ProcedureDialog, init),
        "Gegl": _module("Gegl", Rectangle, AbyssPolicy),
        "Gio": _module("Gio", File),
        "GLib": _module("GLib", Error),
        "GObject": _module("GObject"),
    }
    parts["GObject"].ParamFlags = types.SimpleNamespace(READWRITE=3)
    found = _module("gi.repository")
    for name, part in parts.items():
        setattr(found, name, part)
    top = _module("gi")
    versions = {"Gimp": "3.0", "GimpUi": "3.0", "Gegl": "0.4"}
    top.require_version = lambda name, version: _same(versions[name], version)
    top.repository = found
    return {"gi": top, "gi.repository": found}


def _same(wanted: str, given: str) -> None:
    assert wanted == given


def _module(name: str, *members: Any) -> Any:
    module = types.ModuleType(name)
    for member in members:
        setattr(module, member.__name__, member)
    return module
