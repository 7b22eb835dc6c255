"""The choices of `HarmonizationUNet`, for the network and for what is checked before torch is imported."""

NORMS = ("bain", "rain", "instance", "rainnet")
IN_CHANNELS = (3, 4, 7)
HEADS = ("direct", "residual", "affine")
UPSAMPLINGS = ("transposed", "resize")
ENCODERS = ("convolutions", "efficientnet-lite0")
WORKING_SIZE = 256  # pixels, of a network that was not told another one
