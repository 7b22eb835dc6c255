"""RainNet's published checkpoints (`net_G_last.pth`) as a `HarmonizationUNet`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scsco_fast.architecture import IN_CHANNELS
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
PARALLEL = "module."  # what torch.nn.DataParallel puts before every key


def read_rainnet(path: str | Path) -> HarmonizationUNet:
    """The generator of a RainNet checkpoint file, in eval mode: `from_rainnet` of what `net_G_last.pth` holds.

    Only tensors are unpickled (`weights_only`), so a stranger's file runs no code.

    Raises:
        ScscoError: no such file, no PyTorch file, one that holds more than tensors, or not a RainNet generator.

    Examples:
        >>> import tempfile, torch
        >>> from scsco_fast.nn.rainnet import read_rainnet, to_rainnet
        >>> import scsco_fast as sf
        >>> path = Path(tempfile.mkdtemp()) / "net_G_last.pth"
        >>> torch.save(to_rainnet(sf.HarmonizationUNet(in_channels=3, base_channels=4, norm="rainnet")), path)
        >>> read_rainnet(path).config["norm"]
        'rainnet'
    """
    path = Path(path)
    if not path.is_file():
        raise ScscoError(f"{path}: no such file; wanted RainNet's net_G_last.pth")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint fails in many ways: zip, pickle, storage sizes
        raise ScscoError(
            f"{path}: not a readable PyTorch file of tensors ({type(error).__name__}); wanted RainNet's net_G_last.pth"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ScscoError(f"{path}: not a dict of tensors; wanted the generator's state dict, net_G_last.pth")
    try:
        return from_rainnet(state)
    except ScscoError as error:
        raise ScscoError(f"{path}: {error}") from error


def from_rainnet(state: Mapping[str, Tensor]) -> HarmonizationUNet:
    """RainNet's generator with these weights, in eval mode.

    Its output equals RainNet's to float32 rounding, as `2 * output - 1` of pictures in RainNet's [-1, 1].

    Args:
        state: the generator's state dict, as `torch.load` reads `net_G_last.pth`; also saved from under DataParallel.

    Raises:
        ScscoError: a key is missing, unexpected or of another shape; the message names the first ones.

    Examples:
        >>> from scsco_fast.nn.rainnet import from_rainnet, to_rainnet
        >>> import scsco_fast as sf
        >>> model = sf.HarmonizationUNet(in_channels=3, base_channels=4, norm="rain")
        >>> from_rainnet(to_rainnet(model)).config["base_channels"]
        4
    """
    if state and all(str(key).startswith(PARALLEL) for key in state):
        state = {key.removeprefix(PARALLEL): tensor for key, tensor in state.items()}
    first = state.get("model_layer0.weight")
    if first is None or first.dim() != 4:
        raise ScscoError("not a RainNet generator: model_layer0.weight is missing; give the dict of net_G_last.pth")
    if first.shape[1] not in IN_CHANNELS or not first.shape[0]:
        raise ScscoError(f"not a RainNet generator: model_layer0.weight is {tuple(first.shape)}, not (N, 3, 4, 4)")
    model = HarmonizationUNet(in_channels=first.shape[1], base_channels=first.shape[0], norm="rainnet")
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
