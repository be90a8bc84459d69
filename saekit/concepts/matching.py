"""Which feature of one layer is which feature of the next: links, their error rate, chains.

Two features are linked when each is the other's best partner (`saekit.concepts.pairing`), the
cosine of their decoder rows is at least tau_cosine and the correlation of their activations at
least tau_correlation.  Features without a neighbour may be linked over one layer.  The thresholds
start at 0.5 / 0.4 and rise until the same procedure, run on three kinds of nulls, makes at most 5%
as many links; links over one layer are left out if with them it would be more:

    shifted  each feature's activations of the later layer are rotated in time by its own random
             offset, which keeps how often and in what bursts it fires
    rotated  the later decoder is rotated among principal components of about equal variance,
             which keeps its mean and nearly its covariance
    swapped  features of the later layer that are about equally frequent exchange their decoder
             rows, so that rows and activations stay those of a dictionary

The chains that null links form, beside the real ones, tell how long a chain is by chance.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csc_array
from torch import Tensor

from saekit.activations import sparse
from saekit.concepts.pairing import (
    LayerPairs,
    match_pair,
    rotate_components,
    shift_activations,
    swap_within_deciles,
)

START = (0.5, 0.4)  # (tau_cosine, tau_correlation); both rise by STEP
STEP, LAST = 0.05, 0.95
NULLS = ("shifted", "rotated", "swapped")


@dataclass(frozen=True)
class Link:
    """Feature `feature` of `layer` and feature `to_feature` of `to_layer` are one."""

    layer: int
    feature: int
    to_layer: int
    to_feature: int
    cosine: float
    correlation: float


_Found = list[tuple[LayerPairs, dict[str, LayerPairs]]]  # real pairs, and those of every null


@dataclass
class Matching:
    """All links of a dictionary set, and how they compare with nulls.

    Attributes:
        trials: features that could have been linked, summed over layer pairs.
        null_links: links the same procedure makes on each null, in as many trials.
        null_chains: how many chains of each length the links of each null form.
        fdr: the largest of null links / links.
    """

    layers: list[int]
    links: list[Link]
    tau_cosine: float
    tau_correlation: float
    trials: int
    null_links: dict[str, int]
    null_chains: dict[str, dict[str, int]]
    fdr: float
    target_fdr: float

    def summary(self) -> dict[str, Any]:
        """What is stored: thresholds, counts per layer pair, nulls, lengths of chains."""
        counts = Counter((link.layer, link.to_layer) for link in self.links)
        own = {name: value for name, value in asdict(self).items() if name not in ("links",)}
        return own | {
            "links": len(self.links),
            "pairs": [{"from": a, "to": b, "links": n} for (a, b), n in sorted(counts.items())],
            "chain_lengths": chain_lengths(self.links),
        }


def false_discovery_rate(links: int, null_links: Mapping[str, int]) -> float:
    """Largest null links / links (both from the same number of trials), at most 1."""
    worst = max(null_links.values(), default=0)
    return 0.0 if worst == 0 else min(1.0, worst / links) if links else 1.0


def choose_thresholds(
    real: list[LayerPairs], nulls: Mapping[str, list[LayerPairs]], target_fdr: float
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

    def null(name: str, a: int, b: int, allowed: Any) -> LayerPairs:
        active, decoder = sides[b]
        if name == "shifted":
            active = shift_activations(active, rng)
        elif name == "rotated":
            decoder = rotate_components(decoder, generator)
        else:
            swapped = torch.from_numpy(swap_within_deciles(sparse.counts(active), rng))
            decoder = decoder[swapped.to(decoder.device)]
        return match_pair((a, b), sides[a], (active, decoder), allowed)

    def matched(a: int, b: int, allowed: Any = None) -> tuple[LayerPairs, dict[str, LayerPairs]]:
        real = match_pair((a, b), sides[a], sides[b], allowed)
        return real, {name: null(name, a, b, allowed) for name in NULLS}

    found = [matched(a, b) for a, b in zip(layers, layers[1:], strict=False)]
    all_nulls = {name: [nulls[name] for _, nulls in found] for name in NULLS}
    thresholds = choose_thresholds([real for real, _ in found], all_nulls, target_fdr)
    has_next = {layer: np.zeros(len(sparse.counts(activations[layer])), bool) for layer in layers}
    has_previous = {layer: mask.copy() for layer, mask in has_next.items()}
    for real, _ in found:
        keep = real.above(thresholds)
        has_next[real.layer][real.left[keep]] = True
        has_previous[real.to_layer][real.right[keep]] = True
    over_one = [
        matched(a, b, (~has_next[a], ~has_previous[b]))
        for a, b in zip(layers, layers[2:], strict=False)
    ]

    def linked(found: _Found) -> tuple[list[Link], dict[str, list[Link]], float]:
        links = _links([real for real, _ in found], thresholds)
        by_null = {name: _links([nulls[name] for _, nulls in found], thresholds) for name in NULLS}
        counts = {name: len(of_null) for name, of_null in by_null.items()}
        return links, by_null, false_discovery_rate(len(links), counts)

    links, null_links, fdr = linked(found + over_one)
    if (
        fdr > target_fdr
    ):  # links over one layer, for which no thresholds were chosen, may be too bad
        links, null_links, fdr = linked(found)
    else:
        found += over_one
    if fdr > target_fdr:  # even the strictest thresholds cannot tell links from chance
        links = []
    return Matching(
        layers,
        links,
        *thresholds,
        trials=sum(real.trials for real, _ in found),
        null_links={name: len(of_null) for name, of_null in null_links.items()},
        null_chains={name: chain_lengths(of_null) for name, of_null in null_links.items()},
        fdr=round(fdr, 5),
        target_fdr=target_fdr,
    )


def _links(matched: Sequence[LayerPairs], thresholds: tuple[float, float]) -> list[Link]:
    return [
        Link(pairs.layer, int(pairs.left[at]), pairs.to_layer, int(pairs.right[at]),
             round(float(pairs.cosine[at]), 4), round(float(pairs.correlation[at]), 4))
        for pairs in matched
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


def chain_lengths(links: list[Link]) -> dict[str, int]:
    """How many chains have how many members; lengths are texts, as keys of JSON are."""
    lengths = Counter(len(chain) for chain in chains(links))
    return {str(length): n for length, n in sorted(lengths.items())}
