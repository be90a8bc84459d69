"""Why an edge exists: the attention score of one head as a bilinear form in features (QK).

    score[q, k] = scale (LN1(x_q) W_Q + b_Q) . (LN1(x_k) W_K + b_K)

With LayerNorm scales at their clean values both sides are sums of parts: one per dictionary feature
active there, f_s d_s C gamma / sigma, one for b_dec, one for the dictionary's error, and a constant
(beta W + b).  The score is the sum of all products query part x key part, exactly.

In a softmax a term that is the same for all keys does nothing, so what matters is the contrast

    score[q, k] - mean over other keys k' of score[q, k']

which has the same form: query part x (key part at k - its mean over k').  In gated attention the
absolute score matters, too: the edge is open where score + bias > 0.

This says why the head attends, not what it moves (arrivals.py); the two effects of a feature
multiply and cannot be added.  Scores are linear in neither side's removal: no causal claim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.coordinates import Head
from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.routes.target import activations, in_the_stream
from saekit.sae.dictionary import Dictionary

REST = ("decoder bias", "error", "constant")
Part = int | str  # a feature's index, or one of REST


@dataclass(frozen=True)
class Parts:
    """One side of a score at some positions: `values` summed over parts is the query (or key)."""

    names: list[Part]
    values: Float[Tensor, "pos part d_head"]


@dataclass(frozen=True)
class Pair:
    """One product of the bilinear form; `key` and `query` are feature indices or names of REST."""

    query: Part
    key: Part
    value: float


@dataclass(frozen=True)
class ScoreSplit:
    """The score of one edge, split.  Positions are tensor indices.

    Attributes:
        against: the keys it is contrasted with.
        score: absolute score; the sum of `absolute`.
        contrast: score minus the mean score of `against`; the sum of `table`.
        table: contrast of every (query part, key part).
        absolute: the same of the score itself.
        margin: score + gate bias in gated attention: the edge is open above 0; None in dense.
    """

    head: Head
    query: int
    key: int
    against: list[int]
    query_parts: list[Part]
    key_parts: list[Part]
    score: float
    contrast: float
    table: Float[Tensor, "query_part key_part"]
    absolute: Float[Tensor, "query_part key_part"]
    margin: float | None

    def top(self, n: int, absolute: bool = False) -> list[Pair]:
        """The `n` pairs of two *features* that matter most (largest magnitude)."""
        table = self.absolute if absolute else self.table
        kept = table[: -len(REST), : -len(REST)]
        best = kept.flatten().abs().argsort(descending=True, stable=True)[:n].tolist()
        width = max(1, kept.shape[1])
        pairs = [(i // width, i % width) for i in best]
        return [
            Pair(self.query_parts[i], self.key_parts[j], value)
            for i, j in pairs
            if (value := float(kept[i, j])) != 0
        ]

    def top_keys(self, n: int) -> list[tuple[Part, float]]:
        """The `n` features at the key that matter most to the contrast, whatever asks for them."""
        values = self.table.sum(0)[: -len(REST)]
        best = values.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.key_parts[j], float(values[j])) for j in best]

    def in_features(self, absolute: bool = False) -> float:
        """What the pairs of two features add up to."""
        table = self.absolute if absolute else self.table
        return float(table[: -len(REST), : -len(REST)].sum())

    def with_error(self, absolute: bool = False) -> float:
        """What the pairs with a dictionary's error on either side add up to."""
        table = self.absolute if absolute else self.table
        e = REST.index("error") - len(REST)
        return float(table[e].sum() + table[:, e].sum() - table[e, e])


def _parts(
    exact: ExactModel,
    clean: Forward,
    dictionary: Dictionary,
    head: Head,
    positions: Sequence[int],
    side: int,
) -> Parts:
    """Query (side 0) or key (side 1) of a head, split over all features active at the positions."""
    m, h = head
    w = exact.blocks[m]
    columns = exact.decoder.columns(h, "key" if side else "query")
    W, bias = w.W_QKV[:, columns], w.b_QKV[columns]
    x = clean.resid[m, list(positions)]
    acts = activations(dictionary, x).to(x)
    active = (acts != 0).any(0).nonzero().flatten()
    scale = clean.scale1[m, list(positions)]
    # C gamma W: centring the stream, where norms do, is centring its readers
    reads = exact.decoder.centred((w.gamma1[:, None] * W).T).T

    def read(vectors: Tensor) -> Tensor:
        return vectors @ reads

    features = acts[:, active, None] * read(dictionary.W_dec[active].to(x)) / scale[:, None, None]
    decoder = read(dictionary.b_dec.to(x)) / scale[:, None]
    constant = (w.beta1 @ W + bias).expand(len(x), -1)
    # What is left, so that the sum is exact also where the dictionary runs in float32.
    error = read(x) / scale[:, None] - features.sum(1) - decoder
    rest = torch.stack([decoder, error, constant], 1)
    values = torch.cat([features, rest], 1)
    if exact.decoder.rotary is not None:
        at = torch.tensor(positions, device=x.device)
        values = exact.decoder.rotary.turned(values.transpose(0, 1), at).transpose(0, 1)
    return Parts([*active.tolist(), *REST], values)


@torch.no_grad()
def split_score(
    exact: ExactModel,
    clean: Forward,
    dictionary: Dictionary,
    head: Head,
    query: int,
    key: int,
    against: Sequence[int],
) -> ScoreSplit:
    """Split score[query, key] of one head over the features of the dictionary at its input.

    Args:
        dictionary: of layer head[0].
        query, key: tensor indices.
        against: keys to contrast with: all others, or one that the head might have attended to.

    Raises:
        InputError: a dictionary of another layer or one that normalises each token, a key behind
            the query, or no key to contrast with.
    """
    m, h = head
    dictionary = in_the_stream(dictionary)
    if dictionary.layer != m:
        raise InputError(
            f"The dictionary is of layer {dictionary.layer}, the head reads layer {m}."
        )
    others = [k for k in against if k != key]
    if not others or not all(0 <= k <= query for k in [key, *others]):
        raise InputError("A score is contrasted with other keys, none of them behind the query.")
    scale = exact.blocks[m].score_scale
    asks = _parts(exact, clean, dictionary, head, [query], 0)
    offers = _parts(exact, clean, dictionary, head, [key, *others], 1)
    q = asks.values[0] * scale
    absolute = q @ offers.values[0].T
    table = q @ (offers.values[0] - offers.values[1:].mean(0)).T
    score = float(absolute.sum())
    margin = None if exact.gate_bias is None else score + float(exact.gate_bias[m, h])
    return ScoreSplit(
        head, query, key, others, asks.names, offers.names, score, float(table.sum()), table,
        absolute, margin,
    )  # fmt: skip
