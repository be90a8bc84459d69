"""Causal checks: remove edges into the query, let everything later run live, measure the target.

What the edges carry instead is a `Replacement`; nothing, by default.  Zero ablation sets the
attention weight to 0 after the softmax without renormalisation; in a model with gated attention
that is exactly a closed gate.  Only the query position is recomputed: edges into it change nothing
at earlier positions.  Many sets run as one batch.

`path_patched` does the same along the direct path only: what all later components write is clean.
Then the target falls under zero ablation by A v W_O . e, the `direct_edges` of arrivals.py.
"""

import random
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from saekit.model.exact import Edits, ExactModel, Forward, Moved
from saekit.routes.ablation.replacements import ZERO, Replacement
from saekit.routes.ablation.shapley import MOST_PLAYERS, shapley_values, subsets
from saekit.routes.attribution.shares import Head
from saekit.routes.targets import Target

# Sets per batch: 64 single tokens keep GPT-2 small's MLP below 1 MB per layer and the masks of a
# 1024-token prompt below 40 MB.
BATCH = 64

# How often a random set that equals the tested one is drawn again.
REDRAWS = 50


def _edits(
    exact: ExactModel,
    clean: Forward,
    query: int,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    instead: Replacement,
) -> Edits:
    """The edits of a batch of sets for a window that is the query alone."""
    removed = torch.zeros(exact.n_layers, len(sets), exact.n_heads).to(clean.resid)
    for row, heads in enumerate(sets):
        for m, h in heads:
            removed[m, row, h] = 1
    columns = torch.tensor(list(keys), device=removed.device, dtype=torch.long)
    keep = torch.ones(*removed.shape, 1, query + 1).to(removed)
    keep[..., columns] -= removed[..., None, None]
    moved = None
    if instead.value is not None:
        weight = (
            None if instead.weight is None else instead.weight[:, :, query : query + 1, columns]
        )
        moved = Moved(removed, columns, instead.value[:, :, columns], weight)
    return Edits(keep=keep, renormalise=instead.renormalise, moved=moved)


def removed(
    exact: ExactModel,
    clean: Forward,
    query: int,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    until: int | None = None,
    instead: Replacement = ZERO,
) -> Float[Tensor, "sets d_model"]:
    """The stream at (layer `until`, query) after removing the edges keys -> query of each set.

    Args:
        query, keys: tensor indices; every key <= query.
        sets: head sets (layer, head); each is removed in a run of its own.
        until: layer to stop at, the last one by default.
        instead: what the edges carry instead.

    Raises:
        InputError: `instead` was made for prompts of another length.
    """
    instead.check(clean)
    parts = []
    batches = range(0, len(sets), BATCH)
    for at in tqdm(batches, desc="removing heads", unit="batch", delay=2, leave=False):
        some = sets[at : at + BATCH]
        start = min((m for heads in some for m, _ in heads), default=0)
        edits = _edits(exact, clean, query, some, keys, instead)
        out = exact.rerun(clean, edits, (query, query), start, until, batch=len(some))
        parts.append(out[:, 0])
    return torch.cat(parts) if parts else clean.resid.new_zeros(0, exact.d_model)


def path_patched(
    exact: ExactModel,
    clean: Forward,
    query: int,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    until: int | None = None,
    instead: Replacement = ZERO,
) -> Float[Tensor, "sets d_model"]:
    """As `removed`, but each head's change reaches the stream at `until` directly, nothing else:
    later heads and MLPs write what they wrote in the clean run."""
    until = exact.n_layers if until is None else until
    changes = direct_changes(exact, clean, query, sets, keys, until, instead)
    return clean.resid[until, query] + changes


def direct_changes(
    exact: ExactModel,
    clean: Forward,
    query: int,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    until: int,
    instead: Replacement = ZERO,
) -> Float[Tensor, "sets d_model"]:
    """What `path_patched` adds to the clean stream: the change of what the heads write."""
    instead.check(clean)
    parts = [clean.resid.new_zeros(0, exact.d_model)]
    for at in range(0, len(sets), BATCH):
        some = [*sets[at : at + BATCH], []]  # the last one is the clean run, rounded alike
        edits = _edits(exact, clean, query, some, keys, instead)
        change = clean.resid.new_zeros(len(some) - 1, exact.d_model)
        for m in sorted({m for heads in some for m, _ in heads if m < until}):
            written = exact.written(clean, edits, (query, query), m, len(some))[:, 0]
            change = change + (written[:-1] - written[-1])
        parts.append(change)
    return torch.cat(parts)


def drops(
    exact: ExactModel,
    clean: Forward,
    target: Target,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    instead: Replacement = ZERO,
    direct: bool = False,
) -> list[float]:
    """How much the target falls when the edges keys -> query of each head set are removed.

    Positive: the set supports the target.  Heads at or above the target's layer change nothing.

    Args:
        keys: tensor indices; all positions up to the query remove the heads' whole output there.
        instead: what the edges carry instead.
        direct: only along the direct path (`path_patched`).
    """
    below = [[head for head in heads if head[0] < target.layer] for heads in sets]
    if direct and target.token is None:  # linear: no difference of two pre-activations
        changes = direct_changes(exact, clean, target.query, below, keys, target.layer, instead)
        return (-changes @ target.direction).tolist()
    run = path_patched if direct else removed
    resid = run(exact, clean, target.query, below, keys, target.layer, instead)
    before = target.measure(exact, clean.resid[target.layer, target.query])
    return (before - target.measure(exact, resid)).tolist()


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


class EdgeDrops:
    """Drops of one target when heads are removed from one edge key -> query.

    Attributes:
        single: drop of every asked head alone.
        key_edges: drop when all heads' edges key -> query are removed.
        all_edges: drop when all heads' edges from all positions before the query are removed.
    """

    def __init__(
        self,
        exact: ExactModel,
        clean: Forward,
        target: Target,
        key: int,
        heads: Iterable[Head],
        positions: Sequence[int],
        instead: Replacement = ZERO,
        direct: bool = False,
    ) -> None:
        """`key` and `positions` (all that can arrive, BOS left out) are tensor indices; `instead`
        and `direct` as in `drops`."""
        self._model, self._target, self._key = (exact, clean), target, key
        self._how = (instead, direct)
        self._below = [(m, h) for m in range(target.layer) for h in range(exact.n_heads)]
        ordered = sorted(set(heads))
        values = self._drops([*([head] for head in ordered), self._below])
        self.single = dict(zip(ordered, values[:-1], strict=True))
        self.key_edges = values[-1]
        self.all_edges = drops(exact, clean, target, [self._below], positions, *self._how)[0]

    def _drops(self, sets: Sequence[Sequence[Head]]) -> list[float]:
        return drops(*self._model, self._target, sets, [self._key], *self._how)

    def joint(self, heads: Sequence[Head]) -> float:
        """Drop when the heads are removed together."""
        return self._drops([heads])[0]

    def shapley(self, heads: Sequence[Head]) -> list[float] | None:
        """Exact Shapley values of the heads' drops (shapley.py); None for more than 8 heads.

        They add up to the joint drop.
        """
        if len(heads) > MOST_PLAYERS:
            return None
        return shapley_values(self._drops(subsets(heads)))

    def random(self, heads: Sequence[Head], count: int, seed: int) -> list[float]:
        """Ascending drops of random head sets of the same size and layers (`random_sets`)."""
        exact, _ = self._model
        sets = random_sets(heads, self._target.layer, exact.n_heads, count, seed)
        return sorted(self._drops(sets))
