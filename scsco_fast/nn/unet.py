"""The generator: an attention U-Net whose decoder is normalised by foreground and background."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scsco_fast.nn.norm import BAIN, RAIN, ReleasedRAIN
from scsco_fast.ops import region_norm
from scsco_fast.regions import THRESHOLD, Regions

NORMS = ("bain", "rain", "instance", "rainnet")
IN_CHANNELS = (3, 4, 7)
HEADS = ("direct", "residual", "affine")
UPSAMPLINGS = ("transposed", "resize")
ENCODER_NORMS = ("instance", "none")
AFFINE_CHANNELS = 12  # a 3x3 matrix and an offset
GATED = 3  # the finest decoder levels have a sigmoid-gated concatenation
WORKING_SIZE = 256
INIT_STD = 0.02  # of every convolution, as RainNet and pix2pix


class HarmonizationUNet(nn.Module):
    """Recolour the foreground of a composite so that it fits the background.

    `levels` convolutions of stride 2 (widths base * 1, 2, 4, 8, 8, ...), as many transposed convolutions, skip
    connections, and a norm after every transposed convolution but the last. The layout is RainNet's; BAIN in the
    decoder is SCS-Co's. With in_channels=3, norm="rainnet" and head="direct" it is RainNet, which
    `scsco_fast.nn.rainnet` loads.

    Args:
        in_channels: 4: composite and mask; 3: composite only, as RainNet; 7: composite, mask, and the composite with
            its foreground brought to the background's mean and deviation per colour (`region_norm`). The encoder's
            instance norms take the picture's own mean and contrast away, so only with 7 does a foreground pixel know
            the background's colours in absolute terms.
        base_channels: width of the first level.
        levels: 5 to 10; the input is padded to a multiple of 2 ** levels and the output cropped back.
        norm: "bain", "rain", "instance", "rainnet" (`ReleasedRAIN`), or one of them per decoder level, levels - 1
            names from the coarsest to the finest.
        head: "direct": the network predicts the picture (tanh); "residual": a correction in [-1, 1] added to the
            composite, which learns in minutes what the other learns in days.
        key_channels: of BAIN; None: min(C, 64).
        dropout: 0.5 after the norms of the decoder levels between the coarsest one and the gated ones.
        project_value, cosine: BAIN's options of those names.

    Attributes:
        config: the arguments, so that `HarmonizationUNet(**model.config)` is the same network.
        working_size: longer side in pixels of the pictures that it was trained on; `harmonize` works at it.

    Raises:
        ValueError: an option that does not exist; the message names it.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> model = sf.HarmonizationUNet(base_channels=4, levels=5, head="residual").eval()
        >>> composite, mask = torch.rand(1, 3, 50, 70), torch.zeros(1, 1, 50, 70)
        >>> mask[..., 10:30, 20:40] = 1
        >>> output = model(composite, mask)
        >>> output.shape, bool((output == composite)[..., 30:, :].all())
        (torch.Size([1, 3, 50, 70]), True)
    """

    def __init__(
        self,
        in_channels: int = 4,
        base_channels: int = 64,
        levels: int = 8,
        norm: str | Sequence[str] = "bain",
        head: str = "direct",
        key_channels: int | None = None,
        dropout: bool = True,
        project_value: bool = False,
        cosine: bool = False,
        upsampling: str = "transposed",
        encoder_norm: str = "instance",
    ) -> None:
        super().__init__()
        norms = (norm,) * (levels - 1) if isinstance(norm, str) else tuple(norm)
        _check_options(in_channels, base_channels, levels, norms)
        _check_choice("head", head, HEADS)
        _check_choice("upsampling", upsampling, UPSAMPLINGS)
        _check_choice("encoder_norm", encoder_norm, ENCODER_NORMS)
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "base_channels": base_channels,
            "levels": levels,
            "norm": norm if isinstance(norm, str) else list(norm),
            "head": head,
            "key_channels": key_channels,
            "dropout": dropout,
            "project_value": project_value,
            "cosine": cosine,
            "upsampling": upsampling,
            "encoder_norm": encoder_norm,
        }
        self.working_size = WORKING_SIZE
        self.levels = levels
        self.head = head
        self.in_channels = in_channels
        self.encoder_norm = encoder_norm
        widths = [base_channels * min(2**level, 8) for level in range(levels)]

        self.down = nn.ModuleList(
            _initialised(nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False))
            for narrow, wide in zip([in_channels, *widths], widths, strict=False)
        )
        # up[i] leads from level i + 1 to level i of the encoder, up[-1] from the bottleneck; up[0] to the picture.
        inputs = [2 * width for width in widths[:-1]] + [widths[-1]]
        outputs = [AFFINE_CHANNELS if head == "affine" else 3, *widths[:-1]]
        self.up = nn.ModuleList(
            _initialised(_up(upsampling, wide, narrow, bias=level == 0))
            for level, (wide, narrow) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.norm = nn.ModuleList(
            _norm(name, width, key_channels, project_value, cosine)
            for name, width in zip(reversed(norms), widths, strict=False)
        )
        self.gate = nn.ModuleList(_initialised(nn.Conv2d(2 * width, 2 * width, 1)) for width in widths[:GATED])
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        if encoder_norm == "none":
            for convolution in self.down:
                nn.init.kaiming_normal_(convolution.weight, 0.2)

    def forward(self, composite: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Harmonize a batch.

        Args:
            composite: (B, 3, H, W) in [0, 1], any size.
            mask: (B, 1, H, W) floating in [0, 1]; above 0.5 is foreground for the statistics; the output is blended
                with it.
            valid: (B, 1, H, W), 0 where a pixel is to enter no statistic and to stay as it is (a transparent
                background);
                None: all pixels are valid.

        Returns:
            (B, 3, H, W): network * mask + composite * (1 - mask), not clamped to [0, 1].

        Raises:
            ValueError: shapes that do not belong together.
        """
        _check_inputs(composite, mask, valid)
        blend = mask.to(composite.dtype) if valid is None else mask.to(composite.dtype) * valid
        if self.head == "affine":
            return composite + affine_change(self.coefficients(composite, mask, valid), composite) * blend
        prediction = torch.tanh(self._predict(composite, mask, valid))
        if self.head == "residual":
            return composite + prediction * blend
        return torch.lerp(composite, (prediction + 1) / 2, blend)

    def coefficients(self, composite: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Of an "affine" head the transform D, b of each pixel, `output = c + D c + b` for a colour c: (B, 12, H, W).

        D[i, j] is at channel 3 i + j, and b at 9 to 11. A picture whose longer side exceeds `working_size` is reduced
        to it for the network, and the coefficients are enlarged: they, not pixels, are what changes with the size.

        Args, Raises: as of `forward`.
        """
        if self.head != "affine":
            raise ValueError(f'only a network with head="affine" has coefficients; this one\'s head is {self.head!r}')
        _check_inputs(composite, mask, valid)
        size = composite.shape[-2:]
        small = reduced_size(size, self.working_size)
        if torch.compiler.is_exporting() or small == tuple(size):
            raw = self._predict(composite, mask, valid)
        else:
            raw = _enlarge(self._predict(*_reduce(composite, mask, valid, small)), size)
        return _about_grey(raw)

    def _predict(self, composite: Tensor, mask: Tensor, valid: Tensor | None) -> Tensor:
        """The last convolution's maps at the size and in the dtype of the composite."""
        height, width = composite.shape[-2:]
        image, foreground, known = _pad(composite, mask, valid, 2**self.levels)
        regions = Regions(foreground, known)
        prediction = self._decode(*self._encode(image, foreground, regions), regions)
        return _crop(prediction, height, width).to(composite.dtype)

    def _encode(self, image: Tensor, mask: Tensor, regions: Regions) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck and the skips from fine to coarse. A skip is taken after the activation, as RainNet's is."""
        x = image * 2 - 1
        if self.in_channels > 3:
            x = torch.cat([x, mask.to(x.dtype)], dim=1)
        if self.in_channels == 7:
            matched = torch.where(mask > THRESHOLD, region_norm(image, regions), image)
            x = torch.cat([x, matched.clamp(0, 1) * 2 - 1], dim=1)
        skips: list[Tensor] = []
        for level, convolution in enumerate(self.down):
            x = convolution(x)
            if level == self.levels - 1:
                break
            normalised = level > 0 and self.encoder_norm == "instance"
            x = F.leaky_relu(F.instance_norm(x) if normalised else x, 0.2)
            skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], regions: Regions) -> Tensor:
        for level in range(self.levels - 1, 0, -1):
            x = self.up[level](F.relu(x))
            at = level - 1
            norm = self.norm[at]
            x = norm(x, regions) if isinstance(norm, RAIN) else norm(x)
            if GATED < level < self.levels - 1:
                x = self.dropout(x)
            x = torch.cat([skips[at], x], dim=1)
            if at < GATED:
                x = torch.sigmoid(self.gate[at](x)) * x
        return self.up[0](F.relu(x))


