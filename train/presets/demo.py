"""Minutes on two CPU cores: about a million parameters on composites made from scikit-image's photographs."""

from scsco_fast.train.config import TrainConfig

DEMO = TrainConfig(
    output="runs/demo",
    dataset="synthetic",
    photos="builtin",
    size=128,
    # A correction of the composite is learned in minutes; the picture itself takes days.
    head="residual",
    norm="bain",
    base_channels=16,
    levels=6,
    steps=600,
    batch_size=8,
    lr=1e-3,
    betas=(0.9, 0.999),
    schedule="cosine",
    warmup=20,
    clip_norm=1.0,
    ema_decay=0.99,
    # The style loss at a size and a layer that a CPU affords.
    style_weight=0.01,
    negatives=2,
    style_size=64,
    vgg_layers=("relu2_2",),
    log_every=20,
    picture_every=200,
    checkpoint_every=200,
)
