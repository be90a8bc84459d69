"""The catalogue: named concepts with their layers, features and scores, and `concepts.json`.

Importing this module costs no torch.  Scores are measured on the half of the text that was not
used to choose features; `baseline_f1` is what the same search reaches with displaced labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from saekit.concepts.automatic import AutomaticConcept
from saekit.coordinates import feature_name, parse_feature
from saekit.documents import DOCUMENT, Count, FeatureText, read_record
from saekit.errors import FormatError, InputError
from saekit.files import read_json, write_json
from saekit.version import __version__

SCHEMA_VERSION = 1


@dataclass
class LayerScore:
    """How well the best small feature set of one layer detects a concept.

    Attributes:
        layer: residual layer.
        found: f1 >= 0.5, auroc >= 0.9, f1 above `baseline_f1`, enough positives.
        features: indices of one to four features (eight for output concepts); the concept is said
            to be there when their `strength` reaches `threshold`.
        f1, precision, recall: of that rule, on the reporting half.
        auroc: of the strength; None without positives.
        baseline_f1: the largest f1 of the same search with circularly shifted labels.
        positives: positions of the reporting half at which the concept holds.
        threshold: of the strength, whose usual maximum is 1; chosen on the selecting half.
        p99: 99th percentile of each feature's positive activations on the selecting half.
        weights: for output concepts, the direct effect of each feature on the tokens' logits,
            over the deviation of the stream, scaled so that their sum's usual maximum is 1; empty
            for other kinds.
    """

    layer: int
    found: bool
    features: list[Count]
    f1: float
    precision: float
    recall: float
    auroc: float | None
    baseline_f1: float
    positives: int
    threshold: float = 0.05
    p99: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def strengths(self, activations: Sequence[float], deviation: float) -> list[float]:
        """What each feature brings to the strength: weighted, or as a share of its own p99.

        Args:
            activations: of the features, at one position.
            deviation: of the stream there (see `saekit.concepts.outputs.deviations`).
        """
        if self.weights:
            return [w * a / deviation for w, a in zip(self.weights, activations, strict=True)]
        usual = self.p99 or [1.0] * len(activations)
        pairs = zip(activations, usual, strict=True)
        return [activation / p99 if p99 > 0 else 0.0 for activation, p99 in pairs]

    def strength(self, activations: Sequence[float], deviation: float) -> float:
        """Weighted sum of the activations for output concepts, else the largest share of p99."""
        parts = self.strengths(activations, deviation)
        return sum(parts) if self.weights else max(parts, default=0.0)


@dataclass
class ClampTest:
    """What clamping single features of an output concept does (see `saekit.concepts.outputs`).

    Attributes:
        layer: of the features.
        features: of the concept.
        rises: of the words' logit, per feature.
        above: per feature, how many random features raise it less.
        random: how many random features there were.
        random_median, random_max: of their rises.
    """

    layer: int
    features: list[int]
    rises: list[float]
    above: list[int]
    random: int
    random_median: float
    random_max: float


@dataclass
class Chain:
    """One feature over layers: units linked from layer to layer (saekit.concepts.matching).

    Attributes:
        features: its members, written `8/1234`, at ascending layers.
        p99: 99th percentile of each member's positive activations.
    """

    features: Annotated[list[FeatureText], Field(min_length=1)]
    p99: list[float]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(layer, feature) of every member."""
        return [parse_feature(name) for name in self.features]

    @property
    def span(self) -> tuple[int, int]:
        """Its dictionary span: first and last layer."""
        return self.places[0][0], self.places[-1][0]


