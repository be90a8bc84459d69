"""Which feature of one layer is which feature of the next: links, their error rate, chains.

Two features are linked when each is the other's best partner by

    w = sqrt(max(cos, 0) * max(corr, 0))

with cos the cosine of their decoder rows and corr the Pearson correlation of their activations,
cos >= tau_cosine, corr >= tau_correlation and at least 30 joint activations.  Features without a
neighbour may be linked over one layer.  The thresholds start at 0.5 / 0.4 and rise until the same
procedure, run on two kinds of nulls, makes at most 5% as many links:

    shifted  each feature's activations of the later layer are rotated in time by its own random
             offset, which keeps how often and in what bursts it fires
    flipped  the later decoder has random signs on its principal components, which keeps its mean
             and covariance
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from torch import Tensor

from saekit.concepts import columns

START = (0.5, 0.4)  # (tau_cosine, tau_correlation); both rise by STEP
STEP, LAST = 0.05, 0.95
MIN_JOINT = 30
MIN_SHIFT = 100
NEAREST, CANDIDATE_COSINE = 8, 0.3  # candidates for the best partner
NULLS = ("shifted", "flipped")
_BLOCK_ENTRIES = 4_000_000  # activations compared at once


@dataclass(frozen=True)
class Link:
    """Feature `feature` of `layer` and feature `to_feature` of `to_layer` are one."""

    layer: int
    feature: int
    to_layer: int
    to_feature: int
    cosine: float
    correlation: float


@dataclass
class Pairs:
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


@dataclass
class Matching:
    """All links of a dictionary set, and how they compare with nulls.

    Attributes:
        trials: features that could have been linked, summed over layer pairs.
        null_links: links the same procedure makes on each null, in as many trials.
        fdr: the largest of null links / links.
    """

    layers: list[int]
    links: list[Link]
    tau_cosine: float
    tau_correlation: float
    trials: int
    null_links: dict[str, int]
    fdr: float
    target_fdr: float

    def summary(self) -> dict[str, Any]:
        """What is stored: thresholds, counts per layer pair, nulls, lengths of chains."""
        counts = Counter((link.layer, link.to_layer) for link in self.links)
        lengths = Counter(len(chain) for chain in chains(self.links))
        own = {name: value for name, value in asdict(self).items() if name not in ("links",)}
        return own | {
            "links": len(self.links),
            "pairs": [{"from": a, "to": b, "links": n} for (a, b), n in sorted(counts.items())],
            "chain_lengths": {str(length): n for length, n in sorted(lengths.items())},
        }


def _unit(decoder: Float[Tensor, "feature d_in"]) -> Float[Tensor, "feature d_in"]:
    return decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)


def flip_signs(
    decoder: Float[Tensor, "feature d_in"], generator: torch.Generator
) -> Float[Tensor, "feature d_in"]:
    """Unit rows with random signs on the principal components; mean and covariance are kept."""
    unit = _unit(decoder.float().cpu())
    mean = unit.mean(0)
    _, _, components = torch.linalg.svd(unit - mean, full_matrices=False)
    signs = torch.randint(0, 2, (len(components),), generator=generator).float() * 2 - 1
    return (mean + (unit - mean) @ components.T * signs @ components).to(decoder.device)


def shift_activations(activations: csc_array, rng: np.random.Generator) -> csc_array:
    """Every feature's activations rotated in time by its own offset of more than 100 positions."""
    n, d_sae = columns.n_positions(activations), len(columns.counts(activations))
    least = min(MIN_SHIFT, n // 4)
    offsets = rng.integers(least + 1, max(n - least, least + 2), d_sae)
    positions = columns.positions(activations) + offsets[columns.features(activations)]
    shifted = csc_array(
        (columns.values(activations).copy(), positions % n, columns.starts(activations).copy()),
        shape=(n, d_sae),
    )
    shifted.sort_indices()
    return shifted


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
    n = columns.n_positions(left)
    products, joint = np.zeros(len(i)), np.zeros(len(i), np.int64)
    sizes = columns.counts(left)[i] + columns.counts(right)[j]
    block = np.cumsum(sizes) // _BLOCK_ENTRIES
    for number in range(int(block[-1]) + 1 if len(block) else 0):
        part = np.flatnonzero(block == number)
        if len(part):
            both = csc_array(left[:, i[part]].multiply(right[:, j[part]]))
            products[part] = np.asarray(both.sum(0, dtype=np.float64)).ravel()
            joint[part] = columns.counts(both)

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
) -> Pairs:
    """Mutual best partners of two layers, given (activations, decoder) of each.

    Args:
        layers: the two layers.
        left, right: sparse [position, feature] activations and W_dec.
        allowed: features that may take part; by default all.  Those with fewer than 30
            activations never do.
    """
    places = [
        np.flatnonzero((columns.counts(side[0]) >= MIN_JOINT) & (True if ok is None else ok))
        for side, ok in zip((left, right), allowed or (None, None), strict=True)
    ]
    pairs = Pairs(*layers, trials=len(places[0]))
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


