"""The parts of a circuit: heads, sets of heads, concepts, arrivals, ablations, matches.

The text below a field is its description in the published schema (`saekit.routes.trace_document`).
H is the last-arrival contribution of an edge to the target.  Positions are 1-based and do not count
BOS.  Importing this module costs no torch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from saekit.documents import Count, FeatureText, HeadText, Layer, Position, Share, Span

Kind = Literal["concept", "feature", "token"]
Way = Literal["zero", "renormalise", "mean", "resample", "resample full"]


@dataclass
class CircuitTarget:
    """What is explained."""

    concept: str
    """what people read"""
    feature: FeatureText | None
    """null where the target is a token's logit"""
    layer: Layer
    position: Position
    preactivation: float
    kind: Kind = "feature"
    """how it was named"""
    token: str | None = None
    """the output token, where the target is its logit minus the mean logit"""


@dataclass
class CircuitHead:
    """One edge key -> query."""

    head: HeadText
    layer: Layer
    index: Count
    attention: Share
    contribution: float
    """H(layer, head, key -> query)"""
    share: Share | None
    """of all positive H into the query"""
    causal: float
    """drop of the target when this edge alone is removed"""
    share_of_key: Share | None = None


@dataclass
class CircuitSet:
    """Heads on the edge key -> query: shares, and drops of the target when they are removed."""

    heads: list[HeadText]
    share_positive: Share | None
    """sum over the set of max(H, 0) at key -> query, of the same sum over all heads and all keys
    before the query (BOS left out); null: refused, the denominator is below a tenth of the
    target"""
    share_signed: float | None
    """the same with signed H; may leave [0, 1]"""
    share_causal: Share | None
    """joint_drop / all_edges_drop; null: refused, all_edges_drop is next to nothing, or joint_drop
    is negative or larger"""
    joint_drop: float
    """how much the target falls when the set's edges key -> query are removed together, the rest
    live"""
    sum_of_single_drops: float
    """the same, one edge at a time, added up; smaller than joint_drop: the heads are redundant"""
    share_of_key: Share | None = None
    """positive share among the edges from this key only"""
    share_of_preactivation: float | None = None
    """sum of H over the set / (pre-activation - constant)"""
    share_causal_of_key: Share | None = None
    """joint_drop / key_edges_drop; null as for share_causal"""
    prediction_after: Share | None = None
    """probability of the top predicted token without the set's edges"""
    shapley: Annotated[list[float], Field(max_length=8)] | None = None
    """exact Shapley values of the drops, in the order of heads; they sum to joint_drop; null
    beyond 8 heads"""


@dataclass
class CircuitConcept:
    """A concept active at a position over the layers span[0] .. span[1]."""

    name: str
    kind: str
    position: Position
    span: Span
    features: list[FeatureText]
    evidence: Any = None


@dataclass
class Prediction:
    """A likely next token at the query."""

    token: str
    probability: Share


@dataclass
class Arrival:
    """All edges from one position into the query.  Position 0 is BOS; it has no share."""

    position: Count
    positive: Annotated[float, Field(ge=0)]
    negative: Annotated[float, Field(le=0)]
    net: float
    share: Share | None


@dataclass
class Source:
    """A feature at the key whose content the set's heads carry to the target."""

    feature: FeatureText
    contribution: float
    share: float | None
    """of the sum of H over the set"""
    name: str | None = None


@dataclass
class Component:
    """One row of the completeness table."""

    name: str
    value: float


@dataclass
class RandomSets:
    """Joint drops of random head sets on the same edge: what `set.joint_drop` is compared with."""

    n: Count
    size: Count
    median_drop: float | None
    p95_drop: float | None
    share_below: Share | None
    """share of the random sets that drop less than the set"""


@dataclass
class Ablation:
    """The set's edges removed in one way."""

    name: Way
    """what the set's edges carry instead: nothing; nothing, the row's other weights growing to its
    old sum; the head's corpus mean value; the value in a counterfactual prompt; its value and
    attention weight"""
    direct: bool
    """along the direct path only: all later components write what they wrote"""
    joint_drop: float
    sum_of_single_drops: float
    redundancy: float
    """joint_drop - sum_of_single_drops"""
    share_causal: Share | None
    share_causal_of_key: Share | None
    random_median: float | None
    """median joint drop of random sets of the same form, removed in the same way"""
    logit_drop: float
    """of the most probable next token's logit minus the mean logit"""
    prediction_after: Share


@dataclass
class MatchedPair:
    """A feature at the query and one at the key that raise (or lower) the contrast by `value`."""

    query: FeatureText
    key: FeatureText
    value: float
    query_name: str | None = None
    """its concept, or its name if that is reliable (with " ?" at the end if it may be)"""
    key_name: str | None = None


@dataclass
class KeyFeature:
    """A feature at the key, with what all that the query asks for makes of it in the contrast."""

    feature: FeatureText
    value: float
    name: str | None = None


@dataclass
class Match:
    """Why a head attends to the key: its score there, against other positions."""

    head: HeadText
    score: float
    """scaled attention score of key -> query before the softmax"""
    contrast: float
    """score minus the mean score of the positions `against`; what is equal for all keys does
    nothing in a softmax"""
    against: list[Position]
    margin: float | None
    """score + gate bias in gated attention, open above 0; null in dense attention"""
    in_features: float
    """part of the contrast by pairs of two features"""
    with_error: float
    """part of the contrast by pairs with what a dictionary misses"""
    key_features: list[KeyFeature]
    """the features at the key that matter most"""
    pairs: list[MatchedPair]
    """the pairs of features that matter most, largest magnitude first"""
