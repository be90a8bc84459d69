"""Shares of contributions: what a set of heads carries of what arrives, and how small it can be.

All shares speak about contributions H of edges into one query position (arrivals.py), and are
never called causal.  BOS is no position: its column is left out by the caller.

    positive share   sum over the set of max(H, 0) / the same over all edges     in [0, 1]
    signed share     sum over the set of H         / the same over all edges     any number
    N80              smallest number of heads whose positive H reach 80% of all positive H

    causal share     drop without the set / drop without all edges               in [0, 1]

A share is refused (None) where the denominator is below a tenth of the target or of the numerator:
a percentage of next to nothing is noise.  A causal share is refused, not cut, where the one drop is
no part of the other: a set whose removal lowers the target more than the removal of all edges has
no share of it.
"""

from jaxtyping import Float
from torch import Tensor

NEAR_ZERO = 0.1
N80_SHARE = 0.8
ROUNDING = 1e-6  # of float32: a share reached exactly must not ask for one head more
DROP_ROUNDING = 1e-3  # of two runs whose drops are the same number

Head = tuple[int, int]


def ratio(part: float, whole: float, preactivation: float) -> float | None:
    """part / whole, or None where |whole| < 0.1 max(|preactivation|, |part|) (or is 0)."""
    if whole == 0 or abs(whole) < NEAR_ZERO * max(abs(preactivation), abs(part)):
        return None
    return part / whole


def share_of_drop(part: float, whole: float, preactivation: float) -> float | None:
    """`ratio` of two drops of the target; None also where the whole is no drop, or the part is not
    a part of it."""
    share = ratio(part, whole, preactivation)
    if share is None or whole < 0 or not -DROP_ROUNDING <= share <= 1 + DROP_ROUNDING:
        return None
    return min(max(share, 0.0), 1.0)


def positive(values: Float[Tensor, "*shape"]) -> float:
    """Sum of the positive values."""
    return float(values.clamp(min=0).sum())


def ranked_heads(contributions: Float[Tensor, "layer head"]) -> list[tuple[Head, float]]:
    """Heads with positive contributions, largest first; equal ones in reading order."""
    rows = [
        ((m, h), value)
        for m, layer in enumerate(contributions.tolist())
        for h, value in enumerate(layer)
        if value > 0
    ]
    return sorted(rows, key=lambda row: -row[1])


def smallest_set(contributions: Float[Tensor, "layer head"], share: float) -> list[Head]:
    """The fewest heads whose positive contributions reach `share` of all positive contributions."""
    rows = ranked_heads(contributions)
    needed = share * sum(value for _, value in rows)
    chosen: list[Head] = []
    reached = 0.0
    for head, value in rows:
        if reached >= needed * (1 - ROUNDING):
            break
        chosen.append(head)
        reached += value
    return chosen
