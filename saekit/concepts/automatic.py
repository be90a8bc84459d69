"""Concepts that nobody asked for: chains and single features whose name is reliable.

A feature is reliable if its name detects it with a balanced accuracy of at least 0.9 on the part of
the text on which names are chosen; every score that is shown is of the other part
(`features/names/scoring.py`).  A chain (features matched between layers) with a reliable member is
one concept, called by the vote of its reliable members, weighted by detection; a reliable feature
on no chain is a concept of its own.  For people, concepts of one name and kind share a line.
Torch-free.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saekit.coordinates import feature_name
from saekit.features.names.name_file import GOOD, KINDS, FeatureNames

Place = tuple[int, int]


@dataclass
class AutomaticConcept:
    """A chain, or a single feature, with a reliable name.

    Attributes:
        name, kind: see `saekit.features.records.FeatureName`.
        span: first and last layer of its features.
        features: the chain, written `8/1234`, by layer.
        best: the member of that name with the highest detection on the choosing part; the scores
            are its own, on the reporting part.
    """

    name: str
    kind: str
    span: tuple[int, int]
    features: list[str]
    best: str
    detection: float
    null_detection: float | None
    fuzzing: float | None
    f1: float | None
    auroc: float | None


def automatic_concepts(
    names: FeatureNames, chains: Sequence[Sequence[Place]] = ()
) -> list[AutomaticConcept]:
    """All chains and single features with a reliable name, the most reliable first.

    Args:
        names: of all features, with scores.
        chains: paths of (layer, feature), as `saekit.concepts.matching.chains` gives them.
    """
    chosen, reported = names.column("chosen_detection"), names.column("detection")
    passed = (chosen >= GOOD) & ~np.isnan(reported) & (names.numbers > 0)
    own: dict[Place, tuple[str, str]] = {}
    weight: dict[Place, float] = {}
    for slot, feature in np.argwhere(passed).tolist():
        place = (names.layers[slot], feature)
        own[place] = (names.texts[names.numbers[slot, feature]], KINDS[names.kinds[slot, feature]])
        weight[place] = float(chosen[slot, feature])

    on_chains = {place for chain in chains for place in chain}
    paths = [*chains, *([place] for place in own if place not in on_chains)]
    found: list[tuple[float, AutomaticConcept]] = []
    for path in paths:
        members = [place for place in path if place in own]
        if not members:
            continue
        votes: dict[tuple[str, str], float] = defaultdict(float)
        for place in members:
            votes[own[place]] += weight[place]
        label = max(votes, key=lambda key: (votes[key], key))
        best = max((p for p in members if own[p] == label), key=lambda p: (weight[p], p))
        scores = names.get(*best).scores
        assert scores.detection is not None
        layers = [layer for layer, _ in path]
        concept = AutomaticConcept(
            *label, (min(layers), max(layers)), [feature_name(*place) for place in path],
            feature_name(*best), scores.detection, scores.null_detection, scores.fuzzing,
            scores.f1, scores.auroc,
        )  # fmt: skip
        found.append((weight[best], concept))
    found.sort(key=lambda pair: (-pair[0], -len(pair[1].features), pair[1].name, pair[1].best))
    return [concept for _, concept in found]
