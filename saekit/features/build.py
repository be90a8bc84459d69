"""Builds the feature index: one pass over text through the model and all dictionaries.

What is kept per feature and token is of bounded size, so memory does not grow with the text.  BOS
positions are read by the model and count nowhere.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Text, context_rows, documents_of, residuals
from saekit.errors import InputError, TrainingError
from saekit.features.examples import Chunk, KeptExamples, suffix_hashes
from saekit.features.lexicons import Words
from saekit.features.live import dictionary_fingerprint
from saekit.features.outputs import output_tokens
from saekit.features.relatives import KeptRows, correlated
from saekit.features.statistics import Moments, Pairs
from saekit.features.writing import IndexWriter, smallest_type
from saekit.files import ensure_writable, write_bytes
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage import DictionarySet

PROMOTED, SUPPRESSED = 10, 5  # tokens per feature
_PASS_TOKENS = 4096
_NEIGHBOUR_PAIRS = 64  # (neighbouring word, feature) pairs per feature: only the best are stored
_DRAWN = 4  # places drawn at random for each that is kept, one per quantile range
_ENTRIES = 2**21  # preactivations computed at once: memory that the allocator uses again


@dataclass
class _LayerStatistics:
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
            Pairs(d_sae, _NEIGHBOUR_PAIRS),
            Pairs(d_sae, _NEIGHBOUR_PAIRS),
            KeptExamples(d_sae, examples),
            KeptExamples(d_sae, samples * _DRAWN),
        )

    def add(self, chunk: Chunk, words: np.ndarray, rng: np.random.Generator) -> None:
        """Count one chunk; `words` are its words, -1 at BOS."""
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
        self.samples.offer(chunk, rng.random(len(value), dtype=np.float32))


def _encode(
    dictionary: Dictionary, stream: Float[Tensor, "token d_model"]
) -> tuple[Float[np.ndarray, "token k"], Int[np.ndarray, "token k"]]:
    """`encode_sparse` in blocks of bounded size, as numpy."""
    parts = [
        dictionary.encode_sparse(block)
        for block in stream.split(max(1, _ENTRIES // dictionary.d_sae))
    ]
    width = max(values.shape[-1] for values, _ in parts)  # without a fixed k blocks may differ
    values, features = (
        torch.cat([F.pad(part[i], (0, width - part[i].shape[-1])) for part in parts]).cpu().numpy()
        for i in range(2)
    )
    return values.astype(np.float32), features.astype(np.int32)


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
    per_token: int = 20,
    seed: int = 0,
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
        per_token: features listed per token and layer.
        seed: of the samples.

    Returns:
        `out_path`.

    Raises:
        InputError: no text, impossible sizes, or a file that cannot be written.
        MismatchError: the dictionaries belong to another model.
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

    context = min(context, model.n_ctx)
    statistics = [_LayerStatistics.empty(size, examples, samples) for size in sizes]
    words, kept_rows = Words(model.vocabulary), KeptRows(sizes)
    with _spool(out_path) as spool:
        counts = _read_text(
            model, parts, statistics, documents, tokens, context, seed, spool, words, kept_rows
        )
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
            "dictionaries": [dictionary_fingerprint(part) for part in parts],
        }
        with IndexWriter(
            attributes, examples, samples, words, counts, PROMOTED + SUPPRESSED
        ) as writer:
            relatives = _relatives(kept_rows)
            for layer in statistics:
                layer.samples.thin_by_quantile(samples)
            writer.write_contexts(_referenced_rows(statistics, spool, model.d_vocab, context))
            for slot, layer in enumerate(tqdm(statistics, desc="writing index", unit=" layers")):
                for pairs in (layer.pairs, layer.before, layer.after):
                    pairs.settle()
                token, value = output_tokens(model, parts[slot].W_dec, PROMOTED, SUPPRESSED)
                kept = {"examples": layer.examples, "samples": layer.samples}
                writer.write_layer(
                    slot, layer.moments, layer.pairs, kept, token.numpy(), value.numpy(), per_token,
                    {"before": layer.before, "after": layer.after}, relatives[slot],
                )  # fmt: skip
            write_bytes(out_path, writer.finish())
    return out_path


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
    statistics: Sequence[_LayerStatistics],
    documents: Text,
    tokens: int,
    context: int,
    seed: int,
    spool: IO[bytes],
    words: Words,
    kept_rows: KeptRows,
) -> Int[np.ndarray, " d_vocab"]:
    """Fill the statistics; returns the occurrences of every token, BOS left out."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(model.d_vocab, np.int64)
    first_row = 0
    layers = [dictionary.layer for dictionary in dictionaries]
    rows = context_rows(model, documents_of(documents), context)
    with tqdm(total=tokens, unit=" tokens", unit_scale=True, desc="indexing") as bar:
        for ids in _chunks(rows, context):
            missing = tokens - int(counts.sum())
            positions = np.cumsum((ids != model.bos).sum(-1))
            ids = ids[: int(np.searchsorted(positions, missing)) + 1]
            spool.write(ids.astype(smallest_type(model.d_vocab)).tobytes())
            is_bos = ids == model.bos
            streams = residuals(model, torch.from_numpy(ids).long(), layers)
            suffix = suffix_hashes(ids, model.bos)
            word = np.where(is_bos, -1, words.of_token[ids])
            encoded = []
            for dictionary, stream, layer in zip(dictionaries, streams, statistics, strict=True):
                values, features = (
                    array.reshape(*ids.shape, -1)
                    for array in _encode(dictionary, stream.flatten(0, 1))
                )
                values[is_bos] = 0
                if not np.isfinite(values.sum()):
                    raise TrainingError(
                        f"The features of layer {dictionary.layer} are not finite in contexts "
                        f"{first_row} to {first_row + len(ids) - 1}."
                    )
                layer.add(Chunk(ids, first_row, suffix, values, features), word, rng)
                encoded.append((values, features))
            kept_rows.offer(first_row, ~is_bos, encoded)
            first_row += len(ids)
            new = np.bincount(ids[~is_bos], minlength=model.d_vocab)
            counts += new
            bar.update(min(int(new.sum()), missing))
            if counts.sum() >= tokens:
                break
    if not first_row:
        raise InputError(
            f"The text is shorter than one context of {context} tokens; give more text."
        )
    return counts


def _referenced_rows(
    statistics: Sequence[_LayerStatistics], spool: IO[bytes], d_vocab: int, context: int
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
