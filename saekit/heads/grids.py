"""Grids of one number per head, and the dynamic scores, which are four of them.  No torch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Grid = Float[np.ndarray, "n_layers n_heads"]
DYNAMIC = ("forced", "natural", "forced_suppression", "natural_suppression")


@dataclass
class Dynamic:
    """What heads write on carrier prompts; scores as the static ones, see `heads/dynamic.py`.

    Attributes:
        carriers: the prompts, X stands for the source.
        forced: all attention of the last position on X.
        natural: attention as it is.
        correlation: Pearson r with the static scores over all heads: "forced", "natural",
            "forced_suppression", "natural_suppression"; None where one side does not vary.
    """

    carriers: list[str]
    n_pairs: int
    forced: Grid
    natural: Grid
    forced_suppression: Grid
    natural_suppression: Grid
    correlation: dict[str, float | None]

    def grids(self) -> dict[str, Grid]:
        """The four grids by name."""
        return {name: getattr(self, name) for name in DYNAMIC}
