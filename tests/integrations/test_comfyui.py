"""The node for ComfyUI: what ComfyUI reads of it, and what it does with a photograph, run as ComfyUI runs nodes."""

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_interface import check_node, defaults, execute, load_folder, run_workflow, validated
from packaging.requirements import Requirement
from torch import Tensor

import scsco_fast as sf

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def package() -> Iterator[ModuleType]:
    module = load_folder(FOLDER)
    yield module
    for name in [name for name in sys.modules if name.startswith(module.__name__)]:
        del sys.modules[name]


@pytest.fixture
def node(package: ModuleType) -> Any:
    (found,) = package.NODE_CLASS_MAPPINGS.values()
    return found


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """(1, 300, 451, 3) in [0, 1]."""
    from skimage.data import chelsea

    return torch.from_numpy(chelsea()).float()[None] / 255


@pytest.fixture(scope="module")
def mask() -> Tensor:
    """(1, 300, 451)."""
    made = torch.zeros(1, 300, 451)
    made[:, 80:220, 120:300] = 1
    return made


@pytest.fixture(scope="module")
def composite(photograph: Tensor, mask: Tensor) -> Tensor:
    """The photograph with a region that is too bright."""
    return torch.where(mask[..., None] > 0, (photograph * 1.6).clamp(0, 1), photograph)


def test_the_interface_is_comfyuis(package: ModuleType, node: Any) -> None:
    check_node(node)
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys() == {"HarmonizeSCSCo"}
    assert package.NODE_DISPLAY_NAME_MAPPINGS["HarmonizeSCSCo"] == "Harmonize (SCS-Co)"
    assert node.CATEGORY == "image/color"


def test_importing_it_imports_no_scsco_fast() -> None:
    """ComfyUI imports all nodes when it starts, and goes on without those that fail."""
    text = (FOLDER / "nodes.py").read_text()
    assert re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE) == [
        "functools",
        "typing",
        "torch",
        "torch",
        "torch",
    ]


def test_it_harmonizes_a_photograph(node: Any, composite: Tensor, photograph: Tensor, mask: Tensor) -> None:
    (done,) = execute(node, composite=composite, mask=mask)
    assert done.shape == composite.shape
    inside = mask > 0
    assert torch.equal(done[~inside], composite[~inside])
    before, after = ((picture - photograph)[inside].square().mean() for picture in (composite, done))
    assert after < 0.25 * before
    assert torch.equal(done, sf.harmonize(composite, mask))


def test_every_input_does_something(node: Any, composite: Tensor, mask: Tensor) -> None:
    """And what `sf.harmonize` does with it."""
    (plain,) = execute(node, composite=composite, mask=mask)
    for given, wanted in (
        ({"strength": 0.25}, {"strength": 0.25}),
        ({"grow_mask": -9}, {"grow_mask": -9}),
        ({"working_size": 112}, {"working_size": 112}),
        ({"keep": "luma"}, {"keep": "luma"}),
        ({"keep": "colour"}, {"keep": "colour"}),
        ({"model": "compact-free"}, {"model": sf.load_model("compact-free")}),
    ):
        (done,) = execute(node, composite=composite, mask=mask, **given)
        assert not torch.equal(done, plain), given
        assert torch.equal(done, sf.harmonize(composite, mask, **wanted)), given  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="no pixel was changed"):
        (none,) = execute(node, composite=composite, mask=mask, strength=0.0)
    assert torch.equal(none, composite)
    (inverted,) = execute(node, composite=composite, mask=1 - mask, invert_mask=True)
    assert torch.equal(inverted, plain)
    (named,) = execute(node, composite=composite, mask=mask, model=' "compact" ')  # as paths are pasted
    assert torch.equal(named, plain)


def test_a_mask_serves_a_batch(node: Any, composite: Tensor, mask: Tensor) -> None:
    batch = torch.cat([composite, composite.flip(2)])
    single = [execute(node, composite=picture[None], mask=mask)[0] for picture in batch]
    assert torch.equal(execute(node, composite=batch, mask=mask)[0], torch.cat(single))
    assert torch.equal(execute(node, composite=batch, mask=mask[0])[0], torch.cat(single))  # (H, W)
    own = torch.cat([mask, mask.flip(2)])
    (done,) = execute(node, composite=batch, mask=own)
    assert torch.equal(done[0], single[0][0])
    assert not torch.equal(done[1], single[1][0])
    empty = torch.cat([mask, torch.zeros_like(mask)])  # as of a film in which the object comes later
    with pytest.warns(UserWarning, match="mask is empty"):
        (done,) = execute(node, composite=batch, mask=empty)
    assert torch.equal(done[1], batch[1])
    assert torch.equal(done[0], single[0][0])


def test_a_mask_of_another_size_is_resized_as_comfyui_does(node: Any, composite: Tensor, mask: Tensor) -> None:
    small = torch.nn.functional.interpolate(mask[None], size=(100, 150), mode="bilinear")[0]
    (done,) = execute(node, composite=composite, mask=small)
    fitted = torch.nn.functional.interpolate(small[:, None], size=(300, 451), mode="bilinear")[:, 0]
    assert torch.equal(done, sf.harmonize(composite, fitted))


