"""Causal checks: remove edges into the query, let everything later run live, measure the target.

What the edges carry instead is a `Replacement`; nothing, by default.  Zero ablation sets the
attention weight to 0 after the softmax without renormalisation; in a model with gated attention
that is exactly a closed gate.  Only the query position is recomputed: edges into it change nothing
at earlier positions.  Many sets run as one batch.

`direct` does the same along the direct path only: what all later components write is clean.
Then the target falls under zero ablation by A v W_O . e, the `direct_edges` of arrivals.py.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from saekit.coordinates import Head
from saekit.errors import InputError
from saekit.model.exact import Edits, ExactModel, Forward, Moved
from saekit.routes.ablation.replacements import ZERO, Replacement
from saekit.routes.target import Target

# Sets per batch: 64 single tokens keep GPT-2 small's MLP below 1 MB per layer and the masks of a
# 1024-token prompt below 40 MB.
BATCH = 64


def _edits(
    exact: ExactModel,
    clean: Forward,
    query: int,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    instead: Replacement,
) -> Edits:
    """The edits of a batch of sets for a window that is the query alone."""
    if instead.value is not None and instead.value.shape[2] != len(clean.ids):
        raise InputError(
            f"The values of the {instead.name} ablation are for {instead.value.shape[2]} tokens, "
            f"the prompt has {len(clean.ids)}."
        )
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
    direct: bool = False,
) -> Float[Tensor, "sets d_model"]:
    """The stream at (layer `until`, query) after removing the edges keys -> query of each set.

    Args:
        query, keys: tensor indices; every key <= query.
        sets: head sets (layer, head); each is removed in a run of its own.
        until: layer to stop at, the last one by default.
        instead: what the edges carry instead.
        direct: each head's change reaches the stream at `until` directly, nothing else: later heads
            and MLPs write what they wrote in the clean run.

    Raises:
        InputError: `instead` was made for prompts of another length.
    """
    if direct:
        until = exact.n_layers if until is None else until
        changes = _direct_changes(exact, clean, query, sets, keys, until, instead)
        return clean.resid[until, query] + changes
    parts = []
    batches = range(0, len(sets), BATCH)
    for at in tqdm(batches, desc="removing heads", unit="batch", delay=2, leave=False):
        some = sets[at : at + BATCH]
        start = min((m for heads in some for m, _ in heads), default=0)
        edits = _edits(exact, clean, query, some, keys, instead)
        out = exact.rerun(clean, edits, (query, query), start, until, batch=len(some))
        parts.append(out[:, 0])
    return torch.cat(parts) if parts else clean.resid.new_zeros(0, exact.d_model)


def _direct_changes(
    exact: ExactModel,
    clean: Forward,
    query: int,
    sets: Sequence[Sequence[Head]],
    keys: Sequence[int],
    until: int,
    instead: Replacement = ZERO,
) -> Float[Tensor, "sets d_model"]:
    """What `removed` with `direct` adds to the clean stream: the change of what the heads write."""
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
        direct: only along the direct path.
    """
    below = [[head for head in heads if head[0] < target.layer] for heads in sets]
    if direct and target.token is None:  # linear: no difference of two pre-activations
        changes = _direct_changes(exact, clean, target.query, below, keys, target.layer, instead)
        return (-changes @ target.direction).tolist()
    resid = removed(exact, clean, target.query, below, keys, target.layer, instead, direct)
    before = target.measure(exact, clean.resid[target.layer, target.query])
    return (before - target.measure(exact, resid)).tolist()
