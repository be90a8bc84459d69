"""What a question to the index is answered with.  Plain data: no torch, no file handles."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from saekit.coordinates import feature_name


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
class FeatureRecord:
    """Everything the index knows about one feature.

    Attributes:
        count: positions where it is active; density: their share of all positions.
        mean: activation where active; max: the largest.
        histogram: active positions per bin; edges: of its bins, one more, from 0.
        examples: the strongest ones, from distinct contexts, strongest first.
        samples: active positions drawn at random, from distinct contexts, strongest first.
        top_tokens: the current tokens with most activation in total.
        output_top, output_bottom: tokens its decoder direction promotes and suppresses most.
        label: a name given to it by somebody, if any.
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
    """

    layer: int
    feature: int
    position: int
    token: str
    activation: float
    density: float | None = None
    share_of_max: float | None = None

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
