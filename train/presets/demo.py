"""Minutes on two CPU cores: about a million parameters, on composites of photographs inside installed packages."""

from scsco_fast.train.config import TrainConfig

DEMO = TrainConfig(
    output="runs/demo",
    dataset="synthetic",
    photos="builtin",
    size=128,
    # A correction of the composite is learned in minutes; the picture itself takes days.
    head="residual",
    # With the mask and the colours matched to the background, which unseen photographs profit from most.
    in_channels=7,
    # From the coarsest level (8x8) to the finest (64x64), where attention would take half of each step.
    norm=("bain", "bain", "bain", "rain"),
    cosine=True,
    base_channels=16,
    levels=5,
    dropout=False,
    steps=1500,
    batch_size=8,
    workers=None,
    lr=2e-3,
    betas=(0.9, 0.999),
    schedule="cosine",
    warmup=20,
    clip_norm=0.2,
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
