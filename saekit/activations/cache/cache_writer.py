"""Write an activation cache: run the model once, keep the stream of all layers on disk."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations.cache.cache_file import (
    PRECISIONS,
    CacheHeader,
    create,
    dataset,
    open_cache,
    to_stored,
    written_shards,
)
from saekit.activations.residuals import check_layers
from saekit.activations.rows import Text
from saekit.activations.sources import ModelActivations
from saekit.errors import InputError, TrainingError
from saekit.files import ensure_writable
from saekit.model.loading import LanguageModel, LoadableModel, load_model

SHARD_TOKENS = 16_384  # 330 MB for all layers of GPT-2: a kill loses seconds


def write_cache(
    model: LoadableModel,
    text: Text,
    path: str | Path,
    tokens: int,
    layers: Iterable[int] | None = None,
    context: int = 128,
    text_name: str = "",
    precision: str = "bfloat16",
    bf16: bool = False,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Write the activations of a text to a cache, or go on with one that was cut short.

    A file that has enough tokens and layers already is left as it is, so this can be called
    before every run.  Memory does not grow with `tokens`.

    Args:
        model: the model, or what `load_model` opens.
        text: see `saekit.activations.documents_of`; starts over when it ends.
        path: the HDF5 file (its layout: `saekit.activations.cache.cache_file`).
        tokens: how many to hold, BOS not counted; a training needs as many as it is to see.
        layers: 0..n_layers; None for all.
        context: tokens per row, BOS included.
        text_name: what the text is, in words; compared when a cache is used again.
        precision: "bfloat16" or "float32".
        bf16: run the model in bfloat16.
        shard_tokens: tokens between two moments at which the file is complete on disk.

    Raises:
        InputError: an impossible number, too little space on the disk, a text that ended, or an
            existing cache that is too small.
        MismatchError: an existing cache of another model, context, text, or without a layer.
        FormatError: an existing file that is no cache, or truncated.
        TrainingError: values that are not finite.
    """
    model, path = load_model(model), Path(path)
    wanted = check_layers(model, layers)
    if tokens < 1 or shard_tokens < 1 or precision not in PRECISIONS:
        raise InputError(
            f"A cache of {tokens} tokens in shards of {shard_tokens} at precision {precision} is "
            f"not possible: give at least 1, and one of {', '.join(PRECISIONS)}."
        )
    if not path.exists():
        header = CacheHeader(
            model.id, model.fingerprint, model.prepend_bos, context, text_name, tuple(wanted),
            model.d_model, tokens, shard_tokens, precision, bf16,
        )  # fmt: skip
        ensure_writable(path.parent)
        _check_space(path, header.n_tokens * header.token_bytes)
        create(path, header)
    file, header = open_cache(path)
    with file:
        done = written_shards(file)
    _check_same(path, header, model, wanted, context, text_name, tokens)
    if min(done * header.shard_tokens, header.n_tokens) >= tokens:
        return path
    source = ModelActivations(model, text, header.layers, context, header.model_bf16)
    _write_shards(path, header, source)
    return path


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"The activation cache {path} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free: ask for fewer tokens or layers, or another place."
        )


def _check_same(
    path: Path,
    header: CacheHeader,
    model: LanguageModel,
    layers: list[int],
    context: int,
    text_name: str,
    tokens: int,
) -> None:
    """Whether an existing cache is, or will be, the one asked for."""
    header.check_model(path, model, context)
    header.check_layers(path, layers)
    header.check_text(path, text_name)
    if header.n_tokens < tokens:
        raise InputError(
            f"{path} is a cache of {header.n_tokens} tokens; {tokens} are needed: ask for fewer "
            "--tokens, or write another cache."
        )


class _Part(NamedTuple):
    """Consecutive tokens."""

    activations: Float[Tensor, "layer token d_model"]
    ids: Int[np.ndarray, " token"]
    documents: Int[np.ndarray, " token"]


class _Parts:
    """The tokens of a source in parts of any size, from any place."""

    def __init__(self, source: ModelActivations, place: list[int] | None):
        self.source = source
        self._offset = 0
        if place is not None:
            self._offset, *position = place
            source.seek(position)
        self._position = source.position()
        self._pass = self._next() if self._offset else None

    def _next(self) -> _Part | None:
        self._position = self.source.position()
        rows = self.source.next_rows()
        if rows is None:
            return None
        keep = rows.ids != self.source.model.bos
        return _Part(self.source.run(rows), rows.ids[keep], rows.documents[keep])

    def place(self) -> list[int]:
        """Where the next part begins: tokens to leave out, and a position of the source."""
        return [self._offset, *self._position]

    def take(self, most: int) -> _Part | None:
        """Up to `most` tokens; None where the text has ended."""
        if self._pass is None or self._offset >= len(self._pass.ids):
            self._offset = 0
            self._pass = self._next()
            if self._pass is None:
                return None
        activations, ids, documents = self._pass
        here = slice(self._offset, self._offset + most)
        self._offset = min(here.stop, len(ids))
        return _Part(activations[:, here], ids[here], documents[here])


def _write_shards(path: Path, header: CacheHeader, source: ModelActivations) -> None:
    file, _ = open_cache(path, "r+")
    try:
        with file:
            shards = dataset(file, "shards")
            done = written_shards(file)
            first = done * header.shard_tokens
            _check_space(path, (header.n_tokens - first) * header.token_bytes)
            parts = _Parts(source, shards[done - 1, 1:].tolist() if done else None)
            bar = tqdm(
                total=header.n_tokens, initial=first, unit=" tokens", unit_scale=True,
                desc=f"caching {len(header.layers)} layers", mininterval=0.5,
            )  # fmt: skip
            with bar:
                for shard in range(done, header.n_shards):
                    end = min(first + header.shard_tokens, header.n_tokens)
                    while first < end:
                        part = parts.take(end - first)
                        if part is None:
                            raise InputError(
                                f"The text ended after {first} tokens and {path} is to hold "
                                f"{header.n_tokens}: give more text, or ask for fewer tokens."
                            )
                        _write_part(file, header, first, part)
                        first += len(part.ids)
                        bar.update(len(part.ids))
                    _to_disk(file, path)  # the values before the mark that they are there
                    shards[shard] = [1, *parts.place()]
                    _to_disk(file, path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path} ({error.strerror or error}); what is there is intact: make "
            "space and run the same command again."
        ) from error


def _write_part(file: h5py.File, header: CacheHeader, first: int, part: _Part) -> None:
    here = slice(first, first + len(part.ids))
    for layer, stream in zip(header.layers, part.activations, strict=True):
        if not torch.isfinite(stream.sum()):
            raise TrainingError(
                f"The activations of layer {layer} are not finite in tokens {first} to "
                f"{here.stop - 1} of the text; the cache holds what came before."
            )
        dataset(file, f"layers/{layer}")[here] = to_stored(stream, header.precision)
    dataset(file, "tokens")[here] = part.ids
    dataset(file, "documents")[here] = part.documents


def _to_disk(file: h5py.File, path: Path) -> None:
    file.flush()
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
