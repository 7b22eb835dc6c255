#!/usr/bin/env python3
"""Harmonize a layer: a plug-in for GIMP 3 that recolours the active layer until it looks as if it belonged there.

Filters > SCS-Co > Harmonize layer... The picture as it is up to the active layer, and the layer's opacity as a mask,
are written to temporary files; scsco (`scsco_core`) makes a layer of them, which is put above the active one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gi
import scsco_core

gi.require_version("Gegl", "0.4")
gi.require_version("Gimp", "3.0")
gi.require_version("GimpUi", "3.0")
from gi.repository import Gegl, Gimp, GimpUi, Gio, GLib, GObject  # noqa: E402

PROCEDURE = "plug-in-scsco-harmonize"
MENU = "<Image>/Filters/SCS-Co"
LABELS = {"nothing": "Nothing", "luma": "Its brightness", "colour": "Its colour"}


def run(
    procedure: Gimp.Procedure,
    run_mode: Gimp.RunMode,
    image: Gimp.Image,
    drawables: list[Gimp.Drawable],
    config: Gimp.ProcedureConfig,
    data: Any,
) -> Gimp.ValueArray:
    """What GIMP calls. It shows a mistake as a message of one line."""
    if run_mode == Gimp.RunMode.INTERACTIVE and not confirmed(procedure, config):
        return procedure.new_return_values(Gimp.PDBStatusType.CANCEL, GLib.Error())
    settings = scsco_core.Settings(
        strength=config.get_property("strength"),
        grow=config.get_property("grow"),
        keep=config.get_property("keep"),
        program=config.get_property("program") or "",
    )
    Gimp.progress_init("Harmonizing")
    try:
        harmonize(image, active_layer(image, drawables), settings)
    except scsco_core.HarmonizeError as error:
        return procedure.new_return_values(Gimp.PDBStatusType.EXECUTION_ERROR, GLib.Error(str(error)))
    Gimp.displays_flush()
    return procedure.new_return_values(Gimp.PDBStatusType.SUCCESS, GLib.Error())


def confirmed(procedure: Gimp.Procedure, config: Gimp.ProcedureConfig) -> bool:
    """Show the dialog, which changes `config`; whether the user went on."""
    GimpUi.init(PROCEDURE)
    dialog = GimpUi.ProcedureDialog.new(procedure, config, "Harmonize layer")
    dialog.fill(None)
    answer = dialog.run()
    dialog.destroy()
    return answer


def active_layer(image: Gimp.Image, drawables: list[Gimp.Drawable]) -> Gimp.Layer:
    """The one layer that is active; where its mask is edited, its layer."""
    if len(drawables) != 1:
        raise scsco_core.HarmonizeError(f"{len(drawables)} layers are active; choose the one to harmonize")
    if image.get_floating_sel() is not None:
        raise scsco_core.HarmonizeError("there is a floating selection; anchor it, or make a layer of it, first")
    if drawables[0].is_layer_mask():
        return Gimp.Layer.from_mask(drawables[0])
    if not drawables[0].is_layer():
        raise scsco_core.HarmonizeError("a channel is active; choose the layer to harmonize")
    return drawables[0]


def harmonize(image: Gimp.Image, layer: Gimp.Layer, settings: scsco_core.Settings) -> None:
    """Put the recoloured foreground above the layer, as one step of the history."""
    with scsco_core.temporary_folder() as folder:
        picture, mask, result = (folder / name for name in ("picture.png", "mask.pgm", "layer.png"))
        write_mask(image, layer, mask)
        write_picture(image, layer, picture)
        scsco_core.harmonize(picture, mask, result, settings)
        harmonized = Gimp.file_load_layer(Gimp.RunMode.NONINTERACTIVE, image, Gio.File.new_for_path(str(result)))
    if harmonized is None:
        raise scsco_core.HarmonizeError("GIMP cannot read the PNG that scsco wrote; its own messages say why")
    image.undo_group_start()
    harmonized.set_name(f"{layer.get_name()} harmonized")
    image.insert_layer(harmonized, layer.get_parent(), image.get_item_position(layer))
    image.undo_group_end()


def write_picture(image: Gimp.Image, layer: Gimp.Layer, path: Path) -> None:
    """What is seen up to the layer. What lies above it will lie above the new layer too, so it is left out."""
    copy = image.duplicate()
    try:
        for items, position in levels(copy, positions(image, layer)):
            for above in items[:position]:
                above.set_visible(False)
            items[position].set_visible(True)
        to_srgb(copy)
        merged = copy.merge_visible_layers(Gimp.MergeType.CLIP_TO_IMAGE)
        if (merged.get_width(), merged.get_height()) != (copy.get_width(), copy.get_height()):
            merged.add_alpha()
            merged.resize_to_image_size()
        if not Gimp.file_save(Gimp.RunMode.NONINTERACTIVE, copy, Gio.File.new_for_path(str(path)), None):
            raise scsco_core.HarmonizeError("GIMP cannot write the picture as a PNG; its own messages say why")
    finally:
        copy.delete()


def to_srgb(image: Gimp.Image) -> None:
    """Store the values as most pictures do, in 8 or 16 bits of sRGB.

    GIMP 3.0.4 damages what it merges and writes of an image with 8 linear bits: most of a picture of 451x300 was noise.
    """
    precision, depth = image.get_precision(), Gimp.Precision
    eight_bits = precision in (depth.U8_LINEAR, depth.U8_NON_LINEAR, depth.U8_PERCEPTUAL)
    wanted = depth.U8_NON_LINEAR if eight_bits else depth.U16_NON_LINEAR
    if precision != wanted:
        image.convert_precision(wanted)


def write_mask(image: Gimp.Image, layer: Gimp.Layer, path: Path) -> None:
    """The layer's alpha channel times its layer mask, within the selection if there is one."""
    copy = image.duplicate()
    try:
        selected = None if Gimp.Selection.is_empty(copy) else Gimp.Selection.save(copy)
        *_, (items, position) = levels(copy, positions(image, layer))
        same = items[position]
        if same.get_mask() is not None:
            applied = same.get_apply_mask()
            same.remove_mask(Gimp.MaskApplyMode.APPLY if applied else Gimp.MaskApplyMode.DISCARD)
        copy.select_item(Gimp.ChannelOps.REPLACE, same)
        if selected is not None:
            copy.select_item(Gimp.ChannelOps.INTERSECT, selected)
        width, height = copy.get_width(), copy.get_height()
        whole = Gegl.Rectangle.new(0, 0, width, height)
        # Of a selection Y is what is stored, at every precision: half selected is 128. A channel, a layer or a file
        # made of it could hold 188 or 55 instead, by the transfer curve of sRGB.
        values = copy.get_selection().get_buffer().get(whole, 1.0, "Y u8", Gegl.AbyssPolicy.NONE)
    finally:
        copy.delete()
    scsco_core.write_mask(path, width, height, bytes(values))


