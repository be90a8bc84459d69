"""HeadScores: the atlas of one model and one relation.  No torch.

Screen, JSON, CSV and chart all show this object.  Scores are [n_layers, n_heads] numpy arrays; the
row is the layer.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saekit.coordinates import head_name
from saekit.errors import FormatError, InputError
from saekit.files import read_json, write_text
from saekit.heads.classes import HeadClasses
from saekit.heads.document import SCHEMA_VERSION, fields_of, to_csv, to_document
from saekit.heads.grids import Dynamic, Grid


@dataclass
class HeadScores:
    """Static scores of every head, with what they are compared with.

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
    causal: dict[str, Any] | None = None
    salient: list[dict[str, Any]] | None = None
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

    def to_dict(self, per_pair: bool = False) -> dict[str, Any]:
        """The JSON document; `per_pair` adds for each head the pairs it maps and suppresses."""
        return to_document(self, per_pair)

    @classmethod
    def from_dict(cls, document: Any, origin: str = "The atlas") -> "HeadScores":
        """Inverse of `to_dict`.

        Raises:
            FormatError: another schema version, or a key is missing or of another form.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise FormatError(
                f"{origin} has schema_version {version}; this saekit reads {SCHEMA_VERSION}."
            )
        try:
            return cls(**fields_of(document))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, InputError) as error:
            raise FormatError(f"{origin} is not a complete head atlas: {error}.") from error

    @classmethod
    def load(cls, path: str | Path) -> "HeadScores":
        """Read a heads.json."""
        return cls.from_dict(read_json(path), str(path))

    def save(self, path: str | Path, per_pair: bool = False) -> None:
        """Write heads.json, one line per key."""
        lines = [
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for name, value in self.to_dict(per_pair).items()
        ]
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    def to_csv(self) -> str:
        """One row per head: scores beside their baselines, and classes."""
        return to_csv(self)
