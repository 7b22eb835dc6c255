"""The six protocols: each against an independent computation, and each choice on pictures built to show it."""

import csv
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_triplets import (
    METRICS,
    independent_scores,
    opencv_bilinear,
    paths_of,
    write_random_triplets,
    write_triplet,
)
from PIL import Image

from scsco_fast import cli
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.evaluation import Row, evaluate
from scsco_fast.evaluation.metrics import score
from scsco_fast.evaluation.protocols import PROTOCOLS, protocol_named, resize_cv2, scored_mask, scored_picture
from scsco_fast.evaluation.triplets import Triplets

REAL = os.environ.get("SCSCO_REAL_DATA")
AGREEMENT = 1e-6


def rows_of(root: Path, protocol: str, side: int | None) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    triplets = Triplets(IHarmony4(root, "test").members, protocol_named(protocol), side)
    evaluate(None, triplets, protocol=protocol, on_row=lambda row: rows.update({row.name: row}))
    return rows


def one_row(root: Path, protocol: str, side: int | None) -> Row:
    (row,) = rows_of(root, protocol, side).values()
    return row


@pytest.mark.parametrize("side", [32, None])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_agrees_with_an_independent_computation(protocol: str, side: int | None, tmp_path: Path) -> None:
    names = write_random_triplets(tmp_path)
    rows = rows_of(tmp_path, protocol, side)
    assert sorted(rows) == sorted(names)
    for name in names:
        wanted = independent_scores(protocol, side, *paths_of(tmp_path, name))
        for metric in METRICS:
            assert getattr(rows[name], metric) == pytest.approx(wanted[metric], rel=AGREEMENT), (name, metric)
        assert (rows[name].protocol, rows[name].resolution) == (protocol, "full" if side is None else str(side))


@pytest.mark.parametrize("protocol", ["pctnet", "dovenet"])
def test_the_command_line_agrees_too(protocol: str, tmp_path: Path) -> None:
    names = write_random_triplets(tmp_path / "data", seed=1)
    target = tmp_path / "rows.csv"
    arguments = ["evaluate", "--identity", "--protocol", protocol, "--resolution", "full", "--csv", str(target)]
    assert cli.main([*arguments, "--dataset", str(tmp_path / "data")]) == 0
    check_rows(target, protocol, None, {name: paths_of(tmp_path / "data", name) for name in names})


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="SCSCO_REAL_DATA names no folder of real triplets")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_real_triplets(protocol: str, tmp_path: Path) -> None:
    assert REAL is not None
    target = tmp_path / "rows.csv"
    arguments = ["evaluate", "--identity", "--protocol", protocol, "--dataset", REAL, "--csv", str(target)]
    paths = {}
    for composite in sorted(Path(REAL, "composite_images").iterdir()):
        identity, number, _ = composite.stem.split("_")
        masks, real = Path(REAL, "masks"), Path(REAL, "real_images")
        paths[composite.name] = (composite, masks / f"{identity}_{number}.png", real / f"{identity}{composite.suffix}")
    for side in (256, None) if protocol == "pctnet" else (256,):
        assert cli.main([*arguments, "--resolution", str(side or "full")]) == 0
        check_rows(target, protocol, side, paths)


def check_rows(table: Path, protocol: str, side: int | None, paths: dict[str, tuple[Path, Path, Path]]) -> None:
    with table.open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == paths.keys()
    for name, (composite, mask, real) in paths.items():
        wanted = independent_scores(protocol, side, composite, mask, real)
        for metric in METRICS:
            for column in (metric, f"composite_{metric}"):
                assert float(rows[name][column]) == pytest.approx(wanted[metric], rel=AGREEMENT), (name, metric)
        with Image.open(composite) as picture, Image.open(mask) as grey:
            assert (int(rows[name]["width"]), int(rows[name]["height"])) == picture.size
            share = (np.asarray(grey.convert("L")) > 127).mean()
        assert float(rows[name]["foreground_ratio"]) == pytest.approx(share, rel=AGREEMENT)
        assert (rows[name]["protocol"], rows[name]["resolution"]) == (protocol, str(side or "full"))


# --- what each choice does -------------------------------------------------------------------------------------------


