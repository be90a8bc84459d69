"""The Circuit: tokens, concepts, edges and numbers of one prompt, and its JSON.

Screen, JSON, SVG and command line all show this object.  The format is described field by field
in `circuit.schema.json` beside this module; positions are 1-based, BOS not counted.  Numbers are
rounded once, when the circuit is made, and turned into words once, by `percent` and `number`, so
that every place shows the same figure.  Importing this module costs no torch.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, overload

from saekit.errors import FormatError
from saekit.files import read_json, write_text
from saekit.wording import percent

SCHEMA_VERSION = 1


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """Six significant digits: what float32 carries and a JSON reader can bear; no negative zero."""
    return None if value is None else float(f"{value:.6g}") + 0.0


@dataclass
class CircuitTarget:
    """What is explained.  `feature` is `12/345`, or None where it is a token's centred logit."""

    concept: str
    feature: str | None
    layer: int
    position: int
    preactivation: float
    kind: str = "feature"  # "concept", "feature" or "token": how it was named
    token: str | None = None  # the output token, where the target is its logit


@dataclass
class CircuitHead:
    """One edge key -> query.  `causal` is the target's drop when this edge alone is removed."""

    head: str
    layer: int
    index: int
    attention: float
    contribution: float
    share: float | None
    causal: float
    share_of_key: float | None = None


@dataclass
class CircuitSet:
    """A head set on the edge key -> query: shares, and drops of the target when it is removed."""

    heads: list[str]
    share_positive: float | None
    share_signed: float | None
    share_causal: float | None
    joint_drop: float
    sum_of_single_drops: float
    share_of_key: float | None = None
    share_of_preactivation: float | None = None
    share_causal_of_key: float | None = None
    prediction_after: float | None = None  # probability of the top token without the set
    shapley: list[float] | None = None  # of the drops, in the order of heads; None beyond 8


@dataclass
class CircuitConcept:
    """A concept active at a position over the layers span[0] .. span[1]."""

    name: str
    kind: str
    position: int
    span: list[int]
    features: list[str]
    evidence: Any = None


@dataclass
class Prediction:
    """A likely next token at the query."""

    token: str
    probability: float


@dataclass
class Arrival:
    """All edges from one position into the query.  Position 0 is BOS; it has no share."""

    position: int
    positive: float
    negative: float
    net: float
    share: float | None


@dataclass
class Source:
    """A feature at the key whose content the set's heads carry to the target."""

    feature: str
    contribution: float
    share: float | None
    name: str | None = None


@dataclass
class Component:
    """One row of the completeness table."""

    name: str
    value: float


@dataclass
class RandomSets:
    """Joint drops of random head sets on the same edge: what `set.joint_drop` is compared with."""

    n: int
    size: int
    median_drop: float | None
    p95_drop: float | None
    share_below: float | None  # share of the random sets that drop less than the set


@dataclass
class Ablation:
    """The set removed in one way (ablation/replacements.py); `random_median` is of random sets."""

    name: str
    direct: bool  # along the direct path only, all later components as in the clean run
    joint_drop: float
    sum_of_single_drops: float
    redundancy: float  # joint_drop - sum_of_single_drops
    share_causal: float | None
    share_causal_of_key: float | None
    random_median: float | None
    logit_drop: float  # of the most probable next token, minus the mean logit
    prediction_after: float


@dataclass
class MatchedPair:
    """A feature at the query and one at the key that raise (or lower) the contrast by `value`."""

    query: str
    key: str
    value: float
    query_name: str | None = None
    key_name: str | None = None


@dataclass
class KeyFeature:
    """A feature at the key, with what all that the query asks for makes of it in the contrast."""

    feature: str
    value: float
    name: str | None = None


@dataclass
class Match:
    """Why a head attends to the key: its score there, against the other positions `against`."""

    head: str
    score: float
    contrast: float  # score minus the mean score of `against`
    against: list[int]
    margin: float | None  # score + gate bias in gated attention: open above 0
    in_features: float  # of the contrast, by pairs of two features
    with_error: float  # of the contrast, by pairs with what a dictionary misses
    key_features: list[KeyFeature]
    pairs: list[MatchedPair]

    def __post_init__(self) -> None:
        self.key_features = [
            KeyFeature(**row) if isinstance(row, dict) else row for row in self.key_features
        ]
        self.pairs = [MatchedPair(**p) if isinstance(p, dict) else p for p in self.pairs]


@dataclass
class Circuit:
    """See `circuit.schema.json`."""

    schema_version: int = field(default=SCHEMA_VERSION, init=False)
    model: str
    fingerprint: str
    dictionaries: str
    prompt: str
    tokens: list[str]
    prepend_bos: bool
    target: CircuitTarget
    key: int
    query: int
    heads: list[CircuitHead]
    set: CircuitSet
    n80: int
    completeness_error: float
    error_node_share: float | None
    concepts: list[CircuitConcept]
    prediction: list[Prediction]
    notes: list[str]
    shown: CircuitSet
    n80_all_keys: int
    random_sets: RandomSets
    all_edges_drop: float
    key_edges_drop: float
    arrivals: list[Arrival]
    sources: list[Source]
    components: list[Component]
    patterns: list[list[list[list[float]]]] | None = None
    ablations: list[Ablation] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: dict[str, Any], origin: str = "The circuit") -> "Circuit":
        """Inverse of `to_dict`.

        Raises:
            FormatError: another schema version, or a key is missing or unknown.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise FormatError(
                f"{origin} has schema_version {version}; this saekit reads {SCHEMA_VERSION}."
            )
        values = {name: value for name, value in document.items() if name != "schema_version"}
        try:
            for name, kind in _SINGLE.items():
                values[name] = kind(**values[name])
            for name, kind in _LISTS.items():
                if name in values or name not in _ADDED:
                    values[name] = [kind(**row) for row in values[name]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise FormatError(f"{origin} is not a complete saekit circuit: {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write the JSON, one line per key (attention maps would fill thousands of lines)."""
        lines = [
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for name, value in self.to_dict().items()
        ]
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read what `save` wrote."""
        return cls.from_dict(read_json(path), str(path))

    def token(self, position: int) -> str:
        """The text of the token at a 1-based position."""
        return self.tokens[position - 1]

    def sentence(self) -> str:
        """The one sentence of the circuit, with its number and what the number means."""
        n = len(self.set.heads)
        return (
            f'"{self.target.concept}" (layer {self.target.layer}) at position {self.query}: '
            f"{percent(self.set.share_positive)} of what arrives there comes through "
            f"{n} head{'s' * (n != 1)} from position {self.key} ({self.token(self.key).strip()})"
        )


_SINGLE = {
    "target": CircuitTarget, "set": CircuitSet, "shown": CircuitSet, "random_sets": RandomSets,
}  # fmt: skip
_LISTS = {
    "heads": CircuitHead, "concepts": CircuitConcept, "prediction": Prediction,
    "arrivals": Arrival, "sources": Source, "components": Component, "ablations": Ablation,
    "matches": Match,
}  # fmt: skip
_ADDED = ("ablations", "matches")  # files of version 1 may lack them


def schema() -> dict[str, Any]:
    """The published JSON schema."""
    return json.loads(files("saekit.routes").joinpath("circuit.schema.json").read_text("utf-8"))


def required_keys() -> list[str]:
    """Names of all keys a circuit document has."""
    return [item.name for item in fields(Circuit)]
