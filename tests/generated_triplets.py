"""Composites, masks and real pictures written to disk in iHarmony4's layout, and an independent way to score them.

The scores are computed from docs/evaluation.md's table with PIL, numpy and plain loops; nothing of the package is used.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image

SUBSET_OF_LETTER = {"a": "HAdobe5k", "c": "HCOCO", "f": "HFlickr", "d": "Hday2night"}
METRICS = ("mse", "psnr", "fmse", "fpsnr", "ssim")


def write_triplet(root: Path, name: str, composite: np.ndarray, mask: np.ndarray, real: np.ndarray) -> None:
    """ID_M_K.png with (H, W, 3) or (H, W, 4) pictures and an (H, W), (H, W, 3) or (H, W, 4) mask; named in the list."""
    folder = root / SUBSET_OF_LETTER[name[0]]
    identity, number, _ = Path(name).stem.split("_")
    for kind, file, array in (
        ("composite_images", name, composite),
        ("masks", f"{identity}_{number}.png", mask),
        ("real_images", f"{identity}{Path(name).suffix}", real),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / kind / file)
    with (root / "IHD_test.txt").open("a") as lines:
        lines.write(f"{folder.name}/composite_images/{name}\n")


def write_random_triplets(root: Path, seed: int = 0) -> list[str]:
    """Four triplets, one of each subset, of mixed sizes, modes and suffixes; their masks have soft edges."""
    rng = np.random.default_rng(seed)
    names = ["a0001_1_1.png", "c2_17_1.png", "f3_1_2.jpg", "d90000012-4_1_1.png"]
    for name, (height, width) in zip(names, ((45, 61), (30, 30), (33, 47), (97, 52)), strict=True):
        rows, columns = np.mgrid[:height, :width]
        base = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=2)
        real = np.clip(255 * (0.75 * base + 0.2 * rng.random((height, width, 3))), 0, 255).astype(np.uint8)
        distance = np.hypot(rows - 0.5 * height, columns - 0.45 * width)
        mask = np.clip(255 * (0.3 * width - distance) / 6, 0, 255).astype(np.uint8)
        shift = rng.integers(-40, 40, 3)
        weight = mask[:, :, None] / 255
        composite = np.clip(real + weight * shift + rng.integers(-2, 3, real.shape), 0, 255).astype(np.uint8)
        opaque = np.full((height, width, 1), 255, np.uint8)
        if name[0] == "c":
            real = np.concatenate([real, opaque], axis=2)
        stored = {"a": mask, "c": np.repeat(mask[:, :, None], 3, axis=2), "f": mask}.get(name[0])
        if stored is None:
            stored = np.concatenate([np.repeat(mask[:, :, None], 3, axis=2), opaque], axis=2)
        write_triplet(root, name, composite, stored, real)
    return names


def paths_of(root: Path, name: str) -> tuple[Path, Path, Path]:
    folder = root / SUBSET_OF_LETTER[name[0]]
    identity, number, _ = Path(name).stem.split("_")
    return (
        folder / "composite_images" / name,
        folder / "masks" / f"{identity}_{number}.png",
        folder / "real_images" / f"{identity}{Path(name).suffix}",
    )


def independent_scores(protocol: str, side: int | None, composite: Path, mask: Path, real: Path) -> dict[str, float]:
    """The untouched composite's metrics under a protocol; `side` None is the full resolution."""
    pictures = [Image.open(path).convert("RGB") for path in (composite, real)]
    size = pictures[0].size if side is None else (side, side)
    if protocol in ("idih", "pctnet"):
        before, target = (opencv_bilinear(np.asarray(picture), size) for picture in pictures)
        weight = opencv_bilinear(np.asarray(Image.open(mask).convert("RGB"))[:, :, 2] / np.float32(255), size)
    else:
        kind = Image.Resampling.BICUBIC if protocol == "dovenet" else Image.Resampling.BILINEAR
        before, target = (
            np.asarray(picture if picture.size == size else picture.resize(size, kind)) for picture in pictures
        )
        grey = Image.open(mask)
        if protocol == "strict":
            cut = np.asarray(grey.convert("L")) > 127
            weight = np.asarray(Image.fromarray(cut).resize(size, Image.Resampling.NEAREST)).astype(float)
        else:  # the filter that is asked for is not the one that PIL takes
            weight = np.asarray(grey.convert("1").resize(size, Image.Resampling.BICUBIC)).astype(float)
    before, target = before.astype(np.float64), target.astype(np.float64)
    if protocol == "rainnet":
        before = before * weight[:, :, None] + target * (1 - weight[:, :, None])
    squared = (before - target) ** 2
    inside = (squared * weight[:, :, None]).sum()
    mse = (inside if protocol == "pctnet" else squared.sum()) / squared.size
    fmse = inside / (3 * weight.sum())
    peak = {
        "dovenet": before.max() - before.min(),
        "harmonizer": before.max() - before.min(),
        "idih": target.max(),
    }.get(protocol, 255)
    return {
        "mse": mse,
        "psnr": 20 * math.log10(peak) - 10 * math.log10(mse),
        "fmse": fmse,
        "fpsnr": 20 * math.log10(255) - 10 * math.log10(fmse),
        "ssim": gaussian_ssim(before, target),
    }


