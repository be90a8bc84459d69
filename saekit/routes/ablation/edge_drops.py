"""What a trace measures by ablation: drops of one target when heads are removed from one edge.

A head set's drop stands beside those of its heads alone, of random sets of the same form, and of
all edges.  Heads that are redundant or work together get one fair number each, the exact Shapley
value: the average, over all orders in which the heads are removed, of what removing one adds to the
drop.  The values add up to the joint drop (efficiency); a head that changes nothing in any company
gets 0; heads that do the same get the same.  All 2^n subsets are measured, so nothing is sampled.

    causal share     drop without the set / drop without all edges               in [0, 1]

A causal share is refused (None), not cut, where the one drop is no part of the other: a set whose
removal lowers the target more than the removal of all edges has no share of it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import TypeVar

from tqdm.auto import tqdm

from saekit.coordinates import Head
from saekit.routes.ablation.removal import drops, removed
from saekit.routes.ablation.replacements import RENORMALISE, ZERO, Replacement
from saekit.routes.attribution.head_set import Attribution, ratio
from saekit.routes.prompt_run import PromptRun

REDRAWS = 50  # how often a random set that equals the tested one is drawn again
DROP_ROUNDING = 1e-3  # of two runs whose drops are the same number
MOST_PLAYERS = 8  # 256 subsets: four batches of the ablation; 12 heads would be 64 batches
DELAY = 2.0  # seconds without a progress bar

Player = TypeVar("Player")


@dataclass(frozen=True)
class SetDrops:
    """A head set removed together.

    Attributes:
        joint, singles: the target's drop without the set, and the sum without each head alone.
        share, share_of_key: `joint` as a share of the drop without all edges.
        logit, probability: how much the most probable token's logit (minus the mean logit) falls,
            and its probability without the set.
        shapley: of the heads' drops; None for more than 8 heads, or where not asked for.
    """

    joint: float
    singles: float
    share: float | None
    share_of_key: float | None
    logit: float
    probability: float
    shapley: list[float] | None


class EdgeDrops:
    """Drops of one target when heads are removed from one edge key -> query in one way.

    Attributes:
        instead, direct: the way, as in `drops`.
        single: drop of every chosen and listed head alone.
        key_edges: drop when all heads' edges key -> query are removed.
        all_edges: drop when all heads' edges from all positions before the query are removed.
        chosen: the set removed.
        random: ascending drops of random head sets of its size and layers (`random_sets`).
    """

    def __init__(
        self,
        run: PromptRun,
        found: Attribution,
        instead: Replacement = ZERO,
        direct: bool = False,
        n_random: int = 0,
        seed: int = 0,
        shapley: bool = False,
    ) -> None:
        """`shapley`: whether the set's Shapley values are asked for."""
        self._run, self._found, target = run, found, found.target
        self.instead, self.direct = instead, direct
        everything = [(m, h) for m in range(target.layer) for h in range(run.exact.n_heads)]
        ordered = sorted({*found.chosen.heads, *found.listed.heads})
        some = random_sets(found.chosen.heads, target.layer, run.exact.n_heads, n_random, seed)
        values = self._drops([*([head] for head in ordered), everything])
        self.single = dict(zip(ordered, values[:-1], strict=True))
        self.key_edges = values[-1]
        (self.all_edges,) = self._drops([everything], list(range(run.first, target.query)))
        self.chosen = self.of(found.chosen.heads, shapley)
        self.random = sorted(self._drops(some))

    def _drops(
        self, sets: Sequence[Sequence[Head]], keys: Sequence[int] | None = None
    ) -> list[float]:
        run, keys = self._run, [self._found.at] if keys is None else keys
        target = self._found.target
        return drops(run.exact, run.clean, target, sets, keys, self.instead, self.direct)

    def of(self, heads: list[Head], shapley: bool = False) -> SetDrops:
        """Some of the chosen and listed heads removed together."""
        (joint,), p = self._drops([heads]), self._found.p
        values = None
        if shapley and len(heads) <= MOST_PLAYERS:
            values = shapley_values(self._drops(subsets(heads)))
        return SetDrops(
            joint,
            sum(self.single[head] for head in heads),
            share_of_drop(joint, self.all_edges, p),
            share_of_drop(joint, self.key_edges, p),
            *self._next_token(heads),
            values,
        )

    def _next_token(self, heads: Sequence[Head]) -> tuple[float, float]:
        """With `direct`, what reaches the output is what the heads write there themselves."""
        run, q, keys = self._run, self._found.target.query, [self._found.at]
        token, before = run.top_token(q), run.clean.logits[q]
        resid = removed(run.exact, run.clean, q, [heads], keys, None, self.instead, self.direct)
        after = run.exact.unembed(resid)[0][0]
        fall = (before[token] - before.mean()) - (after[token] - after.mean())
        return float(fall), float(after.softmax(-1)[token])


def ablations(
    run: PromptRun, found: Attribution, others: Sequence[Replacement], n_random: int, seed: int
) -> list[EdgeDrops]:
    """The set removed in every way: zero, renormalised rows, `others`, and along the direct path.

    An empty set is removed in the first way only.

    Args:
        n_random: random sets of the same form, for each way.
    """
    further = [(RENORMALISE, False), *((other, False) for other in others), (ZERO, True)]
    ways = [(ZERO, False), *(further if found.chosen.heads else [])]
    return [
        EdgeDrops(run, found, instead, direct, n_random, seed, shapley=place == 0)
        for place, (instead, direct) in enumerate(
            tqdm(ways, "ablations", leave=False, delay=DELAY, unit="way")
        )
    ]


def share_of_drop(part: float, whole: float, preactivation: float) -> float | None:
    """`ratio` of two drops of the target; None also where the whole is no drop, or the part is not
    a part of it."""
    share = ratio(part, whole, preactivation)
    if share is None or whole < 0 or not -DROP_ROUNDING <= share <= 1 + DROP_ROUNDING:
        return None
    return min(max(share, 0.0), 1.0)


def random_sets(
    heads: Sequence[Head], n_layers: int, n_heads: int, count: int, seed: int = 0
) -> list[list[Head]]:
    """Random head sets with as many heads in each layer as `heads`: the baseline of a drop.

    A random set may share heads with the tested one but is never the same set.  Where whole layers
    were chosen, so that no other set of that form exists, heads are drawn from all layers below
    `n_layers`; where the set is all heads there, there is no baseline (empty list).
    """
    wanted = set(heads)
    everything = [(m, h) for m in range(n_layers) for h in range(n_heads)]
    if not wanted or len(wanted) == len(everything):
        return []
    rng = random.Random(seed)
    per_layer = {m: sum(head[0] == m for head in wanted) for m in range(n_layers)}
    same_layers = any(0 < size < n_heads for size in per_layer.values())

    def draw() -> list[Head]:
        if not same_layers:
            return rng.sample(everything, len(wanted))
        return [(m, h) for m, size in per_layer.items() for h in rng.sample(range(n_heads), size)]

    sets = []
    for _ in range(count):
        for _ in range(REDRAWS):
            chosen = draw()
            if set(chosen) != wanted:
                sets.append(chosen)
                break
    return sets


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
