"""Images on which the GIMP plug-in is tried, built by GIMP's API: its own or the fake's; and what has to come of them.

GIMP 3 runs this file as it is (`run_in_gimp`), in a Python without numpy and pytest.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

# Each image is background.png (60x40, opaque); most have object.png (20x16, alpha 255, 128 and 0) at 8, 10.
AT = (8, 10)


class Studio:
    """Makes images of the pictures in a folder."""

    def __init__(self, gimp: Any, gio: Any, folder: Path) -> None:
        self.gimp, self.gio, self.folder = gimp, gio, folder

    def image(self, name: str = "background.png") -> Any:
        image = self.gimp.file_load(self.gimp.RunMode.NONINTERACTIVE, self._file(name))
        image.get_layers()[0].set_name(name.split(".")[0])
        return image

    def add(self, image: Any, name: str = "object.png", at: tuple[int, int] = AT, parent: Any = None) -> Any:
        layer = self.gimp.file_load_layer(self.gimp.RunMode.NONINTERACTIVE, image, self._file(name))
        layer.set_name(name.split(".")[0])
        image.insert_layer(layer, parent, 0)
        layer.set_offsets(*at)
        return layer

    def group(self, image: Any, name: str, parent: Any = None) -> Any:
        group = self.gimp.GroupLayer.new(image, name)
        image.insert_layer(group, parent, 0)
        return group

    def select(self, image: Any, x: int, y: int, width: int, height: int) -> None:
        image.select_rectangle(self.gimp.ChannelOps.REPLACE, x, y, width, height)

    def mask(self, layer: Any) -> Any:
        """The layer's mask, made of the selection, which stays."""
        mask = layer.create_mask(self.gimp.AddMaskType.SELECTION)
        layer.add_mask(mask)
        return mask

    def _file(self, name: str) -> Any:
        return self.gio.File.new_for_path(str(self.folder / name))


def plain(studio: Studio) -> Any:
    """What lies above the object is not seen by the network."""
    image = studio.image()
    layer = studio.add(image)
    studio.add(image, "top.png", (0, 0))
    return image, [layer]


def hidden(studio: Studio) -> Any:
    """The active layer is shown even if it is hidden; others are not."""
    image = studio.image()
    studio.add(image, "top.png", (0, 0)).set_visible(False)
    layer = studio.add(image)
    layer.set_visible(False)
    return image, [layer]


def in_groups(studio: Studio) -> Any:
    """A group in a group; layers lie above the object in both, and below it."""
    image = studio.image()
    outer = studio.group(image, "outer group")
    studio.add(image, "below.png", (30, 20), outer)
    inner = studio.group(image, "inner group", outer)
    layer = studio.add(image, parent=inner)
    studio.add(image, "top.png", (0, 0), inner)
    studio.add(image, "higher.png", (10, 10), outer)
    studio.add(image, "highest.png", (20, 20))
    inner.set_visible(False)
    return image, [layer]


def selected(studio: Studio) -> Any:
    """A picture of one layer, with the pasted part selected."""
    image = studio.image()
    studio.select(image, 5, 6, 20, 10)
    return image, image.get_layers()


def masked(studio: Studio) -> Any:
    """A layer mask within a selection; the mask is what is being edited."""
    image = studio.image()
    layer = studio.add(image)
    studio.select(image, 8, 10, 12, 16)
    mask = studio.mask(layer)
    studio.select(image, 10, 0, 30, 40)
    return image, [mask]


def mask_off(studio: Studio) -> Any:
    """A layer mask that is switched off."""
    image = studio.image()
    layer = studio.add(image)
    studio.select(image, 8, 10, 4, 4)
    studio.mask(layer)
    layer.set_apply_mask(False)
    studio.select(image, 0, 0, 60, 40)
    return image, [layer]


def beyond(studio: Studio) -> Any:
    """A layer that reaches beyond the picture."""
    image = studio.image()
    return image, [studio.add(image, at=(-6, 30))]


