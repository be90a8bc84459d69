"""HeadScores: the atlas of one model and one relation, and its file.  No torch.

Screen, JSON, CSV and chart all show this object.  Scores are [n_layers, n_heads] numpy arrays; the
row is the layer.
"""

from pathlib import Path
from typing import Any

from saekit.documents import one_line_per_key, read_record
from saekit.errors import FormatError
from saekit.files import read_json, write_text
from saekit.heads.document import fields_of, to_csv, to_document
from saekit.heads.document_parts import SCHEMA_VERSION, AtlasDocument
from saekit.heads.grids import ScoresOfHeads
from saekit.notebook import Pictured


class HeadScores(ScoresOfHeads, Pictured):
    """Static scores of every head (see `ScoresOfHeads` for its attributes), with their file."""

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
        record = read_record(AtlasDocument, document, origin, "a complete head atlas")
        try:
            return cls(**fields_of(record))
        except (ValueError, IndexError) as error:
            raise FormatError(f"{origin} is not a complete head atlas: {error}.") from error

    @classmethod
    def load(cls, path: str | Path) -> "HeadScores":
        """Read a heads.json."""
        return cls.from_dict(read_json(path), str(path))

    def save(self, path: str | Path, per_pair: bool = False) -> None:
        """Write heads.json, one line per key."""
        write_text(path, one_line_per_key(self.to_dict(per_pair)))

    def to_csv(self) -> str:
        """One row per head: scores beside their baselines, and classes."""
        return to_csv(self)