def flat(level: int, height: int = 48, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def half_mask(grey: int = 255, height: int = 48, width: int = 48) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = grey
    return mask


def test_cv2_does_not_antialias(tmp_path: Path) -> None:
    # Every third row and column survives a reduction to a third; the others carry an error of 30 levels.
    composite = flat(100) + np.uint8(30)
    composite[1::3, 1::3] = 100
    write_triplet(tmp_path, "c1_1_1.png", composite, half_mask(), flat(100))
    for protocol in ("idih", "pctnet"):
        assert one_row(tmp_path, protocol, 16).mse == 0
        assert one_row(tmp_path, protocol, 16).psnr == math.inf
    for protocol in ("strict", "rainnet", "harmonizer", "dovenet"):
        assert one_row(tmp_path, protocol, 16).fmse > 400
    assert one_row(tmp_path, "idih", None).mse == pytest.approx(900 * 8 / 9)


def test_bicubic_overshoots(tmp_path: Path) -> None:
    composite = flat(100)
    composite[:, 24:] = 200
    write_triplet(tmp_path, "c1_1_1.png", composite, half_mask(), flat(100))
    bicubic = scored_picture(composite, PROTOCOLS["dovenet"], (31, 31))
    bilinear = scored_picture(composite, PROTOCOLS["harmonizer"], (31, 31))
    assert bicubic.min() < 100 == bilinear.min()
    assert one_row(tmp_path, "dovenet", 31).mse > one_row(tmp_path, "harmonizer", 31).mse
    assert one_row(tmp_path, "dovenet", None).mse == one_row(tmp_path, "harmonizer", None).mse


def test_masks_are_cut_dithered_or_soft(tmp_path: Path) -> None:
    # An error of 10 levels everywhere, so only the weights differ: grey 100 on the left half.
    write_triplet(tmp_path, "c1_1_1.png", flat(110), half_mask(100), flat(100))
    soft, dithered = one_row(tmp_path, "pctnet", None), one_row(tmp_path, "harmonizer", None)
    assert soft.mse == pytest.approx(100 * 0.5 * 100 / 255)
    assert soft.fmse == dithered.fmse == pytest.approx(100)
    share = scored_mask(half_mask(100) / np.float32(255), PROTOCOLS["dovenet"], (48, 48)).mean()
    assert share == pytest.approx(0.5 * 100 / 255, abs=0.01)
    row = one_row(tmp_path, "rainnet", None)
    assert row.mse == pytest.approx(100 * float(share))  # the real picture everywhere else
    assert row.foreground_ratio == 0  # above grey 127, whatever the protocol
    triplets = Triplets(IHarmony4(tmp_path, "test").members, PROTOCOLS["strict"], None)
    assert "the mask is empty at 48x48 (its largest grey value is 100)" in triplets[0].reason  # type: ignore[union-attr]


@pytest.mark.parametrize("protocol", ["dovenet", "rainnet", "harmonizer"])
def test_mode_1_is_resized_by_nearest_neighbour(protocol: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
    wanted = Image.fromarray(grey).convert("1").resize((20, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(scored_mask(grey / np.float32(255), PROTOCOLS[protocol], (16, 20)), np.asarray(wanted))


def test_rounding() -> None:
    real, mask = torch.full((3, 12, 12), 100 / 255), torch.ones(1, 12, 12)
    output = real + 0.6 / 255
    assert score(output, real, mask, "dovenet")["mse"] == 1
    assert score(output, real, mask, "rainnet")["mse"] == 0
    for protocol in ("strict", "idih", "pctnet", "harmonizer"):
        assert score(output, real, mask, protocol)["mse"] == pytest.approx(0.36, rel=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_level_of_8_bits_is_lost(protocol: str, dtype: torch.dtype) -> None:
    levels = torch.arange(256).reshape(1, 16, 16).expand(3, -1, -1)
    mask = torch.ones(1, 16, 16)
    assert score(levels.to(dtype) / 255, levels.to(torch.float64) / 255, mask, protocol)["mse"] == 0
    beside = (levels.to(dtype) + torch.where(levels < 255, 1, -1)) / 255
    assert score(beside, levels.to(dtype) / 255, mask, protocol)["mse"] == 1


def test_peak() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(20, 150, (3, 24, 24), generator=generator).double() / 255
    output = torch.randint(50, 200, (3, 24, 24), generator=generator).double() / 255
    mask = torch.ones(1, 24, 24)
    strict = score(output, real, mask)
    peaks = {"dovenet": 149, "harmonizer": 149, "idih": 149, "rainnet": 255, "pctnet": 255}
    assert (output.max() - output.min()) * 255 == pytest.approx(149)
    for protocol, peak in peaks.items():
        values = score(output, real, mask, protocol)
        assert values["psnr"] == pytest.approx(strict["psnr"] + 20 * math.log10(peak / 255), rel=1e-9)
        assert values["fpsnr"] == pytest.approx(strict["fpsnr"], rel=1e-9)


def test_the_background_is_the_composites_or_the_reals(tmp_path: Path) -> None:
    # 6 levels off in the foreground, 2 in the background.
    composite = flat(106)
    composite[:, 24:] = 102
    write_triplet(tmp_path, "c1_1_1.png", composite, half_mask(), flat(100))
    for protocol in PROTOCOLS:
        row = one_row(tmp_path, protocol, None)
        assert row.fmse == pytest.approx(36)
        # PCT-Net's sum leaves the background out, RainNet's composite has the real one: the same by two ways.
        assert row.mse == pytest.approx(18 if protocol in ("rainnet", "pctnet") else 20), protocol


def test_a_model_sees_the_background_that_is_scored(tmp_path: Path) -> None:
    composite = flat(106)
    composite[:, 24:] = 102
    write_triplet(tmp_path, "c1_1_1.png", composite, half_mask(), flat(100))
    seen = []

    def spoil(pictures: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(pictures)
        return pictures + 0.3

    for protocol, background in (("rainnet", 100), ("strict", 102)):
        triplets = Triplets(IHarmony4(tmp_path, "test").members, PROTOCOLS[protocol], None)
        rows: list[Row] = []
        evaluate(spoil, triplets, protocol=protocol, on_row=rows.append)
        assert seen[-1][0, 0, 0, -1] == pytest.approx(background / 255)
        assert rows[0].mse > rows[0].composite_mse
    assert {row.protocol for row in rows} == {"strict"}


def test_a_constant_output_has_no_range() -> None:
    real, mask = torch.full((3, 12, 12), 100 / 255), torch.ones(1, 12, 12)
    assert score(real + 0.1, real, mask, "dovenet")["psnr"] == -math.inf
    assert score(real, real, mask, "dovenet")["psnr"] == math.inf
    assert score(real * 0 - 0.0, real * 0, mask, "idih")["psnr"] == math.inf  # negative zero is zero


def test_no_two_protocols_are_the_same(tmp_path: Path) -> None:
    write_random_triplets(tmp_path)
    means = {}
    for protocol in PROTOCOLS:
        summary = evaluate(
            None, Triplets(IHarmony4(tmp_path, "test").members, PROTOCOLS[protocol], 32), protocol=protocol
        ).summaries()[-1]
        means[protocol] = (summary.means["mse"], summary.means["psnr"])
    assert len(set(means.values())) == len(PROTOCOLS)


# --- OpenCV's filter -------------------------------------------------------------------------------------------------

# cv2.resize(SOURCE, (width, height), interpolation=cv2.INTER_LINEAR) of OpenCV 4.14.0 and 5.0.0, x86-64.
SOURCE = np.array(
    [
        [0, 89, 100, 33, 144, 177],
        [89, 0, 89, 100, 33, 144],
        [100, 89, 0, 89, 100, 33],
        [33, 100, 89, 0, 89, 100],
        [144, 33, 100, 89, 0, 89],
    ],
    np.uint8,
)
RESIZED = {
    (3, 4): [[37, 87, 68, 151], [97, 22, 92, 50], [94, 86, 52, 77]],
    (8, 3): [
        [44, 66, 160],
        [44, 79, 129],
        [47, 91, 87],
        [79, 60, 73],
        [86, 44, 75],
        [68, 44, 93],
        [79, 72, 66],
        [88, 94, 44],
    ],
    (4, 9): [
        [11, 44, 81, 95, 70, 56, 115, 151, 173],
        [93, 63, 37, 52, 76, 90, 64, 80, 102],
        [58, 77, 89, 62, 44, 43, 83, 84, 75],
        [130, 86, 51, 89, 88, 67, 22, 51, 90],
    ],
}
RESIZED_FLOATS = [
    [0.14542484283447266, 0.3415032923221588, 0.2676470875740051, 0.593137264251709],
    [0.3813725709915161, 0.08725490421056747, 0.3598039150238037, 0.19509805738925934],
    [0.36895427107810974, 0.33758169412612915, 0.20359477400779724, 0.3016339838504791],
]


@pytest.mark.parametrize("size", RESIZED)
def test_opencv_has_computed_this(size: tuple[int, int]) -> None:
    assert resize_cv2(SOURCE, size).tolist() == RESIZED[size]
    assert opencv_bilinear(SOURCE, size[::-1]).tolist() == RESIZED[size]


def test_opencv_has_computed_these_floats() -> None:
    floats = SOURCE.astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(resize_cv2(floats, (3, 4)), RESIZED_FLOATS, atol=1.2e-7, rtol=0)


# Checksum of the same function's (256, 256, 3) result for `noisy_picture`, in the same two versions.
CHECKSUMS = {(150, 230): 3458049100, (97, 61): 3592172224, (400, 301): 2114070716, (512, 512): 725669502}


def noisy_picture(height: int, width: int) -> np.ndarray:
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((y * 7919 + x * 104729 + channel * 1299709 + y * x * 31) ** 2 % 65521 % 256).astype(np.uint8)


@pytest.mark.parametrize("size", CHECKSUMS)
def test_opencv_has_computed_these_bytes(size: tuple[int, int]) -> None:
    assert zlib.crc32(resize_cv2(noisy_picture(*size), (256, 256)).tobytes()) == CHECKSUMS[size]


def test_opencv_where_it_is_installed() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for number in range(60):
        height, width = (int(side) for side in rng.integers(2, 400, 2))
        size = (256, 256) if number % 2 else tuple(int(side) for side in rng.integers(1, 300, 2))
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert np.array_equal(resize_cv2(picture, size), cv2.resize(picture, size[::-1]))
        mask = picture[:, :, 0].astype(np.float32) / np.float32(255)
        np.testing.assert_allclose(resize_cv2(mask, size), cv2.resize(mask, size[::-1]), atol=4e-5, rtol=0)
