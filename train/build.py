"""What a training is made of: the settings that this machine gives, the model, its loss and its optimizer."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scsco_fast.errors import ScscoError
from scsco_fast.nn.efficientnet import load_imagenet
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.style.loss import SCSCoLoss
from scsco_fast.style.mosaic import Mosaic
from scsco_fast.style.vgg import VGG16Features
from scsco_fast.train.checkpoint import restore_rng_state, rng_state
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.processes import Processes

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(config: TrainConfig, processes: Processes) -> TrainConfig:
    """`config` with "auto" replaced by what this machine has; what it or the processes cannot do is refused."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    name = name if processes.device is None else str(processes.device)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ScscoError(f"device {config.device!r} cannot be used here; wanted auto, cpu or cuda") from error
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"
    parts = processes.world_size * config.accumulate
    if config.batch_size % parts:
        raise ScscoError(
            f"batch_size {config.batch_size} cannot be shared by {processes.world_size} processes in "
            f"{config.accumulate} parts each; wanted a multiple of {parts}"
        )
    if config.cuda_graph and (device.type != "cuda" or processes.world_size > 1):
        raise ScscoError(
            f"cuda_graph is set for {processes.world_size} processes on {device.type}; it captures one process on one "
            "GPU: leave it out"
        )
    return dataclasses.replace(config, device=name, precision=precision)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block torch refuses operations without reproducible bits, if that is wanted."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def build_model(config: TrainConfig) -> tuple[HarmonizationUNet, SCSCoLoss | None, str]:
    """The seeded model and its loss on their device, and the name of the VGG-16 weights that were found."""
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    try:
        model = HarmonizationUNet(**config.architecture()).to(device).train()
        model.working_size = config.size  # an affine head works at this size at most
        # Of a resumed run too: it may have no checkpoint yet.
        if model.trunk is not None and config.encoder_weights == "imagenet":
            load_imagenet(model.trunk)
        state = rng_state(device)
        loss, source = build_loss(config)
    except ScscoError:
        raise
    except ValueError as error:
        raise ScscoError(str(error)) from error
    # Dropout's random numbers must not depend on what the loss drew for its weights.
    restore_rng_state(state, device)
    return model, loss, source


def build_loss(config: TrainConfig) -> tuple[SCSCoLoss | None, str]:
    """The style contrastive loss and the name of its weights; None where `style_weight` is 0."""
    if config.style_weight == 0:
        return None, "none (style_weight 0)"
    encoder = VGG16Features(weights=config.vgg_weights, layers=config.vgg_layers).to(config.device)
    if config.channels_last:
        nn.utils.convert_conv2d_weight_memory_format(encoder, torch.channels_last)
    if config.precision in AUTOCAST:
        # Once: autocast would cast the frozen weights anew at every step.
        encoder.features.to(AUTOCAST[config.precision])
    weights = config.layer_weights
    layer_weights = None if weights is None else dict(zip(config.vgg_layers, weights, strict=True))
    loss = SCSCoLoss(
        encoder,
        style_weight=config.style_weight,
        negatives=config.negatives,
        gram=config.gram,
        self_style=config.self_style,
        layer_weights=layer_weights,
        style_size=config.style_size,
        crop=config.style_crop,
        reconstruction=config.reconstruction,
    )
    return loss, encoder.source


def build_optimizer(model: HarmonizationUNet, config: TrainConfig) -> torch.optim.AdamW:
    """The fused Adam, which can skip an update on the device; AdamW without weight decay is Adam."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def parameter_groups(model: HarmonizationUNet, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups: all parameters, or those of a trained encoder apart; "share" is of the learning rate."""
    trunk = [] if model.trunk is None else list(model.trunk.parameters())
    inside = {id(parameter) for parameter in trunk}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside and parameter.requires_grad]
    groups = [{"params": others, "share": 1.0}]
    return groups if not trunk else [*groups, {"params": trunk, "share": config.encoder_lr}]


class Objective(nn.Module):
    """Network and loss as one module: what is compiled, and what averages gradients over processes.

    Args:
        model: the network.
        loss: SCSCoLoss; None leaves only its reconstruction term.
        reconstruction: which one, in steps without style terms; `loss` has its own.
    """

    def __init__(self, model: HarmonizationUNet, loss: SCSCoLoss | None, reconstruction: str = "l1") -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.reconstruction = SCSCoLoss(None, style_weight=0.0, reconstruction=reconstruction)

    def forward(
        self, composite: Tensor, real: Tensor, mask: Tensor, negatives: Tensor | None, mosaic: Mosaic | None
    ) -> dict[str, Tensor]:
        output = self.model(composite, mask)
        if negatives is None or self.loss is None:
            terms = self.reconstruction(output, real, composite, mask)
            return {"total": terms.total, "reconstruction": terms.reconstruction}
        return self.loss(output, real, composite, mask, negatives=negatives, boxes=mosaic).named()