class ConvolveEnlarge(nn.Conv2d):
    """A 3x3 convolution, then bilinear enlargement by 2.

    Instead of a transposed convolution of stride 2, whose four interleaved kernels leave checkerboards. Convolving
    before enlarging costs 9/16 of that convolution's multiplications, and a convolution after it 9/4.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(super().forward(input), scale_factor=2.0, mode="bilinear")


def affine_change(coefficients: Tensor, colour: Tensor) -> Tensor:
    """D c + b for coefficients (B, 12, H, W), as of `HarmonizationUNet.coefficients`, and colours c (B, 3, H, W)."""
    change = coefficients[:, 9:]
    for channel in range(3):
        change = torch.addcmul(change, coefficients[:, channel:9:3], colour[:, channel : channel + 1])
    return change


def reduced_size(size: Sequence[int], longest: int) -> tuple[int, int]:
    """Height and width with the longer side reduced to `longest` pixels; a smaller size stays as it is."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _about_grey(raw: Tensor) -> Tensor:
    """Coefficients of c from those of c - 0.5, in which a matrix and an offset can be learned apart."""
    offset = raw[:, 9:] - 0.5 * (raw[:, 0:9:3] + raw[:, 1:9:3] + raw[:, 2:9:3])
    return torch.cat([raw[:, :9], offset], dim=1)


