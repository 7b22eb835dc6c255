"""The training objective of SCS-Co: reconstruction plus the two style contrastive ratios."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.ops import feature_distances, gram_distances, masked_gram
from scsco_fast.style.mosaic import Mosaic
from scsco_fast.style.negatives import make_negatives
from scsco_fast.style.vgg import VGG16Features

GRAMS = ("channel", "position")
SELF_STYLES = ("feature", "gram")
RECONSTRUCTIONS = ("l1", "foreground")
LEAST_FOREGROUND = 1 / 64  # share of the picture: a smaller foreground weighs less, in proportion
RMS_EPS = 1e-4  # (0.01)^2: an error of 2.5 grey levels or less counts quadratically
# Of the mean squared error: with 1/2 a network hedges where it should change much, with 1 small errors hardly count.
FOREGROUND_POWER = 0.75
RATIO_EPS = 1e-8

Features = dict[str, Tensor]  # by layer


class SCSCoTerms(NamedTuple):
    """Every term of the loss, as 0-d tensors, float32 (float64 if a picture is); only `total` carries a graph.

    Attributes:
        total: reconstruction + style_weight * (self_style + consistency).
        reconstruction: mean |output - real|, or the foregrounds' error.
        self_style: the foreground self-style ratio L_self, in [0, 1].
        consistency: the foreground-background style consistency ratio L_cons, in [0, 1].
        self_positive, self_negative: D(f, f+), and D(f, f-_k) averaged over k.
        consistency_positive, consistency_negative: D(c, c+), and D(c, c-_k) averaged over k.
    """

    total: Tensor
    reconstruction: Tensor
    self_style: Tensor
    consistency: Tensor
    self_positive: Tensor
    self_negative: Tensor
    consistency_positive: Tensor
    consistency_negative: Tensor

    def named(self) -> dict[str, Tensor]:
        """The terms by name."""
        return self._asdict()


class SCSCoLoss(nn.Module):
    """Reconstruction and style contrastive loss of SCS-Co.

    With E the encoder, I^ the output, I the real image, I_k the negatives, m the mask, D the mean absolute difference:

        f = E(m I^)   f+ = E(m I)   f-_k = E(m I_k)   b+ = E((1 - m) I)
        c = G(f, b+)  c+ = G(f+, b+)  c-_k = G(f-_k, b+)      G(f, b) = f b^T / (H W)
        L_self = D(f, f+) / (D(f, f+) + sum_k D(f, f-_k) + 1e-8)
        L_cons = D(c, c+) / (D(c, c+) + sum_k D(c, c-_k) + 1e-8)
        L = mean |I^ - I| + style_weight * (L_self + L_cons)

    The two-sided contrast against several dynamic negatives is the paper's abstract; the formulas follow two later
    public readings of it; the ratio per image, gradients through the negative distances, the order of normalising and
    masking and every default are this project's decisions (docs/method.md).

    Args:
        encoder: E; may be None if style_weight is 0.
        style_weight: lambda; 0 leaves the style terms out.
        negatives: K, how many are made where the call is given none.
        gram: "channel": G is C x C; "position": H W x H W.
        self_style: "feature": D of features; "gram": D of the foreground's Gram matrices f f^T.
        layer_weights: weight of each encoder layer's two ratios; None: 1 / their number each.
        style_size: pictures whose longer side is larger are resized to it for the encoder; None: as they are.
        crop: let the encoder compute f, f+ and f-_k only where the mask reaches, in calls that are given `boxes`. The
            result is the same up to rounding (docs/training.md).
        reconstruction: "l1", as above, or "foreground", this project's: the mean over the images of

                (sum m |I^ - I|^2 / (3 max(sum m, H W / 64)) + 1e-4)^(3/4)

            which does not let large foregrounds outweigh small ones. The power is between a root mean square error's
            1/2, by which a network hedges where it should change much, and a mean squared error's 1.

    Raises:
        ValueError: an option that does not exist; the message names it.

    Source: SCS-Co (Hang et al., CVPR 2022).

    Examples:
        >>> import torch, scsco_fast as sf
        >>> loss = sf.SCSCoLoss(sf.VGG16Features(weights="random", layers=("relu1_2",)), negatives=2)
        >>> real, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
        >>> mask[..., 8:24] = 1
        >>> terms = loss(real.clone().requires_grad_(), real, (real * 0.7), mask)
        >>> float(terms.self_style), float(terms.reconstruction)
        (0.0, 0.0)
    """

    def __init__(
        self,
        encoder: VGG16Features | None,
        style_weight: float = 0.01,
        negatives: int = 5,
        gram: str = "channel",
        self_style: str = "feature",
        layer_weights: Mapping[str, float] | None = None,
        style_size: int | None = None,
        crop: bool = True,
        reconstruction: str = "l1",
    ) -> None:
        super().__init__()
        if reconstruction not in RECONSTRUCTIONS:
            raise ValueError(f"reconstruction must be one of {', '.join(RECONSTRUCTIONS)}, got {reconstruction!r}")
        if gram not in GRAMS:
            raise ValueError(f"gram must be one of {', '.join(GRAMS)}, got {gram!r}")
        if self_style not in SELF_STYLES:
            raise ValueError(f"self_style must be one of {', '.join(SELF_STYLES)}, got {self_style!r}")
        if style_weight < 0 or (style_weight > 0 and encoder is None):
            raise ValueError(f"style_weight must be 0, or positive with an encoder; got {style_weight}")
        if negatives < 1:
            raise ValueError(f"negatives must be at least 1 (the composite), got {negatives}")
        layers = () if encoder is None else encoder.layers
        if layer_weights is not None and set(layer_weights) != set(layers):
            raise ValueError(f"layer_weights must name the encoder's layers {layers}, got {tuple(layer_weights)}")
        self.encoder = encoder
        self.style_weight = style_weight
        self.negatives = negatives
        self.gram = gram
        self.self_style = self_style
        self.layer_weights = dict(layer_weights or {name: 1 / len(layers) for name in layers})
        self.style_size = style_size
        self.crop = crop
        self.reconstruction = reconstruction

    def forward(
        self,
        output: Tensor,
        real: Tensor,
        composite: Tensor,
        mask: Tensor,
        negatives: Tensor | None = None,
        generator: torch.Generator | None = None,
        boxes: Tensor | Mosaic | None = None,
    ) -> SCSCoTerms:
        """The loss of a batch, computed in float32 or wider but for the encoder, which has its own dtype.

        Every term of a batch without images is 0, and so is its gradient: what is summed over images has none to sum.
        torch's own mean losses are NaN there; a process whose share of the last batch is empty would give that NaN to
        all others when gradients are averaged.

        Args:
            output, real, composite: (B, 3, H, W) in [0, 1], float16 to float64; output with a graph.
            mask: (B, 1, H, W) in [0, 1], 1 = foreground.
            negatives: (B, K, 3, H, W) ready made; None: `make_negatives` with this loss's K.
            generator: for the negatives, on the CPU.
            boxes: `scsco_fast.foreground_boxes` of the mask, taken on the CPU; under torch.compile, which cannot read
                them, the `mosaic` of them. None: the encoder computes whole images.
        """
        dtype = accumulate_dtype(output, real, composite)
        output, real, composite = output.to(dtype), real.to(dtype), composite.to(dtype)
        mask = mask.to(dtype)
        if output.shape[0] == 0:
            nothing = (output - real).sum()
            return SCSCoTerms(nothing, *(nothing.detach(),) * 7)
        if self.reconstruction == "l1":
            reconstruction = (output - real).abs().mean()
        else:
            reconstruction = foreground_error(output, real, mask)
        if self.style_weight == 0 or self.encoder is None:
            zero = torch.zeros_like(reconstruction)
            return SCSCoTerms(reconstruction, reconstruction.detach(), *(zero,) * 6)
        if negatives is None:
            negatives = make_negatives(real, composite, mask, self.negatives, generator)
        negatives = negatives.to(dtype)
        if isinstance(boxes, Tensor):
            boxes = self.mosaic(boxes, mask.shape[-2], mask.shape[-1])
        style = self._style_terms(output, real, mask, negatives, boxes if self.crop else None)
        total = reconstruction + self.style_weight * (style[0] + style[1])
        return SCSCoTerms(total, reconstruction.detach(), *(term.detach() for term in style))

    def mosaic(self, boxes: Tensor | None, height: int, width: int, fixed: bool = False) -> Mosaic | None:
        """Where the encoder computes images of `height` x `width` with these `scsco_fast.foreground_boxes`.

        None where it computes whole images: with `crop` off, without boxes or encoder, or because that is cheaper.
        `fixed`: few canvas sizes, so that torch.compile compiles few times; see `VGG16Features.mosaic`.
        """
        if not self.crop or boxes is None or self.encoder is None:
            return None
        size = self._style_side(height, width)
        if size != (height, width):
            boxes = scaled(boxes, (height, width), size)
        return self.encoder.mosaic(boxes, *size, fixed=fixed)

    def _style_terms(
        self, output: Tensor, real: Tensor, mask: Tensor, negatives: Tensor, mosaic: Mosaic | None
    ) -> list[Tensor]:
        """L_self, L_cons, and the four mean distances behind them, weighted over the layers."""
        assert self.encoder is not None
        batch, count = negatives.shape[:2]
        output, real, mask, negatives = (self._resized(t) for t in (output, real, mask, negatives.flatten(0, 1)))
        others = torch.cat([real.unsqueeze(1), negatives.unflatten(0, (batch, count))], dim=1)  # (B, 1 + K, 3, h, w)
        terms = output.new_zeros(6)
        moving, background, known = (
            self._whole_features(output, real, mask, others)
            if mosaic is None
            else self._mosaic_features(output, real, mask, others, mosaic)
        )
        for layer, weight in self.layer_weights.items():
            terms = terms + weight * self._layer_terms(moving[layer], background[layer], known[layer])
        return list(terms.unbind())

    def _whole_features(self, output: Tensor, real: Tensor, mask: Tensor, others: Tensor) -> tuple[Features, ...]:
        """f, b+ and (B, 1 + K, C, h, w) f+ and f-_k of every layer; all but f in one batch without gradients."""
        assert self.encoder is not None
        batch, count = others.shape[:2]
        with torch.no_grad():
            images = torch.cat([others.flatten(0, 1), real])
            masks = torch.cat([mask.repeat_interleave(count, dim=0), 1 - mask])
            fixed = self.encoder(images, masks)
        split = {layer: features.split([batch * count, batch]) for layer, features in fixed.items()}
        background = {layer: pair[1] for layer, pair in split.items()}
        known = {layer: pair[0].unflatten(0, (batch, count)) for layer, pair in split.items()}
        return self.encoder(output, mask), background, known

    def _mosaic_features(
        self, output: Tensor, real: Tensor, mask: Tensor, others: Tensor, mosaic: Mosaic
    ) -> tuple[Features, ...]:
        """The same with f, f+ and f-_k from a mosaic; b+ has content everywhere and is computed whole."""
        assert self.encoder is not None
        with torch.no_grad():
            known = self.encoder.forward_mosaic(others, mask, mosaic)
            background = self.encoder(real, 1 - mask)
        moving = self.encoder.forward_mosaic(output.unsqueeze(1), mask, mosaic)
        return {layer: features.squeeze(1) for layer, features in moving.items()}, background, known

    def _layer_terms(self, anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
        """The six terms of one layer; others (B, 1 + K, C, h, w) holds the positive first."""
        if self.self_style == "gram":
            grams = masked_gram(others.flatten(0, 1)).unflatten(0, others.shape[:2])
            own = feature_distances(masked_gram(anchor).unsqueeze(1), grams.unsqueeze(2))
        else:
            own = feature_distances(anchor, others)
        if self.gram == "position":
            anchor, background, others = (_pixels_as_channels(t) for t in (anchor, background, others))
        shared = gram_distances(anchor, background, others)
        parts = [_ratio(own), _ratio(shared)]
        parts += [part.mean() for distances in (own, shared) for part in (distances[:, 0], distances[:, 1:])]
        return torch.stack(parts)

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = self._style_side(height, width)
        if size == (height, width):
            return images
        if images.shape[1] == 1:
            return F.interpolate(images, size=size, mode="nearest")
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    def _style_side(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the encoder is given."""
        longest = max(height, width)
        if self.style_size is None or longest <= self.style_size:
            return height, width
        return max(1, round(height * self.style_size / longest)), max(1, round(width * self.style_size / longest))


