"""Minutes on two CPU cores: about a million parameters, on composites of photographs inside installed packages."""

from scsco_fast.train.config import TrainConfig

DEMO = TrainConfig(
    output="runs/demo",
    dataset="synthetic",
    photos="builtin",
    size=128,
    # A correction of the composite is learned in minutes; the picture itself takes days.
    head="residual",
    # From the coarsest level (4x4) to the finest (64x64), where attention would take half of each step.
    norm=("bain", "bain", "bain", "bain", "rain"),
    base_channels=16,
    levels=6,
    dropout=False,
    steps=1400,
    batch_size=8,
    workers=1,
    lr=2e-3,
    betas=(0.9, 0.999),
    schedule="cosine",
    warmup=20,
    clip_norm=1.0,
    ema_decay=0.99,
    # The style loss at a size, a layer and a rate that a CPU affords: 0.1 s of a step instead of 0.8 s.
    style_weight=0.01,
    style_every=4,
    negatives=2,
    style_size=48,
    vgg_layers=("relu2_2",),
    log_every=20,
    picture_every=200,
    checkpoint_every=200,
)