def _reduce(
    composite: Tensor, mask: Tensor, valid: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Means over pixels; colours are means over valid pixels."""

    def shrink(x: Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)

    if valid is None:
        return shrink(composite), shrink(mask), None
    known = valid.to(composite.dtype)
    share = shrink(known)
    colour = shrink(torch.where(known > THRESHOLD, composite, 0) * known) / share.clamp_min(1e-6)
    return colour, shrink(mask * known) / share.clamp_min(1e-6), (share > 0).to(known.dtype)


def _enlarge(raw: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(raw, size=tuple(size), mode="bilinear", align_corners=False)


def _up(upsampling: str, wide: int, narrow: int, bias: bool) -> nn.Conv2d | nn.ConvTranspose2d:
    if upsampling == "resize":
        return ConvolveEnlarge(wide, narrow, 3, padding=1, bias=bias)
    return nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=bias)


def _initialised(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    nn.init.normal_(convolution.weight, 0.0, INIT_STD)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _norm(name: str, channels: int, key_channels: int | None, project_value: bool, cosine: bool) -> nn.Module:
    if name == "bain":
        return BAIN(channels, key_channels, project_value, cosine=cosine)
    kinds = {"rain": RAIN, "rainnet": ReleasedRAIN, "instance": nn.InstanceNorm2d}
    return kinds[name](channels)


def _pad(composite: Tensor, mask: Tensor, valid: Tensor | None, multiple: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Replicate the composite to the right and below; what is added is not valid, and what is not valid is black."""
    if valid is not None:
        composite = torch.where(valid > THRESHOLD, composite, 0)
    if torch.compiler.is_exporting():
        return _pad_any(composite, mask, valid, multiple)
    bottom, right = -composite.shape[-2] % multiple, -composite.shape[-1] % multiple
    if not bottom and not right:
        return composite, mask, valid
    margin = (0, right, 0, bottom)
    known = F.pad(torch.ones_like(mask) if valid is None else valid, margin)
    return F.pad(composite, margin, mode="replicate"), F.pad(mask, margin), known


def _pad_any(composite: Tensor, mask: Tensor, valid: Tensor | None, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a decision on the size, so that one exported graph holds for all; `valid` is never None."""
    height, width = composite.shape[-2:]
    rows, columns = (
        torch.arange((side + multiple - 1) // multiple * multiple, device=mask.device) for side in (height, width)
    )
    inside = (rows < height)[:, None] & (columns < width)  # (H', W')
    row, column = rows.clamp(max=height - 1), columns.clamp(max=width - 1)
    image, foreground, known = (
        x.index_select(2, row).index_select(3, column)
        for x in (composite, mask, torch.ones_like(mask) if valid is None else valid)
    )
    return image, foreground * inside, known * inside


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    if not torch.compiler.is_exporting():
        return x[..., :height, :width]
    # A slice would ask whether it is shorter than x.
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    return x.index_select(2, rows).index_select(3, columns)


def _check_inputs(composite: Tensor, mask: Tensor, valid: Tensor | None) -> None:
    if composite.dim() != 4 or composite.shape[1] != 3:
        raise ValueError(f"composite must have shape (B, 3, H, W), got {tuple(composite.shape)}")
    wanted = (composite.shape[0], 1, *composite.shape[-2:])
    for name, tensor in {"mask": mask, "valid": valid}.items():
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} must have the composite's batch and size {wanted}, got {tuple(tensor.shape)}")


def _check_choice(name: str, given: str, wanted: tuple[str, ...]) -> None:
    if given not in wanted:
        raise ValueError(f"{name} must be one of {', '.join(wanted)}, got {given!r}")


def _check_options(in_channels: int, base_channels: int, levels: int, norms: tuple[str, ...]) -> None:
    if in_channels not in IN_CHANNELS:
        raise ValueError(f"in_channels must be 3, 4 (with the mask) or 7 (with matched colours), got {in_channels}")
    if base_channels < 1:
        raise ValueError(f"base_channels must be positive, got {base_channels}")
    if not 5 <= levels <= 10:
        raise ValueError(f"levels must be 5 to 10, got {levels}")
    if len(norms) != levels - 1 or any(name not in NORMS for name in norms):
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, or {levels - 1} of them, got {norms}")
