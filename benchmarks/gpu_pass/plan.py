"""Shapes of a pass: for a GPU, and for a rehearsal on a CPU, whose items are the same ones but small."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Map = tuple[int, int]  # size, channels
Attention = tuple[int, int, int]  # size, key channels, channels


@dataclass(frozen=True)
class Plan:
    """Everything in which a GPU's pass and a rehearsal differ.

    Attributes:
        device: "cuda" or "cpu".
        out: folder of the files.
        cache: folder for what is compiled, and for what one item leaves for another.
        scale: of every item's deadline: an interpreter is slow.
        attention: shapes of bain_attention's accuracy; `norm`: of bain_norm's.
        counted: size of the maps that have 1 to 250 foreground or background pixels, and their channels.
        features: (channels, size) of the other operations' accuracy.
        batch, maps, ratios: of the attention's times, the first ratio first.
        vgg: maps of the style loss's times. colors: size of pictures.
        pictures: sizes of the network's times; width: its base channels, by levels.
        tuned: the lines that are tuned, and the size of their maps.
        profiled: map whose kernels' counters are read.
        preset: of the training step; steps: that are timed.
    """

    device: str
    out: Path
    cache: Path
    scale: float = 1.0
    attention: Sequence[Attention] = (
        *((32, 64, 64), (24, 64, 128), (16, 64, 512)),
        *((9, 20, 40), (16, 256, 256), (7, 70, 100)),
    )
    norm: Sequence[Attention] = ((32, 64, 64), (16, 64, 256), (9, 20, 40))
    counted: tuple[int, Sequence[tuple[int, int]]] = (32, ((64, 64), (64, 128), (64, 256)))
    features: Sequence[tuple[int, int]] = ((64, 32), (512, 16), (130, 9), (3, 65))
    batch: int = 16
    maps: Sequence[Map] = ((64, 128), (128, 64), (32, 256), (256, 64))
    ratios: Sequence[float] = (0.2, 0.05, 0.5)
    vgg: Sequence[Map] = ((32, 512), (64, 256), (128, 128), (256, 64))
    colors: int = 256
    pictures: Sequence[int] = (256, 512, 1024)
    network: tuple[int, int, int] = (64, 8, 1)  # base channels, levels, batch
    tuned: Sequence[Attention] = ((128, 64, 64), (64, 64, 128), (32, 64, 512))
    profiled: Map = (128, 64)
    preset: str = "paper"
    steps: int = 7

    @property
    def rehearsing(self) -> bool:
        return self.device == "cpu"


def plan_of(out: Path, cache: Path, rehearse: bool) -> Plan:
    """The pass on this machine's GPU, or its rehearsal."""
    if not rehearse:
        return Plan("cuda", out, cache)
    return Plan(
        "cpu",
        out,
        cache,
        scale=4.0,
        attention=((9, 20, 40),),
        norm=((5, 20, 24),),
        counted=(16, ((16, 16),)),
        features=((19, 9),),
        batch=1,
        maps=((8, 16),),
        vgg=((8, 16),),
        colors=16,
        pictures=(32,),
        network=(4, 5, 1),
        tuned=((8, 64, 64),),
        profiled=(8, 16),
        preset="demo",
        steps=2,
    )
