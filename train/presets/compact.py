"""A small model for real pictures: for two CPU cores, within two and a half hours, and for one GPU."""

import dataclasses

from scsco_fast.train.config import TrainConfig

COMPACT = TrainConfig(
    output="runs/compact",
    # Made in batches, faster than the network takes them.
    dataset="composed",
    photos="photographs",
    # Colours of regions are seen at 96 pixels; at 192 a core would learn from a quarter as many composites.
    size=96,
    # What a foreground should look like depends on what it is, and a few thousand photographs do not teach that.
    encoder="efficientnet-lite0",
    head="affine",
    upsampling="resize",
    in_channels=7,
    # From the coarsest level (6x6) to the finest (48x48).
    norm=("bain", "bain", "bain", "rain"),
    cosine=True,
    base_channels=16,
    levels=5,
    # Against knowing the photographs by heart: dropout of pooled features, and the weight decay.
    dropout=True,
    steps=18_000,
    batch_size=32,
    workers=1,
    lr=2e-3,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    schedule="cosine",
    warmup=100,
    clip_norm=0.5,
    ema_decay=0.999,
    # The foreground's error: in the whole picture's, small foregrounds hardly count.
    reconstruction="foreground",
    # The style loss at a size, a layer and a rate that a CPU affords: a tenth of the time.
    style_weight=0.01,
    style_every=8,
    style_size=32,
    negatives=2,
    vgg_layers=("relu2_2",),
    log_every=100,
    picture_every=2_000,
    checkpoint_every=500,
)

# The same recipe for one H100, with eight minutes as its aim: no GPU has run it yet, so the aim is not a measurement.
# The photographs lie on the device, and forward and backward are compiled and captured.
COMPACT_GPU = dataclasses.replace(
    COMPACT,
    output="runs/compact-gpu",
    size=128,
    batch_size=256,
    steps=12_000,
    warmup=300,
    style_size=64,
    workers=0,
    compile=True,
    cuda_graph=True,
    log_every=200,
    checkpoint_every=2_000,
)
