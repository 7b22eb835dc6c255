"""iHarmony4 at 256x256. The paper's text could not be read, so each value says where it comes from."""

from scsco_fast.train.config import TrainConfig

TRAINING_IMAGES = 65_742
EPOCHS = 200
BATCH_SIZE = 16

PAPER = TrainConfig(
    output="runs/paper",
    dataset="iharmony4",
    root="iHarmony4",
    size=256,
    # RainNet's generator with BAIN at all seven decoder levels.
    base_channels=64,
    levels=8,
    norm="bain",
    head="direct",
    # Defaults of this project, to be swept: the paper's numbers are unknown.
    negatives=5,
    style_weight=0.01,
    vgg_layers=("relu4_3",),
    # RainNet: Adam 2e-4 (0.5, 0.999), 100 epochs flat and 100 linearly to 0. PCT-Net: batch 16 (RainNet: 11).
    lr=2e-4,
    betas=(0.5, 0.999),
    schedule="linear-decay",
    batch_size=BATCH_SIZE,
    steps=EPOCHS * TRAINING_IMAGES // BATCH_SIZE,
    # This project's: a guard that ordinary steps do not reach, and averaged weights.
    clip_norm=1.0,
    ema_decay=0.999,
    precision="auto",
    workers=None,
    log_every=100,
    picture_every=5_000,
    checkpoint_every=5_000,
)
