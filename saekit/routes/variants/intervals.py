"""Percentile bootstrap: how far a statistic of prompts would move with other prompts.

Efron 1979.  Prompts that share a word are not independent: with `groups`, whole groups are drawn.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000  # the ends of a 95% interval then rest on 50 resamples each
LEVEL = 0.95

Statistic = Callable[[np.ndarray], Any]


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Statistic = np.median,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95% interval of `statistic(values)`; None for fewer than two values (or groups).

    Args:
        values: one per prompt, or one row per prompt.
        groups: of every value; values of one group are drawn together.
    """
    array = np.asarray(values, dtype=float)
    keys = list(range(len(array))) if groups is None else list(groups)
    places: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    members = [np.array(indices) for indices in places.values()]
    if len(members) < 2:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(members), len(members))
        found.append(float(statistic(array[np.concatenate([members[g] for g in drawn])])))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
