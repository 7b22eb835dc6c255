"""The model in the package, from the photographs that scsco_fast.data.debian collects. See docs/model-card.md."""

from scsco_fast.train.config import TrainConfig

COMPACT = TrainConfig(
    output="runs/compact",
    dataset="synthetic",
    photos="photographs",
    wide=True,
    size=128,
    head="residual",
    in_channels=7,
    norm=("bain", "bain", "bain", "rain"),
    cosine=True,
    base_channels=16,
    levels=5,
    dropout=False,
    steps=3000,
    batch_size=12,
    workers=1,
    lr=2e-3,
    betas=(0.9, 0.999),
    schedule="cosine",
    warmup=50,
    clip_norm=0.2,
    ema_decay=0.99,
    style_weight=0.0,
    log_every=50,
    picture_every=1000,
    checkpoint_every=200,
)
