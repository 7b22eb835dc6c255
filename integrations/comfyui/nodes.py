"""The node "Harmonize (SCS-Co)". It imports scsco-fast when it runs, so that ComfyUI starts without it, and quickly."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = "nothing"  # of the colours is kept


def _input(kind: str | list[str], tooltip: str, **options: object) -> tuple[str | list[str], dict[str, object]]:
    """An input as ComfyUI declares it: its type or its choices, and its options."""
    return kind, {**options, "tooltip": tooltip}


class HarmonizeSCSCo:
    """Recolours what a mask marks in a picture until it looks as if it had been taken in one shot with the rest."""

    DESCRIPTION = (
        "Fits the colours of a pasted foreground to its background, with the network SCS-Co. Nothing but the "
        "foreground's colours changes, and the picture keeps its size."
    )
    CATEGORY = "image/color"
    FUNCTION = "harmonize"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The harmonized picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "composite": _input("IMAGE", "The picture with the pasted foreground."),
                "mask": _input(
                    "MASK",
                    "1 is foreground, values between blend. One mask serves a whole batch; a mask of another size is "
                    "resized.",
                ),
                "strength": _input(
                    "FLOAT",
                    "The share of the change that is applied: 0 is none of it, 1 is all.",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                ),
                "invert_mask": _input(
                    "BOOLEAN",
                    "Swap foreground and background. Load Image's own mask is 1 where a picture is transparent, so a "
                    "cut-out's needs this.",
                    default=False,
                ),
                "grow_mask": _input(
                    "INT",
                    "Pixels by which the foreground grows to each side; negative ones shrink it.",
                    default=0,
                    min=-256,
                    max=256,
                    step=1,
                ),
                "working_size": _input(
                    "INT",
                    "Long side in pixels at which the network works; 0 is the size that it was trained at. The result "
                    "always has the picture's own size.",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                ),
                "keep": _input(
                    [NOTHING, "luma", "colour"],
                    "What of the foreground stays as it is: luma, its brightness; colour, its hue and saturation.",
                    default=NOTHING,
                ),
            },
            "optional": {
                "model": _input(
                    "STRING",
                    "Empty is the model in scsco-fast; compact-free is its smaller one, trained on freely licensed "
                    "photographs; or the path of a model.safetensors.",
                    default="",
                ),
            },
        }

    def harmonize(
        self,
        composite: Tensor,
        mask: Tensor,
        strength: float,
        invert_mask: bool,
        grow_mask: int,
        working_size: int,
        keep: str,
        model: str = "",
    ) -> tuple[Tensor]:
        """(B, H, W, 3) float32 in [0, 1]; a fourth channel comes back as it is. Errors are one line."""
        scsco = _scsco_fast()
        region = _fitted(mask, composite.shape[1:3])  # (B or 1, H, W)
        region = 1 - region if invert_mask else region
        if len(region) not in (1, len(composite)):
            raise ValueError(f"there are {len(region)} masks for {len(composite)} pictures; give one for each, or one")
        if float(region.max()) * 255 < 4:  # values up to 3 count as none
            raise ValueError("the mask is empty: nothing is foreground; connect another mask, or set invert_mask")
        device = _device()
        done = scsco.harmonize(
            composite[..., :3].float().clamp(0, 1),  # as ComfyUI saves pictures
            region,
            _model(model.strip().strip('"'), str(device)),
            working_size or None,
            device,
            strength=strength,
            grow_mask=grow_mask,
            keep=None if keep == NOTHING else keep,
        )
        return (torch.cat([done, composite[..., 3:].to(done)], dim=-1),)


def _fitted(mask: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) in [0, 1] of a mask (H, W), (B, H, W) or (B, 1, H, W); resized as ComfyUI's own nodes do."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float().clamp(0, 1)
    return F.interpolate(flat, size=tuple(size), mode="bilinear")[:, 0]


def _scsco_fast() -> Any:
    try:
        import scsco_fast
    except ImportError as error:
        raise RuntimeError(
            f"scsco-fast cannot be imported ({error}); install it into ComfyUI's Python: pip install scsco-fast"
        ) from None
    return scsco_fast


@functools.lru_cache(maxsize=2)
def _model(name: str, device: str) -> Any:
    """The network of a file, or of a name in the package; it stays loaded."""
    scsco = _scsco_fast()
    return scsco.load_model(name, device) if name else scsco.load_default_model(device)


def _device() -> torch.device:
    """Where ComfyUI computes; the CPU outside of it."""
    try:
        from comfy import model_management
    except ImportError:
        return torch.device("cpu")
    return model_management.get_torch_device()


NODE_CLASS_MAPPINGS = {"HarmonizeSCSCo": HarmonizeSCSCo}
NODE_DISPLAY_NAME_MAPPINGS = {"HarmonizeSCSCo": "Harmonize (SCS-Co)"}
