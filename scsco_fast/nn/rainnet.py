"""RainNet's published checkpoints (`net_G_last.pth`) as a `HarmonizationUNet`."""

from collections.abc import Mapping

from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.nn.unet import HarmonizationUNet

# RainNet's modules from the outside in, beside ours.
_BLOCK = ["unet_block" + depth * ".submodule" for depth in range(4)]
_DOWN = ["model_layer0", "model_layer1.1", "model_layer2.1", "model_layer3.1"]
_DOWN += [f"{block}.down.1" for block in _BLOCK[:3]] + [f"{_BLOCK[3]}.up.1"]
_UP = ["model_out.1", "model_layer13.1", "model_layer12.1", "model_layer11.1"]
_UP += [f"{block}.up.1" for block in _BLOCK[:3]] + [f"{_BLOCK[3]}.up.3"]
_NORM = ["model_layer13norm", "model_layer12norm", "model_layer11norm"]
_NORM += [f"{block}.upnorm" for block in _BLOCK]
_GATE = ["model_layer13att.0", "model_layer12att.0", "model_layer11att.0"]
PREFIXES = {
    f"{ours}.{level}": theirs
    for ours, names in {"down": _DOWN, "up": _UP, "norm": _NORM, "gate": _GATE}.items()
    for level, theirs in enumerate(names)
}


def from_rainnet(state: Mapping[str, Tensor]) -> HarmonizationUNet:
    """RainNet's generator with these weights, in eval mode.

    Its output equals RainNet's to float32 rounding where every level of the decoder has foreground and background
    pixels; in an empty region RainNet divides by sqrt(eps), this project by 1.

    Args:
        state: the generator's state dict, as `torch.load` reads `net_G_last.pth`.

    Raises:
        ScscoError: a key is missing, unexpected or of another shape; the message names the first ones.

    Example:
        >>> from scsco_fast.nn.rainnet import from_rainnet, to_rainnet
        >>> import scsco_fast as sf
        >>> model = sf.HarmonizationUNet(in_channels=3, base_channels=4, norm="rain")
        >>> from_rainnet(to_rainnet(model)).config["base_channels"]
        4
    """
    first = state.get("model_layer0.weight")
    if first is None or first.dim() != 4:
        raise ScscoError("not a RainNet generator: model_layer0.weight is missing; give the dict of net_G_last.pth")
    model = HarmonizationUNet(in_channels=first.shape[1], base_channels=first.shape[0], norm="rain", head="direct")
    wanted = {_rainnet_key(key): (key, tensor.shape) for key, tensor in model.state_dict().items()}
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    for key in wanted.keys() & state.keys():
        if state[key].shape != wanted[key][1]:
            problems.append(f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key][1])}")
    if problems:
        raise ScscoError(f"not a RainNet generator: {'; '.join(sorted(problems)[:3])}")
    model.load_state_dict({ours: state[theirs] for theirs, (ours, _) in wanted.items()})
    return model.eval()


def to_rainnet(model: HarmonizationUNet) -> dict[str, Tensor]:
    """The state dict of a model of RainNet's architecture under RainNet's keys."""
    return {_rainnet_key(key): tensor for key, tensor in model.state_dict().items()}


def _rainnet_key(key: str) -> str:
    kind, level, rest = key.split(".", 2)
    return f"{PREFIXES[f'{kind}.{level}']}.{rest}"