def positions(image: Gimp.Image, layer: Gimp.Layer) -> list[int]:
    """Where a layer is: its position in its group, behind that of its group, and so on; 0 is the top."""
    found = [image.get_item_position(layer)]
    parent = layer.get_parent()
    return found if parent is None else [*positions(image, parent), *found]


def levels(image: Gimp.Image, where: list[int]) -> list[tuple[list[Gimp.Layer], int]]:
    """The layers at each level on the way to a layer, and which of them is on the way."""
    found = [(image.get_layers(), where[0])]
    for position in where[1:]:
        items, outer = found[-1]
        found.append((items[outer].get_children(), position))
    return found


class ScscoHarmonize(Gimp.PlugIn):
    """The plug-in as GIMP knows it."""

    def do_query_procedures(self) -> list[str]:
        return [PROCEDURE]

    def do_set_i18n(self, name: str) -> bool:
        return False

    def do_create_procedure(self, name: str) -> Gimp.Procedure:
        procedure = Gimp.ImageProcedure.new(self, name, Gimp.PDBProcType.PLUGIN, run, None)
        procedure.set_image_types("RGB*, GRAY*")
        procedure.set_sensitivity_mask(Gimp.ProcedureSensitivityMask.DRAWABLE)
        procedure.set_documentation(
            "Recolour the active layer until it looks as if it belonged there",
            "A neural network (SCS-Co) fits the colours of the layer to what is seen below it. The result is a new "
            "layer above the active one. Where there is a selection, only what is inside of it is recoloured.",
            name,
        )
        procedure.set_menu_label("_Harmonize layer...")
        procedure.add_menu_path(MENU)
        procedure.set_attribution("scsco-fast contributors", "MIT licence", "2026")
        flags = GObject.ParamFlags.READWRITE
        procedure.add_double_argument("strength", "_Strength", "0 changes nothing, 1 all", 0.0, 1.0, 1.0, flags)
        procedure.add_int_argument(
            "grow", "_Grow the mask", "Pixels by which the layer's outline grows; negative shrinks", -256, 256, 0, flags
        )
        keep = Gimp.Choice.new()
        for number, nick in enumerate(scsco_core.KEPT):
            keep.add(nick, number, LABELS[nick], "")
        procedure.add_choice_argument(
            "keep", "_Keep", "What of the layer stays as it is", keep, scsco_core.NOTHING, flags
        )
        procedure.add_string_argument(
            "program", "_Program", "Full path of scsco; empty looks for scsco serve, then in PATH", "", flags
        )
        return procedure


Gimp.main(ScscoHarmonize.__gtype__, sys.argv)
