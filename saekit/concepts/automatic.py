"""Concepts that nobody asked for: every reliable name with the features and chains that have it.

A feature is reliable if its name detects it with a balanced accuracy of at least 0.9 on the part of
the text on which names are chosen; every score that is shown is of the other part
(`saekit.features.scoring`).  Features of one name and kind are one concept.  A feature without a
reliable name of its own joins if the features matched with it in other layers (a chain) are of one
reliable name more than of any other, votes weighted by detection.  Torch-free.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from saekit.coordinates import feature_name
from saekit.features.name_file import KINDS, FeatureNames

GOOD = 0.9  # chosen_detection from which a name is reliable
Place = tuple[int, int]


@dataclass
class AutomaticConcept:
    """A name with everything that has it.

    Attributes:
        name, kind: see `saekit.features.records.FeatureName`.
        span: first and last layer of its features.
        features: reliable ones, written `8/1234`, best first (by the choosing part).
        chains: matched features of neighbouring layers with at least one of `features`, in which
            this name has the most votes.
        best: the first of `features`; the scores are its own, on the reporting part.
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
    chains: list[list[str]] = field(default_factory=list)


def automatic_concepts(
    names: FeatureNames, chains: Sequence[Sequence[Place]] = ()
) -> list[AutomaticConcept]:
    """All reliable names, the most reliable first.

    Args:
        names: of all features, with scores.
        chains: paths of (layer, feature), as `saekit.concepts.matching.chains` gives them.
    """
    chosen, reported = names.column("chosen_detection"), names.column("detection")
    slot_of = {layer: slot for slot, layer in enumerate(names.layers)}
    own: dict[Place, tuple[str, str]] = {}
    passed = (chosen >= GOOD) & ~np.isnan(reported) & (names.numbers > 0)
    for slot, feature in np.argwhere(passed).tolist():
        kind = KINDS[names.kinds[slot, feature]]
        own[names.layers[slot], feature] = (names.texts[names.numbers[slot, feature]], kind)

    groups: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for place, key in own.items():
        groups[key].append(place)
    paths: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for chain in chains:
        winner = _vote(chain, own, {p: float(chosen[slot_of[p[0]], p[1]]) for p in chain})
        if winner is not None:
            paths[winner].append([feature_name(*place) for place in chain])

    found = []
    for key, places in groups.items():
        places.sort(key=lambda place: (-chosen[slot_of[place[0]], place[1]], place))
        best = places[0]
        scores = names.get(*best).scores
        assert scores.detection is not None
        layers = [layer for layer, _ in places]
        found.append(
            AutomaticConcept(
                *key, (min(layers), max(layers)), [feature_name(*place) for place in places],
                feature_name(*best), scores.detection, scores.null_detection, scores.fuzzing,
                scores.f1, scores.auroc, paths[key],
            )
        )  # fmt: skip
    order = {c.best: chosen[slot_of[int(c.best.split("/")[0])], int(c.best.split("/")[1])]
             for c in found}  # fmt: skip
    return sorted(found, key=lambda c: (-order[c.best], -len(c.features), c.name, c.kind))


def _vote(
    chain: Sequence[Place], own: dict[Place, tuple[str, str]], weight: dict[Place, float]
) -> tuple[str, str] | None:
    """The name with the most weight on a chain; None if no member has a reliable one."""
    votes: dict[tuple[str, str], float] = defaultdict(float)
    for place in chain:
        if place in own:
            votes[own[place]] += weight[place]
    return max(votes, key=lambda key: (votes[key], key)) if votes else None


def automatic_table(concepts: Sequence[AutomaticConcept], limit: int | None = None) -> str:
    """For the terminal: one concept per line, and how many there are."""
    if not concepts:
        return "No feature has a name that is reliable on held-out text."
    lines = ["name (kind)                       layers  detection   null     F1  AUROC  features"]
    for concept in concepts[:limit]:
        shown = f"{concept.name} ({concept.kind})"
        first, last = concept.span
        layers = f"{first}-{last}" if last > first else f"{first}"
        cells = [
            "  n/a" if value is None else f"{value:5.3f}"
            for value in (concept.detection, concept.null_detection, concept.f1, concept.auroc)
        ]
        more = f" and {len(concept.features) - 1} more" if len(concept.features) > 1 else ""
        lines.append(
            f"{shown:32}  {layers:>6}      {cells[0]}  {cells[1]}  {cells[2]}  {cells[3]}  "
            f"{concept.best}{more}"
        )
    if limit is not None and len(concepts) > limit:
        lines.append(f"... and {len(concepts) - limit} more: --top, --json")
    return "\n".join([*lines, "", automatic_sentence(concepts)])


def automatic_sentence(concepts: Sequence[AutomaticConcept]) -> str:
    """How many there are and how they do on the part of the text that did not choose them."""
    nulls = [c.null_detection for c in concepts if c.null_detection is not None]
    null = f"{sum(nulls) / len(nulls):.3f}" if nulls else "n/a"
    mean = sum(c.detection for c in concepts) / max(1, len(concepts))
    good = sum(c.detection >= GOOD for c in concepts)
    return (
        f"{len(concepts)} automatic concepts: names that detect their feature with a balanced "
        f"accuracy of at least {GOOD} on one part of held-out text.  On the other part {good} of "
        f"them do, mean {mean:.3f}; names of other, equally frequent features: mean {null}."
    )
