"""The open index file: what it must be, whose it is, its tables (layout: `features.reader`)."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from jaxtyping import Float

from saekit.errors import FormatError, InputError, check_fingerprint
from saekit.features.fingerprint import (
    check_dictionaries,
    dictionary_fingerprint,
    folder_fingerprint,
)
from saekit.features.index.vocabulary import Vocabulary
from saekit.features.names.lexicons import Words
from saekit.h5 import BROKEN, open_h5
from saekit.sae.storage.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from saekit.sae.storage.dictionary_set import DictionarySet

FORMAT = "saekit feature index"
SCHEMA_VERSION = 3
READABLE = (2, 3)  # version 2 lists fewer features per token
INDEX_FILE = "index.h5"
BEFORE, AFTER = 15, 8  # tokens of a window before and after the example
NEIGHBOURS = 2  # previous and next words kept per feature
MIN_SHARE = 0.1  # a feature is listed under a token from this P(active | token) on


class IndexFile:
    """An open index file.  Use it as a context manager, or `close` it.

    Attributes:
        path: the file.
        model, fingerprint: the model's id and the fingerprint of its weights.
        layers: the layers it covers, ascending; sizes: features of each; d_sae: the largest size.
        n_tokens: positions that were read, BOS excluded.
        n_examples, n_samples: places kept per feature.
        n_promoted: promoted tokens per feature; those after them are suppressed.
        dictionaries: fingerprint of each layer's dictionary.
        classes: names of the token classes that features were compared with.
    """

    def __init__(self, path: Path, file: h5py.File):
        self.path, self._file = path, file
        try:
            attributes: dict[str, Any] = dict(file.attrs)
            if attributes.get("format") != FORMAT:
                raise FormatError(f"{path} is not a feature index. {self.cure}")
            if attributes.get("schema_version") not in READABLE:
                raise FormatError(
                    f"{path} has schema_version {attributes.get('schema_version')}; this saekit "
                    f"reads versions {READABLE[0]} to {READABLE[-1]}. {self.cure}"
                )
            self.model = str(attributes["model"])
            self.fingerprint = str(attributes["fingerprint"])
            self.layers = [int(layer) for layer in attributes["layers"]]
            self.d_sae = int(attributes["d_sae"])
            sizes = attributes.get("sizes", [self.d_sae] * len(self.layers))
            self.sizes = [int(size) for size in sizes]
            self.n_tokens = int(attributes["n_tokens"])
            self.n_promoted = int(attributes["promoted"])
            self.prepend_bos = bool(attributes["prepend_bos"])
            self.bos = int(attributes["bos"])
            self.dictionaries = [str(text) for text in attributes["dictionaries"]]
            self.classes = [str(name) for name in attributes["classes"]]
            self.n_examples = _places(file, "examples")
            self.n_samples = _places(file, "samples")
        except KeyError as error:
            raise FormatError(f"{path} is incomplete ({error}). {self.cure}") from error
        except BROKEN as error:
            raise FormatError(f"{path} is damaged ({error}). {self.cure}") from error
        self._slot = {layer: slot for slot, layer in enumerate(self.layers)}

    @property
    def cure(self) -> str:
        """What to do about an unusable index."""
        return f"Build it: saekit index {self.path.parent}"

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an index file, or the one in a dictionary folder.

        The dictionaries that lie in the same folder, if any, are compared with the ones the index
        was built from.

        Raises:
            FormatError: missing, truncated, not an index, or of an unknown version.
            MismatchError: it lies beside other dictionaries.
        """
        path = Path(path)
        if path.is_dir():
            path = path / INDEX_FILE
        file = open_h5(path, "index", f"Build it: saekit index {path.parent}")
        try:
            index = cls(path, file)
            if (path.parent / MANIFEST).is_file():
                index.check_folder(path.parent)
        except BaseException:
            file.close()
            raise
        return index

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check_folder(self, folder: str | Path) -> None:
        """Refuse other dictionaries than those the index was built from; reads no torch.

        Raises:
            MismatchError: what differs.
        """
        manifest = read_manifest(folder)
        if manifest["fingerprint"] is not None:  # None: imported offline
            other = (f"the model of the dictionaries in {folder}", manifest["fingerprint"])
            check_fingerprint(
                f"{self.path} belongs", (self.model, self.fingerprint), other, self.cure
            )
        folders = manifest["folders"]
        found = {
            layer: folder_fingerprint(Path(folder) / folders[str(layer)])
            for layer in self.layers
            if str(layer) in folders
        }
        self._compare(found, str(folder))

    def check_dictionaries(self, dictionaries: "DictionarySet") -> None:
        """Refuse other dictionaries than those the index was built from.

        Raises:
            MismatchError: what differs.
        """
        present = [layer for layer in self.layers if layer in dictionaries.layers]
        found = {layer: dictionary_fingerprint(dictionaries[layer]) for layer in present}
        self._compare(found, str(dictionaries.path))

    def _compare(self, found: Mapping[int, str | None], where: str) -> None:
        check_dictionaries(
            str(self.path), (self.layers, self.dictionaries), found, where, self.cure
        )

    def read(self, name: str, *where: Any) -> np.ndarray:
        """A dataset, or the part of it that the indices select.

        Raises:
            FormatError: it is not there or broken.
        """
        try:
            return self._file[name][where]  # type: ignore[index]
        except (KeyError, *BROKEN) as error:
            raise FormatError(f"{self.path}: {name} cannot be read. {self.cure}") from error

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token id."""
        data = self.read("vocabulary/bytes").tobytes()
        offsets = self.read("vocabulary/offsets").tolist()
        pairs = zip(offsets[:-1], offsets[1:], strict=True)
        return [data[start:end].decode() for start, end in pairs]

    @cached_property
    def words(self) -> Vocabulary:
        """Texts to token ids."""
        return Vocabulary(self.vocabulary, self.model)

    @cached_property
    def words_of_text(self) -> Words:
        """Token ids to words (see `saekit.features.names.lexicons`)."""
        return Words(self.vocabulary)

    @cached_property
    def word_counts(self) -> np.ndarray:
        """Occurrences of every word in the indexed text."""
        return self.words_of_text.counts(self.token_counts)

    @cached_property
    def token_counts(self) -> np.ndarray:
        """Occurrences of every token in the indexed text."""
        return self.read("vocabulary/counts")

    @cached_property
    def summary(self) -> dict[str, np.ndarray]:
        """`count`, `mean` and `maximum` of every feature, [layer, feature], read once."""
        return {name: self.read(f"features/{name}") for name in ("count", "mean", "maximum")}

    def densities(self, layer: int) -> Float[np.ndarray, " d_sae"]:
        """P(active) of every feature of a layer."""
        return (self._summary("count", layer) / self.n_tokens).astype(np.float32)

    def means(self, layer: int) -> Float[np.ndarray, " d_sae"]:
        """Mean activation, where active, of every feature of a layer."""
        return self._summary("mean", layer)

    def maxima(self, layer: int) -> Float[np.ndarray, " d_sae"]:
        """Largest activation of every feature of a layer."""
        return self._summary("maximum", layer)

    def _summary(self, name: str, layer: int) -> np.ndarray:
        slot = self.slot(layer)
        return self.summary[name][slot, : self.sizes[slot]].copy()

    def slot(self, layer: int) -> int:
        """The place of a layer in `layers`.

        Raises:
            InputError: the index does not cover it.
        """
        if layer not in self._slot:
            raise InputError(f"Layer {layer} is not in {self.path}, which has {self.layers}.")
        return self._slot[layer]


def _places(file: h5py.File, group: str) -> int:
    """Examples per feature in one of the two groups."""
    rows = file[f"{group}/row"]
    assert isinstance(rows, h5py.Dataset)
    return rows.shape[2]
