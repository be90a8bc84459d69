"""Memory of a training step."""

import torch
from torch import Tensor


class Scratch:
    """Memory that is used again by every step and layer: fresh memory costs more than the sums."""

    def __init__(self, device: torch.device):
        self.device = device
        self._kept: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory of this shape with unknown contents."""
        key = (name, shape, dtype)
        if key not in self._kept:
            self._kept[key] = torch.empty(shape, dtype=dtype, device=self.device)
        return self._kept[key]
