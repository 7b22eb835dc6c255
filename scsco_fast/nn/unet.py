"""The generator: an attention U-Net whose decoder is normalised by foreground and background."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scsco_fast.architecture import ENCODERS, HEADS, IN_CHANNELS, NORMS, UPSAMPLINGS, WORKING_SIZE
from scsco_fast.nn import efficientnet
from scsco_fast.nn.affine import (
    AFFINE_CHANNELS,
    COLOUR_GAIN,
    INIT_STD,
    about_grey,
    pooled,
    pooled_along_outline,
    whole_transform,
)
from scsco_fast.nn.local_affine import apply_local_affine, extend
from scsco_fast.nn.norm import BAIN, RAIN, ReleasedRAIN
from scsco_fast.nn.sizes import crop, exporting, pad_inputs, reduce_inputs, reduced_size
from scsco_fast.ops import region_norm
from scsco_fast.regions import THRESHOLD, Regions

GATED = 3  # the finest decoder levels have a sigmoid-gated concatenation


class HarmonizationUNet(nn.Module):
    """Recolour the foreground of a composite so that it fits the background.

    `levels` convolutions of stride 2 (widths base * 1, 2, 4, 8, 8, ...), as many transposed convolutions, skip
    connections, and a norm after every transposed convolution but the last. The layout is RainNet's; BAIN in the
    decoder is SCS-Co's. With in_channels=3, norm="rainnet" and head="direct" it is RainNet, which
    `scsco_fast.nn.rainnet` loads. in_channels=7, the heads "residual" and "affine", upsampling="resize",
    and the options of BAIN are this project's, not the paper's (docs/method.md).

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
            composite, which learns in minutes what the other learns in days; "affine": twelve maps, a 3x3 matrix D and
            an offset b for each pixel, and the output is `c + D c + b` of the composite's colour c. The decoder's maps
            are added to one transform for the whole foreground, which the branch `whole` makes of the means and
            deviations that the input and the encoder's maps have in the foreground and in the background, and the input
            along both sides of the outline: RAIN and BAIN give the foreground's features the background's mean, so what
            says that *all* of the foreground is too dark does not pass the decoder. Such a network works at
            `working_size` pixels at most, and its transform is enlarged to the size of a larger picture; see
            `coefficients`.
        key_channels: of BAIN; None: min(C, 64).
        dropout: 0.5 after the norms of the decoder levels between the coarsest one and the gated ones, which 5 levels
            have not; with the "affine" head also 0.3 on the pooled features that its one transform for the whole
            foreground is made from, by which a few thousand photographs can be known by heart.
        project_value, cosine: BAIN's options of those names.
        encoder: "convolutions": as RainNet's; "efficientnet-lite0": `scsco_fast.nn.efficientnet`, whose weights know
            objects before the training; with 5 levels. `base_channels` is then the decoder's width alone.
        upsampling: "transposed": the decoder enlarges by transposed convolutions, as RainNet's does; "resize": by
            `ConvolveEnlarge`, which leaves no checkerboards.

    Attributes:
        config: the arguments, so that `HarmonizationUNet(**model.config)` is the same network. `upsampling` is in
            it only where it is not the default.
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
        encoder: str = "convolutions",
    ) -> None:
        super().__init__()
        norms = (norm,) * (levels - 1) if isinstance(norm, str) else tuple(norm)
        _check_options(in_channels, base_channels, levels, norms)
        _check_choice("head", head, HEADS)
        _check_choice("upsampling", upsampling, UPSAMPLINGS)
        _check_choice("encoder", encoder, ENCODERS)
        if encoder != "convolutions" and levels != len(efficientnet.CHANNELS):
            raise ValueError(f"levels must be {len(efficientnet.CHANNELS)} with encoder {encoder!r}, got {levels}")
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
        }
        # Files of before these options, and RainNet's, keep their configuration.
        if upsampling != "transposed":
            self.config["upsampling"] = upsampling
        if encoder != "convolutions":
            self.config["encoder"] = encoder
        self.working_size = WORKING_SIZE
        self.levels = levels
        self.head = head
        self.in_channels = in_channels
        widths = [base_channels * min(2**level, 8) for level in range(levels)]
        encoded = list(widths)  # channels of the encoder's maps, from fine to coarse
        self.trunk = None
        if encoder == "convolutions":
            self.down = nn.ModuleList(
                _initialised(nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False))
                for narrow, wide in zip([in_channels, *widths], widths, strict=False)
            )
        else:
            encoded = list(efficientnet.CHANNELS)
            self.trunk = efficientnet.EfficientNetLite0(in_channels - 3)
        # up[i] leads from level i + 1 to level i of the encoder, up[-1] from the bottleneck; up[0] to the picture.
        joined = [skip + width for skip, width in zip(encoded, widths, strict=True)][:-1]  # skips and decoder's maps
        inputs = [*joined, encoded[-1]]
        outputs = [AFFINE_CHANNELS if head == "affine" else 3, *widths[:-1]]
        self.up = nn.ModuleList(
            _initialised(_up(upsampling, wide, narrow, bias=level == 0))
            for level, (wide, narrow) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.norm = nn.ModuleList(
            _norm(name, width, key_channels, project_value, cosine)
            for name, width in zip(reversed(norms), widths, strict=False)
        )
        self.gate = nn.ModuleList(_initialised(nn.Conv2d(width, width, 1)) for width in joined[:GATED])
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.pooled_dropout = nn.Dropout(0.3 if dropout else 0.0)
        self.whole = whole_transform(4 * (2 * in_channels + sum(encoded))) if head == "affine" else None

    def forward(self, composite: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Harmonize a batch.

        Args:
            composite: (B, 3, H, W) in [0, 1], any size.
            mask: (B, 1, H, W) floating in [0, 1]; above 0.5 is foreground for the statistics; the output is blended
                with it.
            valid: (B, 1, H, W), 0 where a pixel is to enter no statistic and to stay as it is (a transparent
                background); None: all pixels are valid.

        Returns:
            (B, 3, H, W): network * mask + composite * (1 - mask), not clamped to [0, 1].

        Raises:
            ValueError: shapes that do not belong together.
        """
        _check_inputs(composite, mask, valid)
        blend = mask.to(composite.dtype) if valid is None else mask.to(composite.dtype) * valid
        if self.head == "affine":
            coefficients = self.coefficients(composite, mask, valid)
            colour = composite if valid is None else torch.where(valid > THRESHOLD, composite, 0)
            change = apply_local_affine(coefficients, colour.to(coefficients.dtype))
            return composite + (change * blend).to(composite.dtype)
        prediction = torch.tanh(self._predict(composite, mask, valid).to(composite.dtype))
        if self.head == "residual":
            return composite + prediction * blend
        return torch.lerp(composite, (prediction + 1) / 2, blend)

    def coefficients(
        self, composite: Tensor, mask: Tensor, valid: Tensor | None = None, working_size: int | None = None
    ) -> Tensor:
        """Of an "affine" head the transform D, b of each pixel, `output = c + D c + b` for a colour c.

        A picture whose longer side exceeds the working size is reduced to it for the network: a reduced pixel is
        foreground where most of the valid pixels that it covers are, and in an image without such a pixel wherever it
        covers any foreground; its colour is the mean over valid pixels. The coefficients are continued from the
        foreground to everywhere, since those of the background are trained for nothing, and then enlarged bilinearly:
        they, not pixels, are what changes with the size. An exported network works at the size that it is given.

        Args:
            composite, mask, valid: as of `forward`.
            working_size: longer side in pixels at which the network works at most; None is `self.working_size`.

        Returns:
            (B, 12, H, W) in float32 or wider, also under autocast: D[i, j] at channel 3 i + j, and b at 9 to 11. Only
            those of the foreground mean anything.

        Raises:
            ValueError: another head, or shapes that do not belong together.

        Examples:
            >>> import torch, scsco_fast as sf
            >>> model = sf.HarmonizationUNet(base_channels=4, levels=5, head="affine").eval()
            >>> composite, mask = torch.rand(1, 3, 50, 70), torch.zeros(1, 1, 50, 70)
            >>> mask[..., 10:30, 20:40] = 1
            >>> transform = model.coefficients(composite, mask)
            >>> matrix, offset = transform[:, :9].unflatten(1, (3, 3)), transform[:, 9:]
            >>> change = torch.einsum("bijhw,bjhw->bihw", matrix, composite) + offset
            >>> torch.allclose(model(composite, mask), composite + change * mask, atol=1e-6)
            True
        """
        if self.head != "affine":
            raise ValueError(f'only a network with head="affine" has coefficients; this one has head={self.head!r}')
        _check_inputs(composite, mask, valid)
        if exporting():  # a graph for all sizes cannot decide on the size
            return about_grey(self._predict(composite, mask, valid))
        size = composite.shape[-2:]
        small = self.inner_size(size, working_size)
        if small == tuple(size):
            return about_grey(self._predict(composite, mask, valid))
        composite, mask, valid = reduce_inputs(composite, mask, valid, small)
        transform = about_grey(self._predict(composite, mask, valid))
        transform = extend(transform, mask.to(transform.dtype))
        return F.interpolate(transform, size=size, mode="bilinear", align_corners=False)

    def inner_size(self, size: Sequence[int], working_size: int | None = None) -> tuple[int, int]:
        """Height and width at which the network sees a picture of this size, before it is padded."""
        if self.head != "affine":
            return size[0], size[1]
        return reduced_size(size, self.working_size if working_size is None else working_size)

    def _predict(self, composite: Tensor, mask: Tensor, valid: Tensor | None) -> Tensor:
        """The last convolution's maps at the composite's size; an affine head's in float32 or wider."""
        height, width = composite.shape[-2:]
        image, foreground, known = pad_inputs(composite, mask, valid, 2**self.levels)
        regions = Regions(foreground, known)
        entry = self._entry(image, foreground, regions)
        bottleneck, skips = self._encode(entry)
        prediction = self._decode(bottleneck, skips, regions)
        if self.whole is not None:
            shared = self._for_the_whole([entry, *skips, bottleneck], regions)
            prediction = prediction.to(torch.promote_types(composite.dtype, torch.float32)) + shared[:, :, None, None]
        return crop(prediction, height, width)

    def _for_the_whole(self, maps: list[Tensor], regions: Regions) -> Tensor:
        """(B, 12): one transform for all of the foreground."""
        assert self.whole is not None
        entry, *encoded = maps
        colours = COLOUR_GAIN * torch.cat([pooled(entry, regions), pooled_along_outline(entry, regions)], dim=1)
        objects = self.pooled_dropout(torch.cat([pooled(level, regions) for level in encoded], dim=1))
        features = torch.cat([colours, objects], dim=1)
        device = features.device.type
        exact = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with exact:
            return self.whole(features.to(next(self.whole.parameters()).dtype))

    def _entry(self, image: Tensor, mask: Tensor, regions: Regions) -> Tensor:
        """What the first convolution sees: (B, in_channels, H, W)."""
        x = image * 2 - 1
        if self.in_channels > 3:
            x = torch.cat([x, mask.to(x.dtype)], dim=1)
        if self.in_channels == 7:
            matched = torch.where(mask > THRESHOLD, region_norm(image, regions), image)
            x = torch.cat([x, matched.clamp(0, 1) * 2 - 1], dim=1)
        return x

    def _encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck and the skips from fine to coarse. A skip is taken after the activation, as RainNet's is."""
        if self.trunk is not None:
            *finer, bottleneck = self.trunk(x)
            return bottleneck, finer
        skips: list[Tensor] = []
        for level, convolution in enumerate(self.down):
            x = convolution(x)
            if level == self.levels - 1:
                break
            x = F.leaky_relu(x if level == 0 else F.instance_norm(x), 0.2)
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

    In place of a 4x4 transposed convolution of stride 2, whose four interleaved kernels leave checkerboards. Convolved
    before it is enlarged, a map costs 9/16 of that convolution's multiplications; after it, 9/4 of them.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(super().forward(input), scale_factor=2.0, mode="bilinear")


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
