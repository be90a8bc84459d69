"""What interventions did to a prompt's prediction.  Importing this module costs no torch."""

from dataclasses import asdict, dataclass
from typing import Any

from saekit.documents import Count, FeatureText, Position, Share, Span
from saekit.routes.circuit_parts import Prediction


@dataclass
class RandomWrites:
    """The null: as many random features of the same dictionaries, changed by as much."""

    n: Count
    """how many random writes were made"""
    median_target: float | None
    """median of the target's value under them"""
    share_below: Share | None
    """share of them that move the target less far than the intervention did"""
    same_top: Share | None
    """share of them that leave the most probable token the same"""


@dataclass
class Outcome:
    """One intervention, or several made together."""

    change: str
    """as it was asked for, such as large@5=0 or large@5->hot; several are joined by " and " """
    positions: list[Position]
    layers: Span
    """first and last layer at which anything was written"""
    features: list[FeatureText]
    """the features held"""
    target: str
    """what people read; the circuit's target"""
    target_before: float
    """its pre-activation, or logit minus mean logit"""
    target_after: float
    before: list[Prediction]
    """most probable next tokens"""
    after: list[Prediction]
    before_token: Share
    """probability afterwards of what was the most probable token"""
    random: RandomWrites
    ceiling: list[Prediction] | None
    """of swaps: the next tokens when the whole stream is replaced at the same places"""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)
