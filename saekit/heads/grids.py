"""The numbers of an atlas: grids of one number per head, and what goes with them.  No torch."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from saekit.coordinates import head_name
from saekit.errors import InputError
from saekit.heads.classes import HeadClasses
from saekit.heads.document_parts import CausalCheck, SalientHead

Grid = Float[np.ndarray, "n_layers n_heads"]
DYNAMIC = ("forced", "natural", "forced_suppression", "natural_suppression")


@dataclass
class Dynamic:
    """What heads write on carrier prompts; scores as the static ones (`prompts.dynamic_scores`).

    Attributes:
        carriers: the prompts, X stands for the source.
        forced: all attention of the last position on X.
        natural: attention as it is.
        correlation: Pearson r with the static scores over all heads: "forced", "natural",
            "forced_suppression", "natural_suppression"; None where one side does not vary.
    """

    carriers: list[str]
    n_pairs: int
    forced: Grid
    natural: Grid
    forced_suppression: Grid
    natural_suppression: Grid
    correlation: dict[str, float | None]

    def grids(self) -> dict[str, Grid]:
        """The four grids by name."""
        return {name: getattr(self, name) for name in DYNAMIC}


@dataclass
class ScoresOfHeads:
    """Static scores of every head, with what they are compared with (`HeadScores` has its file).

    Attributes:
        model, fingerprint: of the checkpoint.
        relation: name, category and source of the pairs.
        k: places that count: the target is among the k tokens a head raises (lowers) most.
        n_listed, n_pairs, n_targets: pairs given, pairs that are single tokens, distinct targets.
        scores, suppression: in [0, 1].
        null_scores, null_suppression: 95th percentile with targets shuffled among the pairs.
        constant: score of a head that always writes the k most frequent targets.
        chance: k / d_vocab, the score of a head that writes nothing.
        silent: heads whose OV circuit is zero on all pairs.
        pairs: the words; `hits`, `lowered` and `top` say per head and pair what happens.
    """

    model: str
    fingerprint: str
    relation: str
    category: str
    source: str
    k: int
    n_listed: int
    n_pairs: int
    n_targets: int
    scores: Grid
    suppression: Grid
    null_scores: Grid
    null_suppression: Grid
    constant: float
    chance: float
    permutations: int
    seed: int
    silent: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    hits: Float[np.ndarray, "n_layers n_heads pair"] | None = None
    lowered: Float[np.ndarray, "n_layers n_heads pair"] | None = None
    top: Int[np.ndarray, "n_layers n_heads pair"] | None = None
    classes: HeadClasses | None = None
    dynamic: Dynamic | None = None
    causal: CausalCheck | None = None
    salient: list[SalientHead] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def n_layers(self) -> int:
        return self.scores.shape[0]

    @property
    def n_heads(self) -> int:
        return self.scores.shape[1]

    def top_heads(
        self, n: int = 10, suppression: bool = False
    ) -> list[tuple[tuple[int, int], float]]:
        """The n heads with the highest scores above their null, as ((layer, head), score)."""
        grid = self.suppression if suppression else self.scores
        null = self.null_suppression if suppression else self.null_scores
        order = np.argsort(-grid, axis=None, kind="stable")[:n]
        heads = [divmod(int(place), self.n_heads) for place in order]
        return [(head, float(grid[head])) for head in heads if grid[head] > null[head]]

    def words_of(self, layer: int, head: int, suppressed: bool = False) -> list[tuple[str, str]]:
        """The pairs that a head maps (or suppresses): which names it copies.

        Raises:
            InputError: there is no such head, or these scores were read from a file.
        """
        hits = self.lowered if suppressed else self.hits
        if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
            raise InputError(f"There is no head {head_name(layer, head)} in {self.model}.")
        if hits is None:
            raise InputError("These scores hold no results per pair; compute them with --pairs.")
        return [pair for pair, hit in zip(self.pairs, hits[layer, head], strict=True) if hit > 0.5]
