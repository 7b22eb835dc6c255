"""Pictures, masks and stand-ins for networks, of which the right result is known."""

import numpy as np
import torch


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = np.stack([x, y, 1 - x], axis=2) * 160 + 40
    return (smooth + rng.integers(-20, 20, smooth.shape)).astype(np.uint8)


def disc(height: int, width: int, radius: float = 0.3) -> np.ndarray:
    """(H, W) bool."""
    y, x = np.mgrid[0:height, 0:width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < (radius * min(height, width)) ** 2


class Shift(torch.nn.Module):
    """Stands in for the network: adds a constant to each channel of the foreground, and remembers what it was given."""

    def __init__(self, red: float, green: float, blue: float) -> None:
        super().__init__()
        self.working_size = 256
        self.shift = torch.nn.Parameter(torch.tensor([red, green, blue]))
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        self.was_training: list[bool] = []

    def forward(self, composite: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        self.seen.append((composite, mask, valid))
        self.was_training.append(self.training)
        return composite + mask * self.shift[:, None, None]


class Recolour(torch.nn.Module):
    """Stands in for a network with an affine head: one transform in the foreground, and nonsense outside of it."""

    head = "affine"
    matrix = np.array([[0.2, -0.1, 0.05], [0.0, -0.3, 0.1], [-0.05, 0.1, 0.15]])
    offset = np.array([0.05, 0.1, -0.08])

    def __init__(self) -> None:
        super().__init__()
        self.working_size = 64
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sizes: list[tuple[int, ...]] = []

    def coefficients(
        self, composite: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor | None, working_size: int
    ) -> torch.Tensor:
        assert max(composite.shape) <= working_size
        self.sizes.append(tuple(composite.shape[-2:]))
        constant = torch.from_numpy(np.concatenate([self.matrix.ravel(), self.offset])).float()
        return torch.where(mask > 0, constant[:, None, None], 100.0)

    def change(self, image: np.ndarray) -> np.ndarray:
        return image @ self.matrix.T + self.offset
