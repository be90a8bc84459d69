"""The head set: the fewest heads that carry what arrives from one key, with their shares.

Shares speak about contributions H of edges into one query position (arrivals.py), and are never
called causal.  BOS is no position: its column is left out.

    positive share   sum over the set of max(H, 0) / the same over all edges     in [0, 1]
    signed share     sum over the set of H         / the same over all edges     any number
    N80              smallest number of heads whose positive H reach 80% of all positive H

A share is refused (None) where the denominator is below a tenth of the target or of the numerator:
a percentage of next to nothing is noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.coordinates import Head
from saekit.routes.attribution.arrivals import (
    arrivals,
    completeness_error,
    components,
    error_share,
    split_edge,
)
from saekit.routes.attribution.qk import Pair, Part, ScoreSplit, split_score
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import Target

NEAR_ZERO = 0.1
N80_SHARE = 0.8
ROUNDING = 1e-6  # of float32: a share reached exactly must not ask for one head more
EXPLAINED = 3  # heads of the set, and features of each: what one can read beside a picture


@dataclass(frozen=True)
class HeadSet:
    """Some heads' edges from the key, and what they carry.

    Attributes:
        values: the contribution of each edge.
        positive, signed: shares of what arrives from every position before the query.
        of_key: the positive share of what arrives from the key.
        of_preactivation: what they carry relative to p less its constant.
    """

    heads: list[Head]
    values: list[float]
    positive: float | None
    signed: float | None
    of_key: float | None
    of_preactivation: float | None


@dataclass(frozen=True)
class ArrivalRow:
    """All edges from one position into the query; BOS has no share."""

    position: int
    positive: float
    negative: float
    net: float
    share: float | None


@dataclass(frozen=True)
class HeadMatch:
    """Why a head attends to the key: its score there, and the features that match (qk.py)."""

    split: ScoreSplit
    in_features: float
    with_error: float
    keys: list[tuple[Part, float]]
    pairs: list[Pair]


class Attribution:
    """What a trace attributes of one target.

    Attributes:
        p: the target's value.
        key, at: the position whose edges the set is chosen from, and its tensor index.
        chosen: the set (N80), the largest contribution first.
        listed: as many heads as were asked for, likewise; `each` has them one by one.
        n80_all_keys: N80 of heads that may read different positions.
        rows: what arrives from every position before the query, and from BOS.
        splits: the set's edges over features, where the head's input layer has a dictionary.
        error_share: how much of what the set carries the dictionaries miss.
        components, completeness_error: the component table, and how far it is from p.
        matches: why the strongest of these heads attend to the key rather than elsewhere.
    """

    def __init__(self, run: PromptRun, target: Target, key: int | None, listed: int) -> None:
        """Attribute a target to the edges into its position, and the set's edges to features.

        Args:
            key: the position the set reads; the one from which most arrives by default.
            listed: how many heads are listed.
        """
        exact, clean, q = run.exact, run.clean, target.query
        self.target = target
        self.p = float(target.measure(exact, clean.resid[target.layer, q]))
        found = arrivals(exact, clean, target)
        self.components = components(exact, clean, target)
        self._into = found.edges[:, :, run.first : q]  # from every position before the query
        self.key = strongest_key(self._into) if key is None else key
        self.at = run.positions.index(self.key)
        at_key = self._into[:, :, self.key - 1]
        heads = [head for head, _ in ranked_heads(at_key)[:listed]]
        self.chosen = self._of(smallest_set(at_key, N80_SHARE))
        self.listed, self.each = self._of(heads), [self._of([head]) for head in heads]
        self.n80_all_keys = len(smallest_set(self._into.clamp(min=0).sum(-1), N80_SHARE))
        self.rows = [self._row(found.edges[:, :, k], run.positions[k]) for k in range(q)]
        readable = [head for head in self.chosen.heads if head[0] in run.dictionaries.layers]
        self.splits = {
            head: split_edge(exact, clean, found, run.dictionaries[head[0]], head, self.at)
            for head in readable
        }
        self.error_share = error_share(self.splits)
        self.completeness_error = completeness_error(self.components, self.p)
        against = [k for k in range(run.first, q + 1) if k != self.at]
        splits = [
            split_score(exact, clean, run.dictionaries[head[0]], head, q, self.at, against)
            for head in readable[:EXPLAINED]
        ]
        self.matches = [
            HeadMatch(s, s.in_features(), s.with_error(), s.top_keys(EXPLAINED), s.top(EXPLAINED))
            for s in splits
        ]

    def _of(self, heads: list[Head]) -> HeadSet:
        at_key = self._into[:, :, self.key - 1]
        mine = torch.stack([at_key[head] for head in heads]) if heads else at_key.new_zeros(0)
        net, p = float(mine.sum()), self.p
        return HeadSet(
            heads=heads,
            values=mine.tolist(),
            positive=ratio(positive(mine), positive(self._into), p),
            signed=ratio(net, float(self._into.sum()), p),
            of_key=ratio(positive(mine), positive(at_key), p),
            of_preactivation=ratio(net, p - self.target.constant, p),
        )

    def _row(self, edges: Float[Tensor, "layer head"], position: int) -> ArrivalRow:
        plus = positive(edges)
        share = None if position == 0 else ratio(plus, positive(self._into), self.p)
        return ArrivalRow(position, plus, -positive(-edges), float(edges.sum()), share)


def strongest_key(into: Float[Tensor, "layer head before"]) -> int:
    """The position with the largest net contribution; the largest positive one if none is."""
    net = into.sum((0, 1))
    best = net if bool((net > 0).any()) else into.clamp(min=0).sum((0, 1))
    return int(best.argmax()) + 1


def ratio(part: float, whole: float, preactivation: float) -> float | None:
    """part / whole, or None where |whole| < 0.1 max(|preactivation|, |part|) (or is 0)."""
    if whole == 0 or abs(whole) < NEAR_ZERO * max(abs(preactivation), abs(part)):
        return None
    return part / whole


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
