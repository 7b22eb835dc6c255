"""Sample pictures for the three ways, made at start of photographs that come with scikit-image."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Outlines of what is pasted, x and y in pixels of the photograph.
CUP = (
    *((308, 390), (264, 390), (231, 384), (191, 372), (155, 352), (130, 332), (116, 317), (102, 298), (86, 271)),
    *((82, 256), (76, 232), (76, 194), (80, 175), (88, 154), (104, 127), (126, 101), (156, 78), (179, 60), (188, 54)),
    *((209, 40), (225, 30), (249, 22), (272, 18), (305, 18), (334, 26), (356, 36), (368, 44), (386, 60), (396, 72)),
    *((407, 66), (412, 66), (422, 71), (424, 78), (422, 91), (416, 103), (416, 109), (430, 116), (444, 130)),
    *((456, 147), (462, 161), (476, 197), (478, 220), (480, 226), (476, 259), (466, 286), (452, 311), (440, 325)),
    *((425, 340), (399, 360), (370, 374), (339, 384)),
)
CAT = (
    *((39, 0), (400, 0), (396, 9), (384, 22), (378, 35), (376, 49), (372, 56), (358, 74), (354, 88), (358, 96)),
    *((360, 107), (366, 117), (366, 124), (364, 144), (362, 153), (346, 188), (332, 205), (320, 216), (314, 223)),
    *((318, 240), (314, 246), (316, 258), (310, 269), (300, 277), (263, 290), (248, 290), (224, 288), (195, 284)),
    *((166, 275), (145, 262), (127, 246), (108, 228), (86, 208), (64, 192), (58, 178), (50, 162), (32, 134)),
    *((32, 125), (28, 120), (30, 79), (34, 58), (32, 39), (40, 11)),
)
ASTRONAUT = (
    *((508, 512), (24, 512), (22, 480), (24, 440), (26, 400), (24, 364), (24, 345), (28, 331), (29, 300), (41, 284)),
    *((52, 269), (64, 248), (80, 232), (92, 224), (106, 212), (114, 200), (112, 188), (120, 183), (130, 168)),
    *((140, 158), (157, 150), (176, 148), (182, 146), (182, 134), (172, 126), (156, 102), (154, 93), (152, 67)),
    *((156, 59), (170, 44), (186, 36), (194, 26), (207, 20), (228, 16), (243, 16), (251, 18), (276, 30), (288, 41)),
    *((296, 59), (302, 83), (300, 95), (296, 110), (290, 117), (276, 134), (266, 138), (264, 148), (256, 163)),
    *((256, 173), (271, 184), (288, 200), (300, 219), (304, 232), (308, 236), (322, 244), (340, 262), (346, 274)),
    *((356, 309), (356, 318), (360, 329), (362, 348), (388, 344), (413, 344), (426, 346), (452, 358), (478, 383)),
    *((490, 409), (496, 431), (496, 452), (502, 456), (508, 475), (508, 480), (512, 485), (512, 512)),
)
ROCKET, MOVED = (292, 105, 352, 330), -78  # a piece of the sky with the rocket, copied to the left
_SHARPER = 4  # outlines are drawn so much larger


def sample_composites(folder: Path) -> list[list[str]]:
    """Files of composites and their masks: the same object, as if it came from under another light."""
    pairs = []
    for name, photograph, outline, gains in (
        ("cup", "coffee.png", CUP, (0.75, 0.95, 1.4)),
        ("cat", "chelsea.png", CAT, (1.2, 0.95, 0.7)),
    ):
        picture = _photograph(photograph)
        mask = _drawn(outline, picture.size)
        composite = Image.composite(_tinted(picture, gains), picture, mask)
        pairs.append(_saved(folder, {name: composite, f"{name}_mask": mask}))
    return pairs


def sample_cutouts(folder: Path) -> list[list[str]]:
    """Files of a cut-out and its background."""
    astronaut = _photograph("astronaut.png")
    astronaut.putalpha(_drawn(ASTRONAUT, astronaut.size))
    return [_saved(folder, {"astronaut": astronaut, "launch_pad": _photograph("rocket.jpg")})]


def sample_edits(folder: Path) -> list[list[str]]:
    """Files of a picture before and after an edit: a second rocket, in other colours."""
    before = _photograph("rocket.jpg")
    after = before.copy()
    after.paste(_tinted(before.crop(ROCKET), (1.5, 1.2, 0.8)), (ROCKET[0] + MOVED, ROCKET[1]))
    return [_saved(folder, {"rocket_before": before, "rocket_after": after})]


def _photograph(name: str) -> Image.Image:
    from skimage import data

    return Image.open(Path(data.__file__).parent / name).convert("RGB")


def _drawn(outline: tuple[tuple[int, int], ...], size: tuple[int, int]) -> Image.Image:
    large = Image.new("L", (size[0] * _SHARPER, size[1] * _SHARPER))
    ImageDraw.Draw(large).polygon([(x * _SHARPER, y * _SHARPER) for x, y in outline], fill=255)
    return large.resize(size, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(0.7))


def _tinted(picture: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * gains).clip(0, 255).astype(np.uint8))


def _saved(folder: Path, pictures: dict[str, Image.Image]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}.png": picture for name, picture in pictures.items()}
    for path, picture in paths.items():
        picture.save(path)
    return [str(path) for path in paths]
