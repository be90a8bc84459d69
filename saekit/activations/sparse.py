"""Activations of one layer as a sparse [position, feature] matrix: collected, then read by feature.

Only active features are kept: 8 bytes each, so about tokens * k * 8 for a layer.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array, csr_array
from torch import Tensor


class SparseRows:
    """Active features of consecutive positions, collected batch by batch."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._features: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def add(
        self,
        values: Float[Tensor, "position k"],
        features: Int[Tensor, "position k"],
        counted: Bool[Tensor, " position"] | None = None,
    ) -> None:
        """Further positions, as `Dictionary.encode_sparse` gives them.

        Args:
            counted: positions where activations are kept; the others have none.
        """
        active = values > 0
        if counted is not None:
            active &= counted[:, None]
        self._values.append(values[active].float().cpu().numpy())
        self._features.append(features[active].to("cpu", torch.int32).numpy())
        self._counts.append(active.sum(-1).cpu().numpy())

    def extend(self, other: "SparseRows") -> None:
        """The positions of another collection, behind these."""
        self._values += other._values
        self._features += other._features
        self._counts += other._counts

    def matrix(self, d_sae: int) -> csc_array:
        """All positions.  The pieces are dropped here, so that they are not in memory twice."""
        counts = np.concatenate(self._counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        if starts[-1] < 2**31:  # otherwise scipy widens the features as well: half as much again
            starts = starts.astype(np.int32)
        rows = csr_array(
            (np.concatenate(self._values), np.concatenate(self._features), starts),
            shape=(len(counts), d_sae),
        )
        for pieces in (self._values, self._features, self._counts):
            pieces.clear()
        return csc_array(rows)


def starts(activations: csc_array) -> Int[np.ndarray, " d_sae_and_end"]:
    """Where each feature's activations begin in `positions` and `values`, and the end."""
    return np.asarray(activations.indptr)


def positions(activations: csc_array) -> Int[np.ndarray, " active"]:
    """Position of every activation, ascending within a feature."""
    return np.asarray(activations.indices)


def values(activations: csc_array) -> Float[np.ndarray, " active"]:
    """Every activation."""
    return np.asarray(activations.data)


def counts(activations: csc_array) -> Int[np.ndarray, " d_sae"]:
    """At how many positions each feature is active."""
    return np.diff(starts(activations))


def features(activations: csc_array) -> Int[np.ndarray, " active"]:
    """Feature of every activation."""
    per_feature = counts(activations)
    return np.repeat(np.arange(len(per_feature)), per_feature)


def n_positions(activations: csc_array) -> int:
    """How many positions there are, active or not."""
    rows: Any = activations.shape
    return int(rows[0])
