"""Running statistics of features: counts, means, maxima and histograms; sums over groups.

numpy only.  Everything is of fixed size, however many tokens are read.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

BINS = 50


class Moments:
    """Count, total, largest and histogram of the activations of each feature of one layer.

    A histogram has `BINS` equal bins from 0 to 2**log2_range.  When a larger activation comes, the
    range is doubled and neighbouring bins are merged, so no activation is ever counted in a wrong
    bin and at least half of the range is in use.
    """

    def __init__(self, d_sae: int):
        self.d_sae = d_sae
        self.count = np.zeros(d_sae, np.int64)
        self.total = np.zeros(d_sae)
        self.largest = np.zeros(d_sae, np.float32)
        self.histogram = np.zeros((d_sae, BINS), np.uint32)
        self.log2_range = np.full(d_sae, -126, np.int16)

    def add(self, feature: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"]) -> None:
        """Count activations, all above 0."""
        self.count += np.bincount(feature, minlength=self.d_sae)
        self.total += np.bincount(feature, weights=value, minlength=self.d_sae)
        np.maximum.at(self.largest, feature, value)
        self._widen()
        width = np.ldexp(1.0, self.log2_range.astype(np.int32)) / BINS
        place = np.minimum((value / width[feature]).astype(np.int64), BINS - 1)
        counts = np.bincount(feature * BINS + place, minlength=self.d_sae * BINS)
        self.histogram += counts.reshape(self.d_sae, BINS).astype(np.uint32)

    def _widen(self) -> None:
        """Double ranges until the largest activation fits."""
        exponent = np.frexp(self.largest)[1]  # largest < 2**exponent
        needed = np.where(self.largest > 0, np.maximum(exponent, self.log2_range), self.log2_range)
        growth = needed - self.log2_range
        while (grow := growth > 0).any():
            used = grow & (self.histogram.any(-1))
            merged = self.histogram[used].reshape(-1, BINS // 2, 2).sum(-1, dtype=np.uint32)
            self.histogram[used] = np.concatenate([merged, np.zeros_like(merged)], -1)
            steps = np.where(used, 1, growth)  # empty histograms need no merging
            self.log2_range[grow] += steps[grow].astype(np.int16)
            growth = needed - self.log2_range

    @property
    def mean(self) -> Float[np.ndarray, " d_sae"]:
        """Mean activation where active, 0 for a feature that never was."""
        return self.total / np.maximum(1, self.count)


def normalised_entropy(
    group: Int[np.ndarray, " n"], mass: Float[np.ndarray, " n"], groups: int
) -> Float[np.ndarray, " groups"]:
    """H / log(number of entries) of the masses in each group; 0 for one entry or none."""
    total = np.bincount(group, mass, groups)
    share = mass / np.where(total > 0, total, 1)[group]
    entropy = np.bincount(group, -share * np.log(np.maximum(share, 1e-300)), groups)
    entries = np.bincount(group, minlength=groups)
    return np.where(entries > 1, entropy / np.log(np.maximum(entries, 2)), 0.0)


def best_of_each(
    group: Int[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    limit: int,
    ties: Sequence[np.ndarray] = (),
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """The `limit` entries of the highest score in each group.

    Args:
        ties: what decides, the larger the better, between equal scores; the last one first.

    Returns:
        Indices into the input, sorted by group and falling score, and the rank of each in its
        group (from 0).
    """
    order = np.lexsort((*(-column for column in ties), -score, group))
    ordered = group[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.append(starts, len(ordered)))
    rank = np.arange(len(ordered)) - np.repeat(starts, sizes)
    kept = rank < limit
    return order[kept], rank[kept]
