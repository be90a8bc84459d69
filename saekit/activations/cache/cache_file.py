"""The activation cache file: what is in it, and opening it.

HDF5, readable without saekit:

    attributes        format, schema_version, model, fingerprint, prepend_bos, context, text,
                      layers, d_model, n_tokens, shard_tokens, precision, model_bf16
    layers/L          [n_tokens, d_model]: the residual stream at layer L; bfloat16 bits as uint16
                      ("precision" bfloat16), or float32
    tokens            [n_tokens]: token ids
    documents         [n_tokens]: the number of the document that each token is of
    shards            [shard, 5]: whether the shard is written (0 or 1), and where in the text the
                      next one begins (tokens to leave out, row, document, tokens of it before)

Tokens are those of the packed contexts in order, without BOS.  All data sets are contiguous and
have their place from the start, so that a file whose writer was killed opens as any other: only
values are written after that, and a shard counts when its values have reached the disk.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from saekit.errors import FormatError, InputError, MismatchError
from saekit.files import atomic_path
from saekit.model.loading import LanguageModel

FORMAT = "saekit activation cache"
SCHEMA_VERSION = 1
PRECISIONS = {"bfloat16": np.dtype(np.uint16), "float32": np.dtype(np.float32)}
_SHARD_NUMBERS = 5
_TOKEN_BYTES = 4 + 8  # of the id and of the document number


@dataclass(frozen=True)
class CacheHeader:
    """What an activation cache holds (see the module for the words)."""

    model: str
    fingerprint: str
    prepend_bos: bool
    context: int
    text: str
    layers: tuple[int, ...]
    d_model: int
    n_tokens: int
    shard_tokens: int
    precision: str
    model_bf16: bool

    @property
    def n_shards(self) -> int:
        return -(-self.n_tokens // self.shard_tokens)

    @property
    def token_bytes(self) -> int:
        """Bytes per token."""
        values = len(self.layers) * self.d_model
        return values * PRECISIONS[self.precision].itemsize + _TOKEN_BYTES

    @classmethod
    def read(cls, path: Path, file: h5py.File) -> Self:
        """
        Raises:
            FormatError: no activation cache, or of another version.
        """
        attributes: dict[str, Any] = dict(file.attrs)
        if attributes.pop("format", None) != FORMAT:
            raise FormatError(f"{path} is not an activation cache: give another --cache.")
        version = attributes.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise FormatError(
                f"{path} has schema_version {version}; this saekit reads version {SCHEMA_VERSION}: "
                "write the cache again."
            )
        try:
            attributes["layers"] = tuple(int(layer) for layer in attributes["layers"])
            plain = {k: v.item() if hasattr(v, "item") else v for k, v in attributes.items()}
            header = cls(**plain)
            shapes = [dataset(file, f"layers/{layer}").shape for layer in header.layers]
            marks = dataset(file, "shards").shape
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path} is incomplete ({error}): write the cache again.") from error
        size = (header.n_tokens, header.d_model)
        if set(shapes) != {size} or marks != (header.n_shards, _SHARD_NUMBERS):
            raise FormatError(f"{path} has data sets of wrong sizes: write the cache again.")
        return header

    def check_model(self, path: Path, model: LanguageModel, context: int | None = None) -> None:
        """
        Raises:
            MismatchError: activations of another model, or of rows of another kind.
        """
        model.check_made_with(
            f"{path} belongs", self.model, self.fingerprint, self.prepend_bos,
            "Give another --cache.",
        )  # fmt: skip
        if context is not None and self.context != context:
            raise MismatchError(
                f"{path} has a context of {self.context} tokens; this run has {context}: "
                "give another --cache or the same --context."
            )

    def check_text(self, path: Path, text: str) -> None:
        """
        Raises:
            MismatchError: activations of a text of another name ("" is any).
        """
        if text and self.text != text:
            raise MismatchError(
                f'{path} holds the text "{self.text}"; this run names "{text}": '
                "give another --cache or the same --text."
            )

    def check_layers(self, path: Path, layers: Sequence[int]) -> None:
        """
        Raises:
            MismatchError: a layer that the cache does not have.
        """
        if missing := sorted(set(layers) - set(self.layers)):
            raise MismatchError(
                f"{path} does not hold layer {', '.join(map(str, missing))} (it has "
                f"{', '.join(map(str, self.layers))}): choose --layers among them."
            )


def create(path: Path, header: CacheHeader) -> None:
    """A cache of the full size without any shard, atomically.

    Raises:
        InputError: it cannot be written.
    """
    placed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    placed.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    placed.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    rows = (header.n_tokens,)
    # the newest form of HDF5 marks a file as open, and refuses it after a kill
    with atomic_path(path) as temporary, h5py.File(
        temporary, "w", libver=("earliest", "v108")
    ) as file:  # fmt: skip
        file.attrs.update(format=FORMAT, schema_version=SCHEMA_VERSION, **asdict(header))
        kind = PRECISIONS[header.precision]
        for layer in header.layers:
            size = (*rows, header.d_model)
            file.create_dataset(f"layers/{layer}", size, kind, dcpl=placed.copy())
        file.create_dataset("tokens", rows, np.int32, dcpl=placed.copy())
        file.create_dataset("documents", rows, np.int64, dcpl=placed.copy())
        file["shards"] = np.zeros((header.n_shards, _SHARD_NUMBERS), np.int64)


def open_cache(path: Path, mode: str = "r") -> tuple[h5py.File, CacheHeader]:
    """
    Raises:
        FormatError: truncated, no activation cache, or of another version.
        InputError: missing, or written by another process now.
    """
    try:
        file = h5py.File(path, mode)
    except FileNotFoundError as error:
        raise InputError(f"There is no activation cache at {path}.") from error
    except BlockingIOError as error:
        raise InputError(f"{path} is being written by another process: wait for it.") from error
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read as an activation cache (truncated, or not HDF5): "
            "delete it to write it again."
        ) from error
    try:
        return file, CacheHeader.read(path, file)
    except BaseException:
        file.close()
        raise


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set by name.

    Raises:
        KeyError: there is none.
    """
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"{name} is no data set")
    return found


def written_shards(file: h5py.File) -> int:
    """How many shards from the first on are whole."""
    flags = dataset(file, "shards")[:, 0]
    return len(flags) if flags.all() else int(flags.argmin())


def to_stored(values: Shaped[Tensor, "*shape"], precision: str) -> Shaped[np.ndarray, "*shape"]:
    """Activations as they are stored."""
    if precision == "bfloat16":
        return values.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
    return values.float().cpu().numpy()


def from_stored(
    values: Shaped[np.ndarray, "*shape"],
) -> Shaped[Tensor, "*shape"]:
    """Stored activations as a tensor that shares their memory: bfloat16 or float32."""
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor
