"""What a question to the index is answered with.  Plain data: no torch, no file handles."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from saekit.coordinates import feature_name
from saekit.notebook import Pictured


@dataclass(frozen=True)
class TokenHit:
    """One feature that fires on a token.

    Attributes:
        token, token_id: the token; its text includes a leading space if it has one.
        count: positions with this token at which the feature is active.
        token_count: positions with this token in the indexed text.
        mean, max: of the activation on this token, over the positions where it is active.
        lift: P(active | token) / P(active).
        purity: share of the feature's total activation that falls on this token.
        peak: max / the largest activation anywhere; 1: it fires nowhere more strongly.
        density: P(active), over all positions.
    """

    layer: int
    feature: int
    token: str
    token_id: int
    count: int
    token_count: int
    mean: float
    max: float
    lift: float
    purity: float
    peak: float
    density: float

    @property
    def name(self) -> str:
        """The feature as `8/12`."""
        return feature_name(self.layer, self.feature)

    @property
    def share(self) -> float:
        """P(active | token)."""
        return self.count / self.token_count

    @property
    def match(self) -> float:
        """purity * share * peak, in [0, 1]: the default order of a search."""
        return self.purity * self.share * self.peak


@dataclass(frozen=True)
class Example:
    """A place in the text where a feature is active, with its surroundings.

    Attributes:
        tokens: the texts of up to `window` tokens of the same document.
        token_ids: their ids.
        activations: the feature's activation at each of them.
        position: where in `tokens` the example is (an index from 0).
        value: the activation there.
        context: row of the indexed text, counted in the index; with `place` it tells examples
            apart.
        place: tensor index of the example in that row.
    """

    tokens: list[str]
    token_ids: list[int]
    activations: list[float]
    position: int
    value: float
    context: int
    place: int

    @property
    def token_id(self) -> int:
        """The token the example is of."""
        return self.token_ids[self.position]


@dataclass(frozen=True)
class TokenStatistic:
    """How a feature responds to one current token (see `TokenHit`)."""

    token: str
    token_id: int
    count: int
    mean: float
    max: float


@dataclass(frozen=True)
class OutputToken:
    """A token that a feature's decoder direction promotes or suppresses.

    Attributes:
        value: logit per unit of activation through the final LayerNorm's weights, minus its mean
            over the vocabulary; the LayerNorm's division by the norm is left out.
    """

    token: str
    token_id: int
    value: float


@dataclass(frozen=True)
class WordShare:
    """A word, or a class of tokens, and how much of a feature's total activation goes with it.

    Attributes:
        text: without spaces around it, in lower case.
        share: of the activation.
        lift: share / the word's share of the text.
    """

    text: str
    share: float
    lift: float


@dataclass(frozen=True)
class Relative:
    """A feature that is active together with another one.

    Attributes:
        correlation: Pearson, of the activations over positions, zeros included.
    """

    layer: int
    feature: int
    correlation: float

    @property
    def name(self) -> str:
        """The feature as `8/12`."""
        return feature_name(self.layer, self.feature)


@dataclass(frozen=True)
class NameScores:
    """How well a name tells, on text it was not made from, where the feature is active.

    See `saekit.features.names.scoring` for how each is measured.  None: not measured.

    Attributes:
        detection: balanced accuracy of "the feature is active in this passage".
        fuzzing: balanced accuracy of "the feature is active on these tokens".
        precision, recall, f1: of "is active at this position", over all positions.
        auroc: of the activation as a sign of the name's predicate.
        null_detection, null_fuzzing: the same for the name of another feature, about as frequent.
        chosen_detection: detection on the text on which names are chosen.
        rise: for output names, by how much the logit of the named tokens rises when the feature is
            set to its 90th percentile.
        rise_rank: share of 100 random features of the layer that raise it less.
    """

    detection: float | None = None
    fuzzing: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    auroc: float | None = None
    null_detection: float | None = None
    null_fuzzing: float | None = None
    chosen_detection: float | None = None
    rise: float | None = None
    rise_rank: float | None = None


@dataclass(frozen=True)
class FeatureName:
    """What a feature was called, why, and how well that holds.

    Attributes:
        text: the name; `feature 8/12` where no rule holds.
        kind: "input" (the token read), "class" (a class of tokens read), "output" (the next
            token), "context" (words before), "text" (free text of a labeller), "" without a name.
        rule: what held, in words, with its figures.
        evidence: the figures of the rule.
    """

    text: str
    kind: str
    rule: str = ""
    evidence: dict[str, float] = field(default_factory=dict)
    scores: NameScores = field(default_factory=NameScores)

    @property
    def shown(self) -> str:
        """Name and kind: `small (output)`."""
        return f"{self.text} ({self.kind})" if self.kind else self.text


@dataclass(frozen=True)
class FeatureRecord(Pictured):
    """Everything the index knows about one feature.

    Attributes:
        count: positions where it is active; density: their share of all positions.
        mean: activation where active; max: the largest.
        histogram: active positions per bin; edges: of its bins, one more, from 0.
        examples: the strongest ones, from distinct contexts, strongest first.
        samples: one position drawn at random from each of several quantile ranges of the
            activation, from distinct contexts, strongest first.
        top_tokens: the current tokens with most activation in total.
        output_top, output_bottom: tokens its decoder direction promotes and suppresses most.
        label: a name given to it by somebody, if any.
        word: the word (see names/lexicons.py) with most of its activation, None if dead.
        before, after: the same for the words before and after the positions where it is active.
        token_class: the class of tokens it is most about.
        entropy: of its activation over words, over the log of their number; 0: one word.
        same_layer, next_layer: the features it correlates with most.
        naming: its name with scores, if names were made (`saekit names`).
    """

    layer: int
    feature: int
    count: int
    density: float
    mean: float
    max: float
    histogram: Int[np.ndarray, " bin"]
    edges: Float[np.ndarray, " bin_plus_one"]
    examples: list[Example] = field(default_factory=list)
    samples: list[Example] = field(default_factory=list)
    top_tokens: list[TokenStatistic] = field(default_factory=list)
    output_top: list[OutputToken] = field(default_factory=list)
    output_bottom: list[OutputToken] = field(default_factory=list)
    label: str | None = None
    word: WordShare | None = None
    before: list[WordShare] = field(default_factory=list)
    after: list[WordShare] = field(default_factory=list)
    token_class: WordShare | None = None
    entropy: float = 0.0
    same_layer: list[Relative] = field(default_factory=list)
    next_layer: list[Relative] = field(default_factory=list)
    naming: FeatureName | None = None

    @property
    def name(self) -> str:
        """The feature as `8/12`."""
        return feature_name(self.layer, self.feature)

    def quantile(self, value: float) -> float:
        """Share of the active positions with a smaller activation, read from the histogram."""
        inside = np.clip((value - self.edges[:-1]) / np.diff(self.edges), 0, 1)
        return float((inside * self.histogram).sum() / max(1, self.count))


@dataclass(frozen=True)
class TextHit:
    """A feature that is active at a position of a text.

    Attributes:
        position: 1-based, BOS not counted.
        activation: the feature's value there.
        density, share_of_max: P(active) in the indexed text and activation / largest seen there;
            None without an index.
        label: name and kind of the feature, if it has a name.
    """

    layer: int
    feature: int
    position: int
    token: str
    activation: float
    density: float | None = None
    share_of_max: float | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        """The feature as `8/12`."""
        return feature_name(self.layer, self.feature)


@dataclass(frozen=True)
class TextFeatures:
    """The features of a text.

    Attributes:
        tokens: texts of positions 1, 2, ...
        hits: by position, then layer, strongest first.
    """

    text: str
    tokens: list[str]
    layers: list[int]
    hits: list[TextHit]

    def at(self, position: int, layer: int) -> list[TextHit]:
        """The features of one place, strongest first."""
        return [h for h in self.hits if h.position == position and h.layer == layer]