def on_nothing(studio: Studio) -> Any:
    """The background is hidden: all around the object is transparent."""
    image = studio.image()
    image.get_layers()[0].set_visible(False)
    return image, [studio.add(image)]


def small(studio: Studio) -> Any:
    """The same, with an object that has no alpha channel."""
    image = studio.image()
    image.get_layers()[0].set_visible(False)
    return image, [studio.add(image, "below.png", (5, 6))]


def linear(studio: Studio) -> Any:
    """Eight linear bits for each value, which loses dark ones; scsco gets those of sRGB."""
    image = studio.image()
    layer = studio.add(image)
    image.convert_precision(studio.gimp.Precision.U8_LINEAR)
    return image, [layer]


def whole(studio: Studio) -> Any:
    image = studio.image()
    return image, image.get_layers()


def outside(studio: Studio) -> Any:
    image = studio.image()
    layer = studio.add(image)
    studio.select(image, 40, 0, 10, 10)
    return image, [layer]


def two(studio: Studio) -> Any:
    image = studio.image()
    return image, [studio.add(image), image.get_layers()[1]]


def channel(studio: Studio) -> Any:
    image = studio.image()
    studio.select(image, 40, 0, 10, 10)
    return image, [studio.gimp.Selection.save(image)]


DONE = (plain, hidden, in_groups, selected, masked, mask_off, beyond, on_nothing, small, linear)
REFUSED = {
    whole: "the layer covers the whole picture; select what was pasted, or cut it out first",
    outside: "nothing of the layer is inside of the picture and the selection; there is no foreground",
    two: "2 layers are active; choose the one to harmonize",
    channel: "a channel is active; choose the layer to harmonize",
}


def tree(items: Any) -> list[Any]:
    """Names of layers, the top one first; a group is a pair of its name and what is in it."""
    return [
        [item.get_name(), tree(item.get_children())] if "group" in item.get_name() else item.get_name()
        for item in items
    ]


def run_in_gimp() -> None:
    """Inside of GIMP: run the plug-in on each case, and write what became of it. The environment names the folder."""
    from gi.repository import Gimp, Gio

    folder = Path(os.environ["SCSCO_GIMP_CASES"])
    studio = Studio(Gimp, Gio, folder)
    found: dict[str, Any] = {}
    for case in (*DONE, *REFUSED):
        image, drawables = case(studio)
        procedure = Gimp.get_pdb().lookup_procedure("plug-in-scsco-harmonize")
        config = procedure.create_config()
        config.set_property("run-mode", Gimp.RunMode.NONINTERACTIVE)
        config.set_property("image", image)
        config.set_core_object_array("drawables", drawables)
        config.set_property("strength", 0.5)
        config.set_property("grow", -2)
        config.set_property("keep", "luma")
        status = procedure.run(config).index(0)
        found[case.__name__] = {
            "status": status.value_nick,
            "error": Gimp.get_pdb().get_last_error(),
            "layers": tree(image.get_layers()),
        }
        for layer in image.get_layers():
            if layer.get_name().endswith("harmonized"):
                copy = image.duplicate()
                for other in copy.get_layers():
                    other.set_visible(other.get_name().endswith("harmonized"))
                Gimp.file_save(
                    Gimp.RunMode.NONINTERACTIVE, copy, Gio.File.new_for_path(str(folder / f"{case.__name__}.layer.png"))
                )
                copy.delete()
        image.delete()
    found["api"] = {name: _arguments(name) for name in json.loads((folder / "api.json").read_text())}
    (folder / "found.json").write_text(json.dumps(found))


def _arguments(name: str) -> str | None:
    """The arguments of something in GIMP's API, as its introspection says them; None where it is not there."""
    import gi

    gi.require_version("GimpUi", "3.0")
    first, *parts = name.split(".")
    where: Any = importlib.import_module(f"gi.repository.{first}")
    for part in parts:
        where = getattr(where, part, None)
    return None if where is None else str(where.__doc__)
