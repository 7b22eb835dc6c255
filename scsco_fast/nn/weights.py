"""Model files: the tensors of a `HarmonizationUNet` and, as metadata, the arguments that rebuild it.

A model file is a safetensors file: it holds no code, so opening a stranger's is safe. A file that does not match the
network exactly is an error; nothing is ever loaded in part.

The package holds two such files, which docs/model-card.md describes. Their names stand for them wherever a model file
is asked for: "compact" is whatever model is the best, "compact-free" one that was trained on freely licensed
photographs alone.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from scsco_fast.errors import ScscoError
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.system.files import replacing, sha256

FORMAT = 1
ARCHITECTURE = "HarmonizationUNet"
_SHOWN = 3  # names listed in an error

MODELS = Path(__file__).resolve().parent.parent / "models"
DEFAULT = "compact"
# SHA-256 of the models in the package, by name.
SHIPPED_SHA256 = {
    DEFAULT: "def8f38ca3b784e391c4691606d92af9c6f2f9c39abb15cb0555e007ca3ae00f",
    "compact-free": "ea3f735c81120615274791e5011663faed8784fa03307593cfc98496fe47ce76",
}


def save_model(model: HarmonizationUNet, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write `model` to a safetensors file, atomically: `path` holds the old file or the new one, never half of one.

    Args:
        extra: more metadata that JSON can hold. `working_size` is the long side in pixels at which the model works
            (its training size, 256 if not given); other keys are free and come back from `read_metadata`.

    Raises:
        ScscoError: the file cannot be written, a weight is not finite, or `extra` takes a reserved name.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_model(HarmonizationUNet(base_channels=4, levels=5), path, {"working_size": 64})
        >>> load_model(path).working_size
        64
    """
    from safetensors.torch import save_file

    metadata: dict[str, Any] = {"format": FORMAT, "architecture": ARCHITECTURE, "config": model.config}
    extra = {"working_size": model.working_size, **(extra or {})}
    reserved = sorted(metadata.keys() & extra.keys())
    if reserved:
        raise ScscoError(f"extra has the reserved name {reserved[0]}; choose another")
    # Copies: safetensors refuses tensors that share memory, and a view would write its whole storage.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    _check_finite(tensors, str(path))
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata={"scsco": json.dumps({**metadata, **extra})})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> HarmonizationUNet:
    """The network of a model file, with its weights, in eval mode on `device`. Its `working_size` is the file's.

    Args:
        path: a file, or "compact" or "compact-free", the models in the package (a file of that name comes first).

    Raises:
        ScscoError: no such file, not a model file, another architecture, or tensors that do not match exactly.
    """
    from safetensors.torch import load_file

    if str(path) in SHIPPED_SHA256 and not Path(path).exists():
        path = check_shipped(str(path))
    metadata = read_metadata(path)
    try:
        model = HarmonizationUNet(**metadata["config"])
    except (TypeError, ValueError) as error:
        raise ScscoError(f"{path}: its configuration does not build a {ARCHITECTURE} ({error})") from error
    tensors = load_file(str(path))
    _check_match(model.state_dict(), tensors, str(path))
    _check_finite(tensors, str(path))
    model.load_state_dict(tensors, strict=True)
    model.working_size = metadata["working_size"]
    return model.to(device).eval()


def load_default_model(device: str | torch.device = "cpu") -> HarmonizationUNet:
    """The network "compact" in the package, in eval mode on `device`: what is used where no model is given.

    Trained by this project; docs/model-card.md says on which photographs and under which terms, how, and how well it
    does. The file is compared with its checksum first.

    Raises:
        ScscoError: the file is missing or another one than this version's.

    Examples:
        >>> load_default_model().config["norm"]
        ['bain', 'bain', 'bain', 'rain']
    """
    return load_model(check_shipped(DEFAULT), device)


@functools.cache
def shared_default_model() -> HarmonizationUNet:
    """`load_default_model`, read once per process; for callers that do not change it."""
    return load_default_model()


def shipped_file(name: str) -> Path:
    """Where the model of that name lies in the package."""
    return MODELS / f"{name}.safetensors"


def check_shipped(name: str) -> Path:
    """The file of a model in the package; one that is missing, or whose bytes are not this version's, is refused.

    Raises:
        ScscoError: in one line, with what to do.
    """
    path, wanted = shipped_file(name), SHIPPED_SHA256[name]
    if not path.is_file():
        raise ScscoError(f"{path}: the package's own model is missing; install scsco-fast again, or give a model")
    found = sha256(path)
    if found != wanted:
        raise ScscoError(
            f"{path}: its SHA-256 is {found[:12]}..., this version's is {wanted[:12]}...; "
            "install scsco-fast again, or give a model"
        )
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a model file: format, architecture, config, working_size and what `save_model` was given.

    Raises:
        ScscoError: no such file, or not a model file of this project.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _check_kind(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("scsco")
    except (SafetensorError, OSError) as error:
        raise ScscoError(
            f"{path}: not a readable safetensors file ({error}); wanted a run's model.safetensors"
        ) from error
    if text is None:
        raise ScscoError(f"{path}: a safetensors file, but not of scsco-fast; wanted the model.safetensors of a run")
    return _parse_metadata(path, text)


def _parse_metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError as error:
        raise ScscoError(f"{path}: its metadata is damaged ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise ScscoError(f"{path}: model file format {found!r}, this version reads {FORMAT}; update scsco-fast")
    if metadata.get("architecture") != ARCHITECTURE:
        raise ScscoError(f"{path}: holds a {metadata.get('architecture')!r}; wanted a {ARCHITECTURE}")
    size = metadata.get("working_size")
    if not isinstance(metadata.get("config"), dict) or not isinstance(size, int) or size < 1:
        raise ScscoError(f"{path}: its metadata is damaged (config or working_size is missing)")
    return metadata


def _check_kind(path: Path) -> None:
    if path.is_dir():
        raise ScscoError(f"{path}: a folder; pass the model file in it: {path / 'model.safetensors'}")
    if not path.is_file():
        names = " or ".join(SHIPPED_SHA256)
        raise ScscoError(f"{path}: no such file; wanted a model.safetensors (`scsco train` writes one), or {names}")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ScscoError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if magic.startswith((b"PK\x03\x04", b"\x80\x02\x8a")):
        raise ScscoError(
            f"{path}: a training checkpoint or other pickle; pass the model.safetensors of its run instead"
        )


def _check_match(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], path: str) -> None:
    differences = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted.keys() & found.keys()
            if found[name].shape != wanted[name].shape
        ],
    }
    parts = [f"{kind}: {_some(sorted(names))}" for kind, names in differences.items() if names]
    if parts:
        raise ScscoError(f"{path}: its tensors do not match its configuration; nothing was loaded ({'; '.join(parts)})")


def _check_finite(tensors: Mapping[str, torch.Tensor], path: str) -> None:
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ScscoError(f"{path}: NaN or infinite weights in {_some(bad)}; the training has diverged")


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
