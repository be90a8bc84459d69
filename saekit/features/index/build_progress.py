"""How far the building of an index has come, kept in a file so that a killed build goes on.

The file is an archive of plain arrays, as of `numpy.savez`, beside the index (`index.h5.partial`),
written atomically and removed when the index is complete.  It holds the text read so far, too, so
that another text is refused.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from zipfile import BadZipFile, ZipFile

import numpy as np

from saekit.errors import FormatError, MismatchError
from saekit.features.index.examples import Chunk, KeptExamples
from saekit.features.index.relatives import KeptRows
from saekit.features.index.statistics import Moments
from saekit.features.index.token_pairs import CountedPairs
from saekit.files import atomic_path

NEIGHBOUR_PAIRS = 32  # (neighbouring word, feature) pairs per feature: only the best are stored
DRAWN = 4  # places drawn at random for each that is kept, one per quantile range
_PAIRS = ("pairs", "before", "after")
_PLACES = ("score", "value", "row", "place", "suffix", "window")
_KEPT = {
    "moments": ("count", "total", "largest", "histogram", "log2_range"),
    "examples": _PLACES,
    "samples": _PLACES,
}


@dataclass
class LayerStatistics:
    """Everything that is collected about one layer."""

    moments: Moments
    pairs: CountedPairs
    before: CountedPairs
    after: CountedPairs
    examples: KeptExamples
    samples: KeptExamples

    @classmethod
    def empty(cls, d_sae: int, examples: int, samples: int) -> Self:
        return cls(
            Moments(d_sae),
            CountedPairs(d_sae),
            CountedPairs(d_sae, NEIGHBOUR_PAIRS, shares=True),
            CountedPairs(d_sae, NEIGHBOUR_PAIRS, shares=True),
            KeptExamples(d_sae, examples),
            KeptExamples(d_sae, samples * DRAWN),
        )

    def add(self, chunk: Chunk, words: np.ndarray, drawn: np.ndarray) -> None:
        """Count one chunk; `words` are its words, -1 at BOS.

        `drawn` is a random number for each of its active features.
        """
        position, feature, value = chunk.active
        if not len(value):
            return
        self.moments.add(feature, value)
        previous, following = np.full_like(words, -1), np.full_like(words, -1)
        previous[:, 1:], following[:, :-1] = words[:, :-1], words[:, 1:]
        counted = ((self.pairs, chunk.ids), (self.before, previous), (self.after, following))
        for table, tokens in counted:
            table.add(np.take(tokens, position), feature, value)
        self.examples.offer(chunk, value)
        self.samples.offer(chunk, drawn)


@dataclass
class IndexProgress:
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
        with atomic_path(path) as temporary, ZipFile(temporary, "w") as archive:
            for name, array in self._arrays(settings):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)

    def _arrays(self, settings: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """What is stored; tables of pairs are copied one at a time, which memory is counted on."""
        self.spool.flush()
        self.spool.seek(0)
        about = {"settings": settings, "rng": self.rng.bit_generator.state, "rows": self.rows}
        yield "about", np.frombuffer(json.dumps(about).encode(), np.uint8)
        yield "counts", self.counts
        yield "text", np.frombuffer(self.spool.read(), np.uint8)
        for name, array in self.kept_rows.state().items():
            yield f"kept/{name}", array
        for slot, layer in enumerate(self.layers):
            for name in _PAIRS:
                yield f"{slot}/{name}", getattr(layer, name).table().entries
            for part, names in _KEPT.items():
                for name in names:
                    yield f"{slot}/{part}/{name}", getattr(getattr(layer, part), name)

    def load(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            FormatError: the file is broken.
            MismatchError: it is of another model, other dictionaries or other options.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:  # each is read when it is asked for
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
                kept = [name for name in arrays if name.startswith("kept/")]
                self.kept_rows.restore({name.split("/", 1)[1]: arrays[name] for name in kept})
                for slot, layer in enumerate(self.layers):
                    for name in _PAIRS:
                        getattr(layer, name).restore(arrays[f"{slot}/{name}"])
                    for part, names in _KEPT.items():
                        for name in names:
                            setattr(getattr(layer, part), name, arrays[f"{slot}/{part}/{name}"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise FormatError(
                f"{path} cannot be read ({error}); delete it to start over."
            ) from error
