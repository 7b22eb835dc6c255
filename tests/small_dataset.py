"""A dataset in the official layout, of a few small pictures, for tests that only need one."""

from pathlib import Path

import numpy as np
from malformed import encoded, noise
from PIL import Image


def write_dataset(root: Path, count: int, side: int = 40) -> Path:
    """`count` composites of half as many real pictures, in sizes of their own, listed in another order."""
    for part in ("composite_images", "masks", "real_images"):
        (root / "HCOCO" / part).mkdir(parents=True)
    names = []
    for number in range(count):
        identity, width = f"c{number // 2}", side + number // 2 % 5
        real = np.asarray(noise(number // 2, (width, side)))
        mask = np.zeros((side, width), np.uint8)
        mask[side // 4 : side // 2, side // 4 + number % 2 : side // 2] = 200
        composite = np.where(mask[:, :, None] > 127, real // 2, real)
        names.append(f"{identity}_{number}_1.jpg")
        (root / "HCOCO/composite_images" / names[-1]).write_bytes(encoded(Image.fromarray(composite), "JPEG"))
        (root / "HCOCO/masks" / f"{identity}_{number}.png").write_bytes(encoded(Image.fromarray(mask), "PNG"))
        (root / "HCOCO/real_images" / f"{identity}.jpg").write_bytes(encoded(Image.fromarray(real), "JPEG"))
    names = names[::3] + names[1::3] + names[2::3]
    (root / "IHD_train.txt").write_text("\n".join(f"HCOCO/composite_images/{name}" for name in names))
    return root
