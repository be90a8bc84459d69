"""Sparse [position, feature] activations, read by feature."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array


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
