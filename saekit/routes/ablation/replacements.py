"""What removed edges carry instead of what they carried.

zero         nothing; in gated attention exactly a closed gate, in dense attention off the
             distribution (the value bias goes, too)
renormalise  nothing, and the other weights of the row grow until its sum is what it was
mean         the corpus mean of the head's value (head_means.py), at the live attention weight
resample     the value at the same position of a counterfactual prompt of the same length, at the
             live attention weight: what depends on the content that differs
resample full  value and attention weight of the counterfactual prompt
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.routes.ablation.head_means import HeadMeans
from saekit.routes.circuit_parts import Way


@dataclass(frozen=True)
class Replacement:
    """See the module's docstring.

    Attributes:
        name: for people and JSON.
        value: moved instead from every position; None moves nothing.
        weight: attention weights instead of the live ones.
        renormalise: whether the row's other weights take over.
    """

    name: Way
    value: Float[Tensor, "layer head pos d_head"] | None = None
    weight: Float[Tensor, "layer head query pos"] | None = None
    renormalise: bool = False


ZERO = Replacement("zero")
RENORMALISE = Replacement("renormalise", renormalise=True)


def mean_values(exact: ExactModel, clean: Forward, means: HeadMeans) -> Replacement:
    """The corpus mean of every head's value, at the prompt's positions."""
    return Replacement("mean", means.at(len(clean.ids)).to(exact.W_E))


def resampled(clean: Forward, other: Forward, weights: bool = False) -> Replacement:
    """What another prompt moves over the same edges.

    Args:
        other: the counterfactual prompt's forward pass, such as the same sentence about another
            word.
        weights: take its attention weights as well.

    Raises:
        InputError: the prompts differ in length.
    """
    if len(other.ids) != len(clean.ids):
        raise InputError(
            f"The counterfactual prompt has {len(other.ids)} tokens and the prompt "
            f"{len(clean.ids)}, the beginning-of-sequence token included: give one of equal length."
        )
    if torch.equal(other.ids, clean.ids):
        raise InputError("The counterfactual prompt is the prompt itself: change a word.")
    name = "resample full" if weights else "resample"
    return Replacement(name, other.value, other.pattern if weights else None)