def false_discovery_rate(links: int, null_links: Mapping[str, int]) -> float:
    """Largest null links / links (both from the same number of trials), at most 1."""
    worst = max(null_links.values(), default=0)
    return 0.0 if worst == 0 else min(1.0, worst / links) if links else 1.0


def choose_thresholds(
    real: list[Pairs], nulls: Mapping[str, list[Pairs]], target_fdr: float
) -> tuple[float, float]:
    """The lowest thresholds at which the estimated FDR is at most the target, else the highest."""
    thresholds = START
    while True:
        links = sum(int(pairs.above(thresholds).sum()) for pairs in real)
        null_links = {
            name: sum(int(p.above(thresholds).sum()) for p in all_pairs)
            for name, all_pairs in nulls.items()
        }
        if false_discovery_rate(links, null_links) <= target_fdr or thresholds[0] >= LAST:
            return thresholds
        thresholds = (round(thresholds[0] + STEP, 2), round(thresholds[1] + STEP, 2))


def match_layers(
    activations: Mapping[int, csc_array],
    decoders: Mapping[int, Float[Tensor, "feature d_in"]],
    target_fdr: float = 0.05,
    seed: int = 0,
) -> Matching:
    """Link features between neighbouring layers and, where there is no neighbour, over one layer.

    Args:
        activations: per layer, sparse [position, feature] activations on the same text.
        decoders: per layer, W_dec.
        target_fdr: accepted share of false links.
        seed: of the nulls.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    layers = sorted(activations)
    sides = {layer: (activations[layer], decoders[layer]) for layer in layers}

    def null_side(name: str, layer: int) -> tuple[csc_array, Tensor]:
        active, decoder = sides[layer]
        if name == "shifted":
            return shift_activations(active, rng), decoder
        return active, flip_signs(decoder, generator)

    def matched(a: int, b: int, allowed: Any = None) -> tuple[Pairs, dict[str, Pairs]]:
        real = match_pair((a, b), sides[a], sides[b], allowed)
        nulls = {n: match_pair((a, b), sides[a], null_side(n, b), allowed) for n in NULLS}
        return real, nulls

    found = [matched(a, b) for a, b in zip(layers, layers[1:], strict=False)]
    thresholds = choose_thresholds(
        [real for real, _ in found], {n: [null[n] for _, null in found] for n in NULLS}, target_fdr
    )
    has_next = {layer: np.zeros(len(columns.counts(activations[layer])), bool) for layer in layers}
    has_previous = {layer: mask.copy() for layer, mask in has_next.items()}
    for real, _ in found:
        keep = real.above(thresholds)
        has_next[real.layer][real.left[keep]] = True
        has_previous[real.to_layer][real.right[keep]] = True
    for a, b in zip(layers, layers[2:], strict=False):
        found.append(matched(a, b, (~has_next[a], ~has_previous[b])))

    links = [link for real, _ in found for link in _links(real, thresholds)]
    null_links = {n: sum(int(null[n].above(thresholds).sum()) for _, null in found) for n in NULLS}
    fdr = false_discovery_rate(len(links), null_links)
    trials = sum(real.trials for real, _ in found)
    if fdr > target_fdr:  # even the strictest thresholds cannot tell links from chance
        links = []
    return Matching(layers, links, *thresholds, trials, null_links, round(fdr, 5), target_fdr)


def _links(pairs: Pairs, thresholds: tuple[float, float]) -> list[Link]:
    return [
        Link(pairs.layer, int(pairs.left[at]), pairs.to_layer, int(pairs.right[at]),
             round(float(pairs.cosine[at]), 4), round(float(pairs.correlation[at]), 4))
        for at in np.flatnonzero(pairs.above(thresholds))
    ]  # fmt: skip


def chains(links: list[Link]) -> list[list[tuple[int, int]]]:
    """Paths of links as lists of (layer, feature), ascending; every feature is in one at most.

    A link over one layer is dropped if one of its ends already has a nearer neighbour.
    """
    after: dict[tuple[int, int], tuple[int, int]] = {}
    taken: set[tuple[int, int]] = set()
    for link in sorted(links, key=lambda link: link.to_layer - link.layer):
        start, end = (link.layer, link.feature), (link.to_layer, link.to_feature)
        if start not in after and end not in taken:
            after[start] = end
            taken.add(end)
    paths = []
    for start in sorted(set(after) - taken):
        path = [start]
        while path[-1] in after:
            path.append(after[path[-1]])
        paths.append(path)
    return paths