def test_values_beyond_white_and_an_alpha_channel_are_no_error(node: Any, composite: Tensor, mask: Tensor) -> None:
    """Scaling and decoding overshoot; ComfyUI cuts it off where it saves. Some nodes give four channels."""
    (wanted,) = execute(node, composite=composite, mask=mask)
    over = torch.where(composite == composite.max(), composite + 0.01, composite)
    (done,) = execute(node, composite=over.clamp(max=composite.max()), mask=mask)
    assert torch.equal(done, wanted)
    (done,) = execute(node, composite=torch.where(composite == 1, 1.01, composite), mask=mask * 1.01)
    assert torch.equal(done, wanted)
    alpha = torch.rand(1, 300, 451, 1)
    (done,) = execute(node, composite=torch.cat([composite, alpha], dim=3), mask=mask)
    assert torch.equal(done, torch.cat([wanted, alpha], dim=3))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": torch.zeros(1, 64, 64)}, "the mask is empty: nothing is foreground; connect another mask, or set"),
        ({"mask": torch.full((1, 64, 64), 3 / 255)}, "the mask is empty"),
        ({"mask": torch.ones(3, 300, 451)}, "there are 3 masks for 1 pictures; give one for each, or one"),
        ({"model": "/no/such.safetensors"}, "/no/such.safetensors: no such file"),
        ({"composite": torch.full((1, 300, 451, 3), torch.nan)}, "NaN"),
    ],
)
def test_mistakes_are_one_line(node: Any, composite: Tensor, mask: Tensor, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        execute(node, **{"composite": composite, "mask": mask, **change})
    assert "\n" not in str(caught.value)


def test_without_scsco_fast_it_says_how_to_install_it(
    node: Any, composite: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scsco_fast", None)
    with pytest.raises(RuntimeError, match=r"install it into ComfyUI's Python: pip install scsco-fast$"):
        execute(node, composite=composite, mask=mask)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strength": 1.5}, "value_bigger_than_max: strength"),
        ({"grow_mask": -300}, "value_smaller_than_min: grow_mask"),
        ({"working_size": -1}, "value_smaller_than_min: working_size"),
        ({"keep": "hue"}, "value_not_in_list: keep"),
    ],
)
def test_comfyui_refuses_what_the_widgets_do_not_allow(node: Any, change: dict[str, Any], reason: str) -> None:
    given = {**defaults(node), "composite": None, "mask": None}
    linked = {"composite": "IMAGE", "mask": "MASK"}
    assert validated(node, given, linked)["strength"] == 1.0
    with pytest.raises(ValueError, match=reason):
        validated(node, {**given, **change}, linked)
    with pytest.raises(ValueError, match="required_input_missing: mask"):
        validated(node, {name: value for name, value in given.items() if name != "mask"}, linked)


def test_it_computes_where_comfyui_does(
    node: Any, composite: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    management = SimpleNamespace(get_torch_device=lambda: torch.device("cuda:7"))
    monkeypatch.setitem(sys.modules, "comfy", SimpleNamespace(model_management=management))
    monkeypatch.setattr(sf, "load_model", lambda name, device: asked.append((name, device)) or sf.BAIN)
    monkeypatch.setattr(sf, "harmonize", lambda image, *given, **_: asked.append(given[1:4]) or image)
    for _ in range(2):
        execute(node, composite=composite, mask=mask, model="mine")
    assert asked == [("mine", "cuda:7"), *[(sf.BAIN, None, torch.device("cuda:7"))] * 2]


# What lies beside it.


class LoadImage:
    """ComfyUI's node, for a picture of the test."""

    pictures: dict[str, Tensor]
    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": (sorted(cls.pictures), {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        return self.pictures[image], torch.zeros(1, 64, 64)  # that of a picture without transparency


class ImageToMask:
    """ComfyUI's node."""

    RETURN_TYPES, FUNCTION = ("MASK",), "image_to_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "channel": (["red", "green", "blue", "alpha"],)}}

    def image_to_mask(self, image: Tensor, channel: str) -> tuple[Tensor]:
        return (image[..., ["red", "green", "blue", "alpha"].index(channel)],)


class SaveImage:
    """ComfyUI's node; it keeps what it is given."""

    saved: dict[str, Tensor]
    RETURN_TYPES, FUNCTION = (), "save_images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save_images(self, images: Tensor, filename_prefix: str) -> tuple[()]:
        self.saved[filename_prefix] = images
        return ()


def test_the_example_workflow_runs(node: Any, composite: Tensor, mask: Tensor) -> None:
    (file,) = (FOLDER / "example_workflows").iterdir()
    LoadImage.pictures = {"composite.png": composite, "mask.png": mask[..., None].expand(-1, -1, -1, 3)}
    SaveImage.saved = {}
    nodes = {"LoadImage": LoadImage, "ImageToMask": ImageToMask, "SaveImage": SaveImage, "HarmonizeSCSCo": node}
    run_workflow(json.loads(file.read_text()), nodes)
    assert torch.equal(SaveImage.saved["harmonized"], sf.harmonize(composite, mask))


def test_the_example_workflow_shows_the_defaults(node: Any) -> None:
    (file,) = (FOLDER / "example_workflows").iterdir()
    (saved,) = (saved for saved in json.loads(file.read_text())["nodes"] if saved["type"] == "HarmonizeSCSCo")
    assert saved["widgets_values"] == list(defaults(node).values())


def test_what_the_registry_reads() -> None:
    content = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    project, comfy = content["project"], content["tool"]["comfy"]
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*", project["name"])
    assert "comfyui" not in project["name"].lower()
    assert project["version"] == sf.__version__
    assert {"PublisherId", "DisplayName"} <= comfy.keys()
    assert "Repository" in project["urls"]
    wanted = [str(Requirement(line)) for line in (FOLDER / "requirements.txt").read_text().splitlines()]
    assert wanted == project["dependencies"] == ["scsco-fast"]


def test_the_readme_names_every_input(node: Any) -> None:
    text = (FOLDER / "README.md").read_text()
    for name in (*node.INPUT_TYPES()["required"], *node.INPUT_TYPES()["optional"]):
        assert f"| `{name}` |" in text, name