def opencv_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """cv2.resize(image, size), INTER_LINEAR, one output pixel after the other."""
    if image.shape[1::-1] == size:
        return image
    result = np.empty((size[1], size[0], *image.shape[2:]), image.dtype)
    for y in range(size[1]):
        for x in range(size[0]):
            result[y, x] = (_pixel_of_8_bits if image.dtype == np.uint8 else _pixel_of_floats)(image, size, y, x)
    return result


def _pixel_of_floats(image: np.ndarray, size: tuple[int, int], y: int, x: int) -> np.ndarray:
    value = np.zeros(image.shape[2:])
    for row, down in _taps(y, image.shape[0], size[1]):
        for column, across in _taps(x, image.shape[1], size[0]):
            value = value + image[row, column].astype(np.float64) * down * across
    return value


def _pixel_of_8_bits(image: np.ndarray, size: tuple[int, int], y: int, x: int) -> np.ndarray:
    """Weights are multiples of 1/2048; a row's sum is cut by 4 bits and, weighted again, by 16; the rest is rounded."""
    value = np.full(image.shape[2:], 2, np.int64)
    columns = _taps(x, image.shape[1], size[0], narrow=True)
    for row, down in _taps(y, image.shape[0], size[1], narrow=True):
        line = sum(image[row, column].astype(np.int64) * round(across * 2048) for column, across in columns)
        value = value + ((round(down * 2048) * (line >> 4)) >> 16)
    return value >> 2


def _taps(index: int, length: int, wanted: int, narrow: bool = False) -> list[tuple[int, float]]:
    position = (index + 0.5) * length / wanted - 0.5
    if narrow:
        position = float(np.float32(position))
    first = math.floor(position)
    weight = position - first
    return [(min(max(first + step, 0), length - 1), share) for step, share in ((0, 1 - weight), (1, weight))]


def gaussian_ssim(output: np.ndarray, real: np.ndarray) -> float:
    """Wang et al. 2004 over 11x11 windows that lie wholly inside, on the 0-255 range; (H, W, 3) float64 each.

    The weighted sums are taken as eleven shifted columns, then eleven shifted rows, in bands of rows.
    """
    height, width = real.shape[:2]
    if min(height, width) < 11:
        return math.nan
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    line /= line.sum()

    def blurred(x: np.ndarray) -> np.ndarray:
        across = sum(line[k] * x[:, k : width - 10 + k] for k in range(11))
        return sum(line[k] * across[k : len(x) - 10 + k] for k in range(11))

    total, band = 0.0, max(11, 300_000 // width)
    for top in range(0, height - 10, band):
        a, b = (picture[top : min(top + band, height - 10) + 10] for picture in (output, real))
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
        cov = blurred(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        total += float((luminance * (2 * cov + c2) / (var_a + var_b + c2)).sum())
    return total / (3 * (height - 10) * (width - 10))