@dataclass
class Concept:
    """A named concept.

    Attributes:
        kind: "input", "class", "output" or "contrast".
        tokens: texts of its tokens in this model's vocabulary.
        span: first and last layer of its longest run of found layers; None if found nowhere.
        layers: one score per layer of the dictionary set.
        chain: of all chains of features matched between layers, the one with most of the
            concept's features, written `8/1234`; only those features of it are listed.
        chains: all chains with a feature of the concept, whole; shown as one, kept apart.
        clamped: for output concepts, what clamping their features does at layers where found.
    """

    name: str
    kind: str
    tokens: list[str]
    span: tuple[int, int] | None
    layers: Annotated[list[LayerScore], Field(min_length=1)]
    chain: list[str] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    clamped: list[ClampTest] = field(default_factory=list)

    @property
    def found_layers(self) -> list[int]:
        """Layers at which it was found, also outside the span."""
        return [score.layer for score in self.layers if score.found]

    @property
    def best(self) -> LayerScore:
        """The layer with the largest f1, a found one if there is any."""
        return max(self.layers, key=lambda score: (score.found, score.f1))

    def at(self, layer: int) -> LayerScore | None:
        """The score of a layer, None where there is no dictionary."""
        return next((score for score in self.layers if score.layer == layer), None)

    def feature_names(self) -> list[str]:
        """Its features at all layers where it was found."""
        return [
            feature_name(score.layer, feature)
            for score in self.layers
            if score.found
            for feature in score.features
        ]


@dataclass
class Links:
    """How features were matched between layers (`saekit.concepts.matching`): `Catalogue.links`."""

    tau_cosine: float
    tau_correlation: float
    trials: Count
    null_links: dict[str, Count]
    fdr: float
    target_fdr: float
    links: Count
    chain_lengths: dict[str, Count]
    null_chains: dict[str, dict[str, Count]] = field(default_factory=dict)


@dataclass
class Catalogue:
    """All concepts of a dictionary set.

    Attributes:
        model, fingerprint: of the model.
        dictionaries: name of the dictionary set's folder.
        text: what text was read, in words.
        tokens: positions read, BOS not counted.
        links: how features were matched between layers: thresholds, links and nulls.
        automatic: concepts that nobody asked for, if the features have names.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    model: str
    fingerprint: str
    dictionaries: str
    text: str
    tokens: int
    concepts: list[Concept]
    links: dict[str, Any] = field(default_factory=dict)
    automatic: list[AutomaticConcept] = field(default_factory=list)

    def concept(self, name: str) -> Concept:
        """The concept of a name.

        Raises:
            InputError: there is none; the known names are listed.
        """
        for concept in self.concepts:
            if concept.name == name:
                return concept
        known = ", ".join(concept.name for concept in self.concepts)
        raise InputError(f'There is no concept "{name}"; known are {known}.')

    def only(self, name: str) -> "Catalogue":
        """The same catalogue with one concept."""
        return replace(self, concepts=[self.concept(name)])

    def name_of(self, layer: int, feature: int) -> str | None:
        """The concept that a feature belongs to at a layer where it was found."""
        for concept in self.concepts:
            score = concept.at(layer)
            if score is not None and score.found and feature in score.features:
                return concept.name
        return None

    def to_dict(self) -> dict[str, Any]:
        """The content of `concepts.json`."""
        document = {"schema_version": SCHEMA_VERSION, "saekit": __version__, **asdict(self)}
        for concept in document["concepts"]:
            concept["span"] = list(concept["span"]) if concept["span"] else None
        for concept in document["automatic"]:
            concept["span"] = list(concept["span"])
        return document

    @classmethod
    def from_dict(cls, document: dict[str, Any], where: str = "The catalogue") -> "Catalogue":
        """Inverse of `to_dict`.

        Raises:
            FormatError: a value is missing or of another form.
        """
        catalogue = read_record(cls, document, where, "a list of concepts")
        if catalogue.links:
            read_record(Links, catalogue.links, where, "a list of concepts with links")
        for concept in catalogue.concepts:
            for score in concept.layers:
                sizes = {len(score.features), len(score.p99) or len(score.features),
                         len(score.weights) or len(score.features)}  # fmt: skip
                if len(sizes) > 1:
                    raise FormatError(
                        f"{where} is not a list of concepts: {concept.name} at layer {score.layer} "
                        "has lists of different lengths."
                    )
        return catalogue

    def save(self, path: str | Path) -> None:
        """Write `concepts.json` atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Catalogue":
        """Read `concepts.json`.

        Raises:
            FormatError: missing, truncated, of another version, or something else.
        """
        return cls.from_dict(read_json(path, SCHEMA_VERSION), str(path))
