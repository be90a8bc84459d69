"""Exact Shapley values: one fair number per head where heads are redundant or work together.

The value of head i is the average, over all orders in which the heads of a set are removed, of
what removing i adds to the drop.  The values add up to the joint drop (efficiency); a head that
changes nothing in any company gets 0; heads that do the same get the same.  All 2^n subsets are
measured, so nothing is sampled.
"""

from collections.abc import Sequence
from math import comb
from typing import TypeVar

MOST_PLAYERS = 8  # 256 subsets: four batches of the ablation; 12 heads would be 64 batches

Player = TypeVar("Player")


def subsets(players: Sequence[Player]) -> list[list[Player]]:
    """All 2^n subsets; the bits of a subset's index say who is in it (bit 0 = the first)."""
    return [
        [player for bit, player in enumerate(players) if index >> bit & 1]
        for index in range(1 << len(players))
    ]


def shapley_values(worth: Sequence[float]) -> list[float]:
    """The value of each player, from the worth of all subsets in the order of `subsets`."""
    n = len(worth).bit_length() - 1
    assert len(worth) == 1 << n, "one worth per subset"
    values = [0.0] * n
    for index, before in enumerate(worth):
        size = index.bit_count()
        for player in range(n):
            if not index >> player & 1:
                weight = 1 / (n * comb(n - 1, size))
                values[player] += weight * (worth[index | 1 << player] - before)
    return values
