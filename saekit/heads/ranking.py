"""Is a token among the k that a head raises most, or among the k that it lowers most?

From head values z and token ids to one number per head and row: 1 if the target is among the k
largest logits of `z W_O W_U`, 0 if not; and the same for the k smallest.  Equal logits share the
places that are left: (k - larger) / equal, clipped to [0, 1], the expectation when ties are broken
at random.  So a head that writes nothing scores k / d_vocab instead of 1 or 0 by accident.

The logits are computed in float32 by way of W_O W_U [d_head, d_vocab], which costs less than going
through d_model.  Where the target is closer to the k-th place than float32 can tell, that row is
computed again in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from saekit.model.exact import ExactModel

# Logits held at once: 2^24 float32 are 64 MB; larger chunks are not faster.
BUDGET = 2**24
# Logits are compared by blocks: the k largest are all in the k blocks with the largest maxima.
BLOCK = 256
# float32 rounding of a logit, relative to the row's largest: sums of 1,600 products err by 1e-5.
UNSURE = 1e-4
# In float64 a difference below this part of the largest logit is a tie (equal embedding rows).
TIE = 1e-12

Writes = Callable[[int, int, Int[Tensor, " row"]], Float[Tensor, "row d_model"]]


@dataclass
class Side:
    """One side (raised or lowered) of a ranking; values in [0, 1].

    Attributes:
        hits: whether each row's own target is among the k (fractions are ties).
        top: the k tokens that are raised (or lowered) most, in order.
        unsure: rows that float32 cannot decide.
    """

    hits: Float[Tensor, "layer head row"]
    top: Int[Tensor, "layer head row k"]
    unsure: list[tuple[int, int, Int[Tensor, " some"]]] = field(default_factory=list)


def extremes(
    logits: Float[Tensor, "*batch d_vocab"], n: int, largest: bool
) -> tuple[Float[Tensor, "*batch n"], Int[Tensor, "*batch n"]]:
    """The n largest (or smallest) logits and their token ids, like `torch.topk` but faster."""
    d_vocab = logits.shape[-1]
    blocks = d_vocab // BLOCK
    if blocks <= 4 * n:
        return logits.topk(n, dim=-1, largest=largest)
    body = logits[..., : blocks * BLOCK].unflatten(-1, (blocks, BLOCK))
    edge = body.amax(-1) if largest else body.amin(-1)
    chosen = edge.topk(n, dim=-1, largest=largest).indices  # [*batch, n]
    inside = body.gather(-2, chosen[..., None].expand(*chosen.shape, BLOCK)).flatten(-2)
    within = torch.arange(BLOCK, device=logits.device)
    ids = (chosen[..., None] * BLOCK + within).flatten(-2)
    tail = torch.arange(blocks * BLOCK, d_vocab, device=logits.device)
    inside = torch.cat([inside, logits[..., blocks * BLOCK :]], -1)
    ids = torch.cat([ids, tail.expand(*ids.shape[:-1], -1)], -1)
    values, places = inside.topk(n, dim=-1, largest=largest)
    return values, ids.gather(-1, places)


def tied_share(
    logits: Float[Tensor, "row d_vocab"], target: Int[Tensor, " row"], k: int
) -> Float[Tensor, " row"]:
    """(k - larger) / equal, clipped to [0, 1], of each row's target in float64."""
    own = logits.gather(1, target[:, None])
    tie = TIE * logits.abs().amax(1, keepdim=True)
    larger = (logits > own + tie).sum(1)
    equal = ((logits - own).abs() <= tie).sum(1)
    return ((k - larger) / equal).clamp(0, 1).to(logits.dtype)


def _decide(
    sides: tuple[Side, Side],
    place: tuple[int, slice, slice],
    logits: Float[Tensor, "head row d_vocab"],
    own: Float[Tensor, "head row"],
) -> None:
    """Fill both sides for some heads of a layer and some rows."""
    layer, heads, rows = place
    k, d_vocab = sides[0].top.shape[-1], logits.shape[-1]
    found = [extremes(logits, k + 1, largest) for largest in (True, False)]
    largest_size = torch.maximum(found[0][0][..., 0].abs(), found[1][0][..., 0].abs())
    silent, margin = largest_size == 0, UNSURE * largest_size
    for side, sign, (values, ids) in zip(sides, (1, -1), found, strict=True):
        inside = sign * own > sign * values[..., k] + margin
        outside = sign * own < sign * values[..., k - 1] - margin
        side.hits[layer, heads, rows] = inside.to(side.hits).masked_fill(silent, k / d_vocab)
        side.top[layer, heads, rows] = ids[..., :k]
        unsure = ~(inside | outside | silent)
        for i in unsure.any(-1).nonzero().flatten().tolist():
            some = unsure[i].nonzero().flatten() + rows.start
            side.unsure.append((layer, heads.start + i, some))


def _settle(
    side: Side,
    exact: ExactModel,
    target: Int[Tensor, " row"],
    k: int,
    writes: Writes,
    sign: int,
) -> None:
    """Decide the unsure rows in float64."""
    step = max(1, BUDGET // (4 * exact.W_U.shape[1]))
    jobs = [(layer, head, part) for layer, head, rows in side.unsure for part in rows.split(step)]
    W_U = exact.W_U.double() if jobs else exact.W_U
    for layer, head, rows in tqdm(jobs, desc="settling near ties", disable=len(jobs) < 50):
        written = sign * writes(layer, head, rows)
        side.hits[layer, head, rows] = tied_share(written @ W_U, target[rows], k).to(side.hits)


@torch.no_grad()
def rank_targets(
    exact: ExactModel,
    values: Float[Tensor, "layer head row d_head"],
    target: Int[Tensor, " row"],
    k: int,
    writes: Writes,
    title: str = "scoring heads",
) -> tuple[Side, Side]:
    """Raised and lowered side of every head.

    Args:
        values: what each head writes for each row, before W_O.
        target: the token that is looked for in each row.
        k: places that count, below d_vocab.
        writes: (layer, head, rows) -> the same after W_O, in float64.
        title: of the progress bar.
    """
    n_layers, n_heads, n_rows, _ = values.shape
    d_vocab, device = exact.W_U.shape[1], values.device
    shape = (n_layers, n_heads, n_rows)
    raised, lowered = (
        Side(
            torch.zeros(shape, device=device),
            torch.zeros(*shape, k, dtype=torch.long, device=device),
        )
        for _ in range(2)
    )
    row_step = min(n_rows, max(1, BUDGET // d_vocab))
    head_step = min(n_heads, max(1, BUDGET // (d_vocab * max(row_step, exact.d_head))))
    for layer in tqdm(range(n_layers), desc=title, unit=" layers", delay=2):
        for first in range(0, n_heads, head_step):
            heads = slice(first, min(first + head_step, n_heads))
            W_O = exact.blocks[layer].W_O[heads]
            W_OU = (W_O.flatten(0, 1) @ exact.W_U).unflatten(0, W_O.shape[:2])
            for start in range(0, n_rows, row_step):
                rows = slice(start, min(start + row_step, n_rows))
                logits = values[layer, heads, rows] @ W_OU  # [head, row, d_vocab]
                own = logits.gather(2, target[rows].expand(len(logits), -1)[..., None])[..., 0]
                _decide((raised, lowered), (layer, heads, rows), logits, own)
    _settle(raised, exact, target, k, writes, 1)
    _settle(lowered, exact, target, k, writes, -1)
    return raised, lowered
