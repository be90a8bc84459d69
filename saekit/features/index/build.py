"""Builds the feature index: one pass over text through the model and all dictionaries.

What is kept per feature and token is of bounded size, so memory does not grow with the text.  BOS
positions are read by the model and count nowhere.
"""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice, repeat
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Text, context_rows, documents_of, residuals
from saekit.errors import InputError, TrainingError
from saekit.features.fingerprint import dictionary_fingerprint
from saekit.features.index.build_progress import IndexProgress, LayerStatistics
from saekit.features.index.examples import Chunk, suffix_hashes
from saekit.features.index.relatives import KeptRows, correlated
from saekit.features.index.writer import IndexWriter, smallest_type
from saekit.features.names.lexicons import Words
from saekit.features.output_tokens import output_tokens
from saekit.files import ensure_writable, write_bytes
from saekit.model.loading import LanguageModel
from saekit.native.library import keep_freed_memory
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.sae.topk import MIN_TOKENS

PROMOTED, SUPPRESSED = 10, 5  # tokens per feature
_PASS_TOKENS = 4096
CHECKPOINT_TOKENS = 250_000
_ENTRIES = 2**21  # preactivations computed at once: memory that the allocator uses again


@torch.no_grad()
def _encode(
    dictionary: Dictionary,
    stream: Float[Tensor, "row pos d_model"],
    is_bos: Bool[np.ndarray, "row pos"],
) -> tuple[Float[np.ndarray, "row pos k"], Int[np.ndarray, "row pos k"]]:
    """`encode_sparse` in blocks of bounded size, as numpy, with zeros at BOS."""
    parts = [
        dictionary.encode_sparse(block)
        for block in stream.flatten(0, 1).split(max(MIN_TOKENS, _ENTRIES // dictionary.d_sae))
    ]
    width = max(values.shape[-1] for values, _ in parts)  # without a fixed k blocks may differ
    values, features = (
        torch.cat([F.pad(part[i], (0, width - part[i].shape[-1])) for part in parts]).cpu().numpy()
        for i in range(2)
    )
    shape = (*is_bos.shape, width)
    values = values.astype(np.float32).reshape(shape)
    values[is_bos] = 0
    return values, features.astype(np.int32).reshape(shape)


@contextmanager
def _layer_threads(layers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that take a layer each; with many layers nothing is split in one, and none waits."""
    threads = torch.get_num_threads()
    within = (max(1, threads // layers),)
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=within
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # what threads of others begin with


def _chunks(rows: Iterator[np.ndarray], context: int) -> Iterator[np.ndarray]:
    """Stacks of rows, about `_PASS_TOKENS` tokens each."""
    while stack := list(islice(rows, max(1, _PASS_TOKENS // context))):
        yield np.stack(stack)


@torch.no_grad()
def build_index(
    model: LanguageModel,
    dictionaries: DictionarySet,
    documents: Text,
    out_path: str | Path,
    tokens: int = 300_000,
    context: int = 128,
    layers: Sequence[int] | None = None,
    examples: int = 10,
    samples: int = 3,
    per_token: int = 10,
    seed: int = 0,
    checkpoint_tokens: int | None = None,
    resume: bool = False,
) -> Path:
    """Build `index.h5` (read it with `saekit.FeatureIndex`).

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: the dictionary set.
        documents: text (see `saekit.activations.documents_of`); may be endless.
        out_path: the file to write; an older one is replaced when the new one is complete.
        tokens: how many positions to read, BOS not counted (rounded up to whole contexts).
        context: tokens per row of text, BOS included; less if the model reads less.
        layers: only these; None for all that have a dictionary.
        examples: strongest places kept per feature.
        samples: places kept per feature, one from each of so many quantile ranges.
        per_token: features listed per token and layer, beside the first five of each rank.
        seed: of the samples.
        checkpoint_tokens: keep what is done in `OUT.partial` after every so many tokens, so that a
            stopped build can be taken up; None for never.
        resume: go on from `OUT.partial`, if it is there, over the same text.

    Returns:
        `out_path`.

    Raises:
        InputError: no text, impossible sizes, or a file that cannot be written; on `resume` a text
            that is not the one read before.
        MismatchError: the dictionaries belong to another model; `OUT.partial` is of another build.
        FormatError: `OUT.partial` is broken.
        TrainingError: activations that are not finite.
    """
    out_path = Path(out_path)
    dictionaries.check_model(model)
    wanted = sorted(dictionaries.layers if layers is None else set(layers))
    parts = [dictionaries[layer] for layer in wanted]
    sizes = [part.d_sae for part in parts]
    for name, value in (("tokens", tokens), ("examples", examples), ("samples", samples)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1.")
    ensure_writable(out_path.parent)
    keep_freed_memory()

    context = min(context, model.n_ctx)
    statistics = [LayerStatistics.empty(size, examples, samples) for size in sizes]
    words = Words(model.vocabulary)
    fingerprints = [dictionary_fingerprint(part) for part in parts]
    partial = out_path.with_name(f"{out_path.name}.partial")
    settings = {
        "model": model.fingerprint, "set of dictionaries": fingerprints, "context": context,
        "number of examples": [examples, samples], "seed": seed,
    }  # fmt: skip
    with _spool(out_path) as spool:
        rng, counts = np.random.default_rng(seed), np.zeros(model.d_vocab, np.int64)
        progress = IndexProgress(statistics, KeptRows(sizes), counts, rng, spool)
        if resume and partial.exists():
            progress.load(partial, settings)
        following = checkpoint_tokens or tokens
        target = min(tokens, int(progress.counts.sum()) // following * following + following)
        rows = _rows(model, documents, context, progress)
        while True:
            _read_text(model, parts, progress, rows, target, tokens, context, words)
            if target >= tokens or progress.counts.sum() < target:
                break
            progress.save(partial, settings)
            target = min(tokens, target + following)
        counts, kept_rows = progress.counts, progress.kept_rows
        attributes: dict[str, Any] = {
            "model": model.id,
            "fingerprint": model.fingerprint,
            "prepend_bos": model.prepend_bos,
            "bos": model.bos,
            "layers": wanted,
            "d_sae": max(sizes),
            "sizes": sizes,
            "n_tokens": int(counts.sum()),
            "promoted": PROMOTED,
            "dictionaries": fingerprints,
        }
        with IndexWriter(
            attributes, examples, samples, words, counts, PROMOTED + SUPPRESSED
        ) as writer:
            relatives = _relatives(kept_rows)
            for layer in statistics:
                layer.samples.thin_by_quantile(samples)
            writer.write_contexts(_referenced_rows(statistics, spool, model.d_vocab, context))
            for slot, layer in enumerate(tqdm(statistics, desc="writing index", unit=" layers")):
                token, value = output_tokens(model, parts[slot].W_dec, PROMOTED, SUPPRESSED)
                kept = {"examples": layer.examples, "samples": layer.samples}
                pairs, before, after = (
                    table.finish() for table in (layer.pairs, layer.before, layer.after)
                )
                writer.write_layer(
                    slot, layer.moments, pairs, kept, token.numpy(), value.numpy(), per_token,
                    {"before": before, "after": after}, relatives[slot],
                )  # fmt: skip
            write_bytes(out_path, writer.finish())
    partial.unlink(missing_ok=True)
    return out_path


def _rows(
    model: LanguageModel, documents: Text, context: int, progress: IndexProgress
) -> Iterator[np.ndarray]:
    """Rows of text after those that were read before.

    Raises:
        InputError: the text begins otherwise.
    """
    rows = context_rows(model, documents_of(documents), context)
    dtype = smallest_type(model.d_vocab)
    progress.spool.seek(0)
    for _ in range(progress.rows):
        known = np.frombuffer(progress.spool.read(context * dtype.itemsize), dtype)
        row = next(rows, None)
        if row is None or not np.array_equal(row, known):
            raise InputError(
                "The text is not the one that the index to be continued was built from: give the "
                "same text, or delete the .partial file to start over."
            )
    return rows


def _relatives(kept: KeptRows) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Per layer the correlated features of the "same" and of the "next" layer."""
    result = []
    following = kept.matrix(0)
    for slot in tqdm(range(len(kept.sizes)), desc="correlating", unit=" layers"):
        here = following
        found = {"same": correlated(here, here, same=True)}
        if slot + 1 < len(kept.sizes):
            following = kept.matrix(slot + 1)
            found["next"] = correlated(here, following)
        result.append(found)
    return result


@contextmanager
def _spool(out_path: Path) -> Iterator[IO[bytes]]:
    """A nameless file for the text that is read: examples point into it, memory does not grow."""
    try:
        with tempfile.TemporaryFile(dir=out_path.parent) as file:
            yield file
    except OSError as error:
        raise InputError(f"Cannot write {out_path}: {error.strerror or error}.") from error


def _read_text(
    model: LanguageModel,
    dictionaries: Sequence[Dictionary],
    progress: IndexProgress,
    rows: Iterator[np.ndarray],
    target: int,
    tokens: int,
    context: int,
    words: Words,
) -> None:
    """Read on until `target` positions of `tokens` are counted, or the text ends."""
    counts, first_row, spool = progress.counts, progress.rows, progress.spool
    layers = [dictionary.layer for dictionary in dictionaries]
    spool.seek(0, 2)
    bar = tqdm(
        total=tokens, initial=min(tokens, int(counts.sum())), unit=" tokens", unit_scale=True,
        desc="indexing",
    )  # fmt: skip
    with bar, _layer_threads(len(layers)) as pool:
        for ids in _chunks(rows, context):
            missing = tokens - int(counts.sum())
            positions = np.cumsum((ids != model.bos).sum(-1))
            ids = ids[: int(np.searchsorted(positions, missing)) + 1]
            spool.write(ids.astype(smallest_type(model.d_vocab)).tobytes())
            is_bos = ids == model.bos
            streams = residuals(model, torch.from_numpy(ids).long(), layers)
            suffix = suffix_hashes(ids, model.bos)
            word = np.where(is_bos, -1, words.of_token[ids])
            encoded = list(pool.map(_encode, dictionaries, streams, repeat(is_bos)))
            del streams  # as large as a table: room for what the tables do
            chunks, drawn = [], []
            for layer, (values, features) in zip(layers, encoded, strict=True):
                if not np.isfinite(values.sum()):
                    raise TrainingError(
                        f"The features of layer {layer} are not finite in contexts "
                        f"{first_row} to {first_row + len(ids) - 1}."
                    )
                chunks.append(chunk := Chunk(ids, first_row, suffix, values, features))
                drawn.append(progress.rng.random(len(chunk.active[0]), dtype=np.float32))
            # each layer has its own tables and numbers drawn before
            for _ in pool.map(LayerStatistics.add, progress.layers, chunks, repeat(word), drawn):
                pass
            progress.kept_rows.offer(first_row, ~is_bos, encoded)
            progress.rows = first_row = first_row + len(ids)
            new = np.bincount(ids[~is_bos], minlength=model.d_vocab)
            counts += new
            bar.update(min(int(new.sum()), missing))
            if counts.sum() >= target:
                break
    if not first_row:
        raise InputError(
            f"The text is shorter than one context of {context} tokens; give more text."
        )


def _referenced_rows(
    statistics: Sequence[LayerStatistics], spool: IO[bytes], d_vocab: int, context: int
) -> UInt[np.ndarray, "row context"]:
    """The rows of text that some example points to; the examples are renumbered to match."""
    tables = [table for layer in statistics for table in (layer.examples, layer.samples)]
    used = np.unique(np.concatenate([np.unique(table.row[table.used]) for table in tables]))
    spool.flush()
    with suppress(ValueError):  # an empty file cannot be mapped: then no row is used either
        text = np.memmap(spool, smallest_type(d_vocab), mode="r").reshape(-1, context)
        for table in tables:
            table.row = np.searchsorted(used, table.row).astype(np.int32)
        return np.asarray(text[used])
    return np.zeros((0, context), smallest_type(d_vocab))
