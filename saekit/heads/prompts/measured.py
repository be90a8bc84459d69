"""Classes of heads by measurement on two-name stories, for models without published ones.

A head's role is read from three things measured by `heads/stories.py`: what it writes (direct
attribution to a name's logit), where it looks (attention to that name), and what happens without
it (ablation).  T is the model's own name logit of the right answer.

    Name Mover  attends to IO, raises IO's name logit by at least 2% of T, and removing it lowers it
    Negative    attends to IO or S and lowers the name logit of that name by at least 2% of T
    Backup      no name mover, attends to IO and raises it; once the name movers are removed,
                removing it as well costs at least 2% of T more than it did before

"At least" is also more than three standard errors over the stories.  The baseline is the number
of heads that would pass with the name of an unrelated story in place of the attended one.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from saekit.coordinates import Head, head_name
from saekit.errors import InputError
from saekit.heads.classes import HeadClass, HeadClasses
from saekit.heads.prompts.stories import (
    N_STORIES,
    StoryMeasures,
    drops_after,
    measure_stories,
    two_name_stories,
)
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel

NEGATIVE = "Negative (against the name it attends to)"
ATTENDS = 0.1  # about twice an even share of a 20-token story
SHARE = 0.02  # of the model's name logit: 50 such heads would make the whole of it
ERRORS = 3.0  # standard errors that a mean must be away from 0
MIN_ACCURACY = 0.5  # a model that names IO less often does not tell such stories

Samples = Float[np.ndarray, "story layer head"]


def _clearly(values: Samples, least: float) -> Bool[np.ndarray, "layer head"]:
    """Whether the mean over stories is at least `least` and more than three errors above 0."""
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    return (mean >= least) & (mean > ERRORS * error)


def _heads(chosen: Bool[np.ndarray, "layer head"], strength: np.ndarray) -> list[Head]:
    """The chosen heads, the strongest first."""
    heads = [(int(layer), int(head)) for layer, head in np.argwhere(chosen)]
    return sorted(heads, key=lambda head: -strength[head])


def classify(
    m: StoryMeasures, after: Samples | None = None
) -> tuple[list[Head], list[Head], list[Head]]:
    """Name movers, backups and negative heads, by the rules in the module's first lines.

    Args:
        m: measured stories.
        after: drops once the name movers are removed; without it there are no backups.
    """
    total = m.name_logit.mean()
    reads_answer = m.to_answer.mean(0) >= ATTENDS
    reads_other = m.to_other.mean(0) >= ATTENDS
    raises = _clearly(m.raises_answer, SHARE * total)
    mover = reads_answer & raises & _clearly(m.drop, 0.0)
    against_answer = reads_answer & _clearly(-m.raises_answer, SHARE * total)
    against_other = reads_other & _clearly(-m.raises_other, SHARE * total)
    lowered = np.maximum(-m.raises_answer.mean(0), -m.raises_other.mean(0))
    strength = m.raises_answer.mean(0)
    growth = np.zeros_like(m.drop) if after is None else after - m.drop
    backup = ~mover & reads_answer & _clearly(m.raises_answer, 0.0)
    backup &= _clearly(growth, SHARE * total)
    return (
        _heads(mover, strength),
        _heads(backup, growth.mean(0)),
        _heads(against_answer | against_other, lowered),
    )


def passing_by_chance(m: StoryMeasures) -> int:
    """Heads that attend to a name and clearly raise or lower a name of another story."""
    reads = (m.to_answer.mean(0) >= ATTENDS) | (m.to_other.mean(0) >= ATTENDS)
    least = SHARE * m.name_logit.mean()
    up, down = _clearly(m.raises_unrelated, least), _clearly(-m.raises_unrelated, least)
    return int((reads & (up | down)).sum())


def _evidence(
    m: StoryMeasures, after: Samples, groups: dict[str, list[Head]]
) -> list[dict[str, Any]]:
    """The figures behind every classified head."""

    def mean(values: Samples, head: Head) -> float:
        return round(float(values[(slice(None), *head)].mean()), 4)

    return [
        {
            "head": head_name(*head),
            "class": name,
            "raises_answer": mean(m.raises_answer, head),
            "raises_other": mean(m.raises_other, head),
            "attends_answer": mean(m.to_answer, head),
            "attends_other": mean(m.to_other, head),
            "drop": mean(m.drop, head),
            "drop_after": mean(after, head),
        }
        for name, heads in groups.items()
        for head in heads
    ]


def measured_classes(
    model: LanguageModel, exact: ExactModel, n: int = N_STORIES, seed: int = 0
) -> HeadClasses:
    """Classes of a model's heads, measured on `n` stories.

    Raises:
        InputError: the model splits first names, or does not answer such stories.
    """
    stories = two_name_stories(model, n, seed)
    m = measure_stories(exact, stories)
    accuracy, total = float(m.correct.mean()), float(m.name_logit.mean())
    if accuracy < MIN_ACCURACY or total <= 0:
        raise InputError(
            f"{model.id} answers {accuracy:.0%} of {n} two-name stories; classes of heads are "
            f"measured from {MIN_ACCURACY:.0%} on."
        )
    movers, _, _ = classify(m)
    after = drops_after(exact, stories, movers) if movers else m.drop
    movers, backups, negative = classify(m, after)
    source = (
        f"measured by saekit on {n} two-name stories that {model.id} answers with an accuracy of "
        f"{accuracy:.2f}: attention to the name, what the head writes to its logit, ablation"
    )
    groups = {"Name Mover": movers, "Backup": backups, NEGATIVE: negative}
    return HeadClasses(
        title=f"Measured here ({n} two-name stories)",
        measured=True,
        source=source,
        drawn=[
            HeadClass("Name Mover", "scores", "x", movers),
            HeadClass("Backup", "scores", "dot", backups),
            HeadClass(NEGATIVE, "suppression", "x", negative),
        ],
        evidence=_evidence(m, after, groups),
        baseline={
            "passing_with_unrelated_names": passing_by_chance(m),
            "accuracy": round(accuracy, 4),
            "name_logit": round(total, 4),
            "stories": n,
            "seed": seed,
        },
    )
