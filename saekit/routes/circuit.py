"""The Circuit: tokens, concepts, edges and numbers of one prompt, and its JSON.

Screen, JSON, SVG and command line all show this object.  Numbers are rounded once, when the circuit
is made, and turned into words once, by `percent` and `number`, so that every place shows the same
figure.  Importing this module costs no torch.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, overload

from pydantic import ConfigDict, Field

from saekit.documents import DOCUMENT, Count, Position, Share, one_line_per_key, read_record
from saekit.errors import FormatError
from saekit.files import read_json, write_text
from saekit.notebook import Pictured
from saekit.routes.circuit_parts import (
    Ablation,
    Arrival,
    CircuitConcept,
    CircuitHead,
    CircuitSet,
    CircuitTarget,
    Component,
    Match,
    Prediction,
    RandomSets,
    Source,
)
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
class Circuit(Pictured):
    """Tokens, concepts, edges and numbers of one prompt.

    Positions are 1-based and do not count the beginning-of-sequence token.  H is the last-arrival
    contribution of an edge to the target.  Readers ignore keys they do not know: later versions may
    add some.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    schema_version: Literal[1] = field(default=SCHEMA_VERSION, init=False)
    model: str
    fingerprint: str
    """SHA-256 of the model's weights"""
    dictionaries: str
    """name or path of the dictionary set"""
    prompt: str
    tokens: list[str]
    """token texts of positions 1..n"""
    prepend_bos: bool
    target: CircuitTarget
    key: Position
    query: Position
    heads: list[CircuitHead]
    """the strongest heads of the edge key -> query, largest contribution first"""
    set: CircuitSet
    """the smallest head set that reaches 80% of the positive contributions of this key"""
    n80: Count
    """size of that set"""
    completeness_error: Annotated[float, Field(ge=0)]
    """relative error of the component table"""
    error_node_share: Share | None
    """sum over the set of |the part of H read from the dictionary's error at the key| / sum of
    |H|; 1 where it is more"""
    concepts: list[CircuitConcept]
    prediction: list[Prediction]
    """next token at the query"""
    notes: list[str]
    shown: CircuitSet
    """the same numbers for the heads listed in `heads`"""
    n80_all_keys: Count
    """smallest number of heads that reach 80% of the positive contributions over all keys"""
    random_sets: RandomSets
    """joint drops of random head sets of the same size and layers on the same edge"""
    all_edges_drop: float
    """drop when all edges into the query from other positions (BOS left out) are removed"""
    key_edges_drop: float
    """drop when all heads' edges key -> query are removed"""
    arrivals: list[Arrival]
    """what arrives from each position; position 0 is BOS and has no share"""
    sources: list[Source]
    """features at the key that the set's heads carry to the target"""
    components: list[Component]
    """completeness table: sums to the pre-activation"""
    patterns: list[list[list[list[Share]]]] | None = None
    """attention [layer][head][query][key] over positions 1..n, BOS left out; null beyond 64
    tokens"""
    ablations: list[Ablation] = field(default_factory=list)
    """the set's edges removed in every way; the first row is the one of set.joint_drop.  Added
    later: older documents lack it"""
    matches: list[Match] = field(default_factory=list)
    """why the strongest heads of the set attend to the key (QK).  Added later: older documents
    lack it"""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Any, origin: str = "The circuit") -> "Circuit":
        """Inverse of `to_dict`.

        Raises:
            FormatError: another schema version, or a value is missing or of another form.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise FormatError(
                f"{origin} has schema_version {version}; this saekit reads {SCHEMA_VERSION}."
            )
        circuit = read_record(cls, document, origin, "a complete saekit circuit")
        circuit._check_places(origin)
        return circuit

    def _check_places(self, origin: str) -> None:
        """Refuse positions and maps that are not those of the tokens."""
        n = len(self.tokens)
        places = {"key": self.key, "query": self.query, "target.position": self.target.position}
        for name, position in places.items():
            if position > n:
                raise FormatError(
                    f"{origin} is not a complete saekit circuit: {name} is {position}, and there "
                    f"are {n} tokens."
                )
        maps = [rows for heads in self.patterns or [] for rows in heads]
        if any(len(rows) != n or any(len(row) != n for row in rows) for rows in maps):
            raise FormatError(
                f"{origin} is not a complete saekit circuit: its attention maps (patterns) are not "
                f"of {n} x {n} tokens."
            )

    def to_json(self) -> str:
        """The JSON text, one line per key (attention maps would fill thousands of lines)."""
        return one_line_per_key(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write the JSON text."""
        write_text(path, self.to_json())

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
