"""How far the building of an index has come, kept in a file so that a killed build goes on.

The file is `numpy.savez` of plain arrays beside the index (`index.h5.partial`), written atomically
and removed when the index is complete.  It holds the text read so far, too, so that another text
is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from zipfile import BadZipFile

import numpy as np

from saekit.errors import FormatError, MismatchError
from saekit.features.examples import Chunk, KeptExamples
from saekit.features.relatives import KeptRows
from saekit.features.statistics import Moments, Pairs
from saekit.files import atomic_path

NEIGHBOUR_PAIRS = 64  # (neighbouring word, feature) pairs per feature: only the best are stored
DRAWN = 4  # places drawn at random for each that is kept, one per quantile range
_PAIRS = ("key", "count", "total", "largest")
_PLACES = ("score", "value", "row", "place", "suffix", "window")
_KEPT = {
    "moments": ("count", "total", "largest", "histogram", "log2_range"),
    "pairs": _PAIRS,
    "before": _PAIRS,
    "after": _PAIRS,
    "examples": _PLACES,
    "samples": _PLACES,
}


@dataclass
class LayerStatistics:
    """Everything that is collected about one layer."""

    moments: Moments
    pairs: Pairs
    before: Pairs
    after: Pairs
    examples: KeptExamples
    samples: KeptExamples

    @classmethod
    def empty(cls, d_sae: int, examples: int, samples: int) -> Self:
        return cls(
            Moments(d_sae),
            Pairs(d_sae),
            Pairs(d_sae, NEIGHBOUR_PAIRS),
            Pairs(d_sae, NEIGHBOUR_PAIRS),
            KeptExamples(d_sae, examples),
            KeptExamples(d_sae, samples * DRAWN),
        )

    def add(self, chunk: Chunk, words: np.ndarray, drawn: np.ndarray) -> None:
        """Count one chunk; `words` are its words, -1 at BOS.

        `drawn` is a random number for each of its active features.
        """
        row, place, feature, value = chunk.active
        if not len(value):
            return
        self.moments.add(feature, value)
        self.pairs.add(chunk.ids[row, place], feature, value)
        for table, step in ((self.before, -1), (self.after, 1)):
            beside = place + step
            word = words[row, np.clip(beside, 0, words.shape[1] - 1)]
            real = (beside >= 0) & (beside < words.shape[1]) & (word >= 0)
            table.add(word[real], feature[real], value[real])
        self.examples.offer(chunk, value)
        self.samples.offer(chunk, drawn)


@dataclass
class Progress:
    """Everything that grows or changes while text is read.

    Attributes:
        layers: one per dictionary.
        kept_rows: for the correlations.
        counts: occurrences of every token, BOS left out.
        rng: draws the samples.
        spool: the text read so far, in the smallest integers.
        rows: how many rows that is.
    """

    layers: Sequence[LayerStatistics]
    kept_rows: KeptRows
    counts: np.ndarray
    rng: np.random.Generator
    spool: IO[bytes]
    rows: int = 0

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write a checkpoint; `settings` are what a build that goes on must share.

        Raises:
            InputError: it cannot be written.
        """
        self.spool.flush()
        self.spool.seek(0)
        about = {"settings": settings, "rng": self.rng.bit_generator.state, "rows": self.rows}
        arrays = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "counts": self.counts,
            "text": np.frombuffer(self.spool.read(), np.uint8),
            **{f"kept/{name}": array for name, array in self.kept_rows.state().items()},
        }
        for slot, layer in enumerate(self.layers):
            for pairs in (layer.pairs, layer.before, layer.after):
                pairs.settle()
            for part, names in _KEPT.items():
                for name in names:
                    arrays[f"{slot}/{part}/{name}"] = getattr(getattr(layer, part), name)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def load(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            FormatError: the file is broken.
            MismatchError: it is of another model, other dictionaries or other options.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            about = json.loads(arrays["about"].tobytes())
            if about["settings"] != settings:
                wrong = [k for k in settings if about["settings"].get(k) != settings[k]]
                raise MismatchError(
                    f"{path} is of an index with another {wrong[0]}: use the same options, or "
                    "delete it to start over."
                )
            self.rng.bit_generator.state = about["rng"]
            self.rows, self.counts = about["rows"], arrays["counts"]
            self.spool.write(arrays["text"].tobytes())
            self.kept_rows.restore(
                {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith("kept/")}
            )
            for slot, layer in enumerate(self.layers):
                for part, names in _KEPT.items():
                    for name in names:
                        setattr(getattr(layer, part), name, arrays[f"{slot}/{part}/{name}"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise FormatError(
                f"{path} cannot be read ({error}); delete it to start over."
            ) from error
