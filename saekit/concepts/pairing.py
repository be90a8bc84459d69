"""Mutual best partners of the features of two layers, on real activations and on nulls.

The score of two features is

    w = sqrt(max(cos, 0) * max(corr, 0))

with cos the cosine of their decoder rows and corr the Pearson correlation of their activations over
all positions.  Partners are mutual bests with at least 30 joint activations; which of them are
links is decided in `saekit.concepts.matching`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from torch import Tensor

from saekit.activations import sparse

MIN_JOINT = 30
MIN_SHIFT = 100
NEAREST, CANDIDATE_COSINE = 8, 0.3  # candidates for the best partner
_BLOCK_COMPONENTS = 8
_BLOCK_ENTRIES = 4_000_000  # activations compared at once


@dataclass
class LayerPairs:
    """Mutual best partners of two layers, before thresholds."""

    layer: int
    to_layer: int
    trials: int = 0
    left: Int[np.ndarray, " pair"] = field(default_factory=lambda: np.zeros(0, np.int64))
    right: Int[np.ndarray, " pair"] = field(default_factory=lambda: np.zeros(0, np.int64))
    cosine: Float[np.ndarray, " pair"] = field(default_factory=lambda: np.zeros(0))
    correlation: Float[np.ndarray, " pair"] = field(default_factory=lambda: np.zeros(0))

    def above(self, thresholds: tuple[float, float]) -> Bool[np.ndarray, " pair"]:
        return (self.cosine >= thresholds[0]) & (self.correlation >= thresholds[1])


def _unit(decoder: Float[Tensor, "feature d_in"]) -> Float[Tensor, "feature d_in"]:
    return decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)


def rotate_components(
    decoder: Float[Tensor, "feature d_in"], generator: torch.Generator
) -> Float[Tensor, "feature d_in"]:
    """Unit rows, randomly rotated among principal components of about equal variance.

    The mean is kept, the covariance but for what differs within a block of eight components.
    """
    unit = _unit(decoder.float().cpu())
    mean = unit.mean(0)
    _, _, components = torch.linalg.svd(unit - mean, full_matrices=False)
    parts = []
    for block in components.split(_BLOCK_COMPONENTS):
        drawn = torch.randn(len(block), len(block), generator=generator)
        rotation, upper = torch.linalg.qr(drawn)  # signs make it uniform (Mezzadri 2007)
        parts.append((rotation * upper.diagonal().sign()) @ block)
    return (mean + (unit - mean) @ components.T @ torch.cat(parts)).to(decoder.device)


def shift_activations(activations: csc_array, rng: np.random.Generator) -> csc_array:
    """Every feature's activations rotated in time by its own offset of more than 100 positions."""
    n, d_sae = sparse.n_positions(activations), len(sparse.counts(activations))
    least = min(MIN_SHIFT, n // 4)
    offsets = rng.integers(least + 1, max(n - least, least + 2), d_sae)
    positions = sparse.positions(activations) + offsets[sparse.features(activations)]
    shifted = csc_array(
        (sparse.values(activations).copy(), positions % n, sparse.starts(activations).copy()),
        shape=(n, d_sae),
    )
    shifted.sort_indices()
    return shifted


def swap_within_deciles(
    counts: Int[np.ndarray, " feature"], rng: np.random.Generator
) -> Int[np.ndarray, " feature"]:
    """For every feature another of about its frequency: a cycle within each tenth by count.

    No feature keeps its place (a permutation with fixed points would leave true pairs in the
    null), unless there is only one.
    """
    order = np.argsort(counts, kind="stable")
    swapped = np.arange(len(counts))
    for decile in np.array_split(order, max(1, min(10, len(counts) // 2))):
        cycle = rng.permutation(decile)
        swapped[cycle] = np.roll(cycle, 1)
    return swapped


def candidate_pairs(
    left: Float[Tensor, "left d_in"], right: Float[Tensor, "right d_in"]
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Pairs in which one is among the other's 8 nearest by cosine, and the cosine is >= 0.3."""
    left, right = _unit(left.float()), _unit(right.float())
    codes, cosines = [], []
    for a, b, swapped in ((left, right, False), (right, left, True)):
        for start in range(0, len(a), 4096):
            best = (a[start : start + 4096] @ b.T).topk(min(NEAREST, len(b)), dim=1)
            keep = (best.values >= CANDIDATE_COSINE).cpu()
            own = torch.arange(start, start + len(keep))[:, None].expand(keep.shape)[keep]
            other = best.indices.cpu()[keep]
            i, j = (other, own) if swapped else (own, other)
            codes.append((i * len(right) + j).numpy())
            cosines.append(best.values.cpu()[keep].double().numpy())
    code, first = np.unique(np.concatenate(codes), return_index=True)
    return code // len(right), code % len(right), np.concatenate(cosines)[first]


def correlations(
    left: csc_array,
    right: csc_array,
    i: Int[np.ndarray, " pair"],
    j: Int[np.ndarray, " pair"],
) -> tuple[Float[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Pearson correlation over all positions of column i of `left` with column j of `right`, and
    at how many positions both are active."""
    n = sparse.n_positions(left)
    products, joint = np.zeros(len(i)), np.zeros(len(i), np.int64)
    sizes = sparse.counts(left)[i] + sparse.counts(right)[j]
    block = np.cumsum(sizes) // _BLOCK_ENTRIES
    for number in range(int(block[-1]) + 1 if len(block) else 0):
        part = np.flatnonzero(block == number)
        if len(part):
            both = csc_array(left[:, i[part]].multiply(right[:, j[part]]))
            products[part] = np.asarray(both.sum(0, dtype=np.float64)).ravel()
            joint[part] = sparse.counts(both)

    def moments(matrix: csc_array) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(matrix.sum(0, dtype=np.float64)).ravel() / n
        square = np.asarray(matrix.power(2).sum(0, dtype=np.float64)).ravel() / n
        return mean, np.sqrt(np.maximum(square - mean**2, 1e-300))

    (mean_left, sd_left), (mean_right, sd_right) = moments(left), moments(right)
    covariance = products / n - mean_left[i] * mean_right[j]
    return covariance / (sd_left[i] * sd_right[j]), joint


def mutual_best(
    i: Int[np.ndarray, " pair"], j: Int[np.ndarray, " pair"], score: Float[np.ndarray, " pair"]
) -> Int[np.ndarray, " mutual"]:
    """Places of the pairs in which both prefer each other; ties go to the first pair."""
    order = np.argsort(-score, kind="stable")
    order = order[score[order] > 0]
    best_of_i = order[np.unique(i[order], return_index=True)[1]]
    best_of_j = order[np.unique(j[order], return_index=True)[1]]
    return np.intersect1d(best_of_i, best_of_j)


def match_pair(
    layers: tuple[int, int],
    left: tuple[csc_array, Float[Tensor, "left d_in"]],
    right: tuple[csc_array, Float[Tensor, "right d_in"]],
    allowed: tuple[Bool[np.ndarray, " left"], Bool[np.ndarray, " right"]] | None = None,
) -> LayerPairs:
    """Mutual best partners of two layers, given (activations, decoder) of each.

    Args:
        layers: the two layers.
        left, right: sparse [position, feature] activations and W_dec.
        allowed: features that may take part; by default all.  Those with fewer than 30
            activations never do.
    """
    places = [
        np.flatnonzero((sparse.counts(side[0]) >= MIN_JOINT) & (True if ok is None else ok))
        for side, ok in zip((left, right), allowed or (None, None), strict=True)
    ]
    pairs = LayerPairs(*layers, trials=len(places[0]))
    if not len(places[0]) or not len(places[1]):
        return pairs
    decoders = [
        side[1][torch.from_numpy(at)] for side, at in zip((left, right), places, strict=True)
    ]
    i, j, cosine = candidate_pairs(*decoders)
    i, j = places[0][i], places[1][j]
    correlation, joint = correlations(left[0], right[0], i, j)
    score = np.sqrt(np.maximum(cosine, 0) * np.maximum(correlation, 0))
    chosen = mutual_best(i, j, np.where(joint >= MIN_JOINT, score, 0))
    pairs.left, pairs.right = i[chosen], j[chosen]
    pairs.cosine, pairs.correlation = cosine[chosen], correlation[chosen]
    return pairs
