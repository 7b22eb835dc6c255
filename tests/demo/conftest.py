"""A model that changes plainly, pictures for the three ways, and the page's server."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from PIL import Image

import scsco_fast as sf

WIDTH, HEIGHT = 220, 150
LIMIT = "0.1"  # megapixels

pytest.importorskip("gradio", reason="needs gradio (the extra demo)")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose network changes the foreground plainly."""
    torch.manual_seed(0)
    network = sf.HarmonizationUNet(base_channels=4, levels=5, head="residual").eval()
    with torch.no_grad():
        for parameter in network.up[0].parameters():
            parameter.mul_(20)
    network.working_size = 64
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    sf.save_model(network, path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that go together in each of the three ways, and of some that do not serve."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)

    def coloured(size: tuple[int, int]) -> Image.Image:
        colours = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)

    cat = coloured((WIDTH, HEIGHT))
    cat.save(folder / "cat.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:110, 60:160] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:-10]).save(folder / "cut.png")
    Image.fromarray(255 - mask).save(folder / "inverted.png")
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "empty.png")
    Image.new("RGB", (400, 300)).save(folder / "large.png")

    coloured((320, 240)).save(folder / "field.png")
    cutout = coloured((60, 80)).convert("RGBA")
    cutout.putalpha(Image.new("L", (60, 80)))
    alpha = np.zeros((80, 60), np.uint8)
    alpha[10:70, 10:50] = 255
    pixels = np.asarray(cutout) * (alpha[..., None] > 0)  # a background remover blackens what it hides
    Image.fromarray(np.dstack([pixels[..., :3], alpha])).save(folder / "cutout.png")

    edited = np.array(cat)
    edited[20:60, 30:90] = 255 - edited[20:60, 30:90]
    Image.fromarray(edited).save(folder / "edited.png")
    return folder


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's own temporary folder lies."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def address(model_file: Path, served_folder: Path) -> Iterator[str]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(served_folder))
            address = stack.enter_context(browser.served(model_file, "--max-megapixels", LIMIT))
        yield address