def foreground_error(output: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each foreground to the power 3/4, averaged over the images, as `SCSCoLoss` says."""
    difference = torch.where(mask > 0, output - real, 0)  # the background may be NaN, and 0 * NaN would be
    squares = (difference.square() * mask).sum(dim=(1, 2, 3))
    area = mask.sum(dim=(1, 2, 3)).clamp_min(LEAST_FOREGROUND * mask.shape[-2] * mask.shape[-1])
    return (squares / (3 * area) + RMS_EPS).pow(FOREGROUND_POWER).mean()


def scaled(boxes: Tensor, size: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Boxes after resizing by nearest neighbour, one pixel larger: where the resizing itself may round."""
    found = boxes.clone()
    for axis, (old, new) in enumerate(zip(size, wanted, strict=True)):
        found[:, axis] = (boxes[:, axis] * new // old - 1).clamp_min(0)
        found[:, 2 + axis] = (-(-boxes[:, 2 + axis] * new // old) + 1).clamp_max(new)
    empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return torch.where(empty.unsqueeze(1), 0, found)


def _ratio(distances: Tensor) -> Tensor:
    """D+ / (D+ + sum_k D-_k + eps) per image, averaged; distances (B, 1 + K) hold the positive first."""
    return (distances[:, 0] / (distances.sum(dim=1) + RATIO_EPS)).mean()


def _pixels_as_channels(features: Tensor) -> Tensor:
    """(..., C, H, W) as (..., H W, C, 1): `gram_distances` of it compares f^T b, pixels by pixels."""
    return features.flatten(-2).transpose(-1, -2).unsqueeze(-1)
