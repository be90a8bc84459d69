"""The fields of heads.json, each with what it means.  No torch.

The text below a field is its description in the published schema (`saekit.heads.document.schema`).
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from saekit.documents import DOCUMENT, Count, HeadText, Share

SCHEMA_VERSION = 1
Rows = Annotated[list[Annotated[list[Share], Field(min_length=1)]], Field(min_length=1)]


@dataclass
class RelationPart:
    """What the pairs stand in."""

    name: str
    category: str
    source: str
    """where the pairs come from"""


@dataclass
class PairCounts:
    """How many pairs there are."""

    listed: Count
    kept: Count
    """pairs whose two words are single tokens with a leading space"""
    distinct_targets: Count


@dataclass
class NullPart:
    """Scores with targets shuffled among the pairs."""

    quantile: Share
    permutations: Count
    seed: int
    scores: Rows
    """this quantile of the score, per head"""
    suppression: Rows


@dataclass
class Baselines:
    """What scores are compared with."""

    constant_head: Share
    """score of a head that always writes the k most frequent targets"""
    chance: Share
    """k / vocabulary: score of a head that writes nothing"""
    null: NullPart


@dataclass
class ClassPart:
    """A class of heads that is drawn over the atlas."""

    name: str
    panel: Literal["scores", "suppression"]
    mark: Literal["x", "dot"]
    heads: list[HeadText]


@dataclass
class ClassesPart:
    """The classes of one model."""

    title: str
    """of the legend"""
    measured: bool
    """measured on this model (true) or published (false)"""
    source: str
    """citation, or how they were measured"""
    drawn: list[ClassPart]
    others: dict[str, list[HeadText]]
    evidence: list[dict[str, Any]]
    """the figures behind each measured head"""
    baseline: dict[str, Any]


@dataclass
class DynamicPart:
    """What heads write on carrier prompts."""

    carriers: list[str]
    """prompts in which X is the source"""
    pairs: Count
    correlation: dict[str, float | None]
    """Pearson r with the static scores over all heads"""
    forced: Rows
    """all attention of the last position on the source"""
    natural: Rows
    forced_suppression: Rows
    natural_suppression: Rows


@dataclass
class CausalRow:
    """The n highest heads removed, beside random heads of the same layers."""

    n: Count
    heads: list[HeadText]
    accuracy: Share
    random_mean: Share
    random_range: Annotated[list[Share], Field(min_length=2, max_length=2)]
    random_sets: Count


@dataclass
class CausalCheck:
    """Accuracy on prompts with the highest heads removed, and with random heads."""

    what: str
    """the prompts, in words"""
    prompts: Count
    intact: Share
    seed: int
    rows: list[CausalRow]


@dataclass
class SalientRow:
    """One input of a head and what it raises (or lowers) most."""

    input: str
    outputs: list[str]
    strength: float
    kind: str
    """how the first output is related to the input"""


@dataclass
class SalientHead:
    """The strongest operations of a head, by kind and then by strength."""

    head: HeadText
    side: Literal["raises", "lowers"]
    kinds: dict[str, Share]
    """share of the rows"""
    rows: list[SalientRow]


@dataclass
class PerPair:
    """Which pairs each head maps; heads without any are left out."""

    pairs: list[tuple[str, str]]
    mapped: dict[HeadText, list[Count]]
    """head -> places in pairs whose target it raises"""
    suppressed: dict[HeadText, list[Count]]


@dataclass
class AtlasDocument:
    """Scores of every attention head of one model for one relation.

    Grids are lists of layers of lists of heads.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    schema_version: Literal[1] = field(default=SCHEMA_VERSION, init=False)
    saekit: str
    """version of saekit that wrote the file"""
    model: str
    """id or folder as the user named it"""
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 over the model's weights"""
    n_layers: Annotated[int, Field(ge=1)]
    n_heads: Annotated[int, Field(ge=1)]
    relation: RelationPart
    k: Annotated[int, Field(ge=1)]
    """a target counts when it is among the k tokens that a head raises (lowers) most"""
    pairs: PairCounts
    scores: Rows
    """share of the kept pairs whose target is among the k largest logits of the head's OV
    circuit"""
    suppression: Rows
    """the same for the k smallest"""
    baselines: Baselines
    silent_heads: list[HeadText]
    """heads whose OV circuit is zero"""
    classes: ClassesPart | None
    dynamic: DynamicPart | None
    causal: CausalCheck | None
    salient: list[SalientHead] | None
    """the strongest operations of some heads"""
    per_pair: PerPair | None
    notes: list[str]
