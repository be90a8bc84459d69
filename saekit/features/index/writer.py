"""Writes `index.h5`, one layer at a time (layout: see `saekit.features.index.feature_index`)."""

from functools import cached_property
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from saekit.features.index.examples import WINDOW, KeptExamples
from saekit.features.index.index_file import FORMAT, MIN_SHARE, NEIGHBOURS, SCHEMA_VERSION
from saekit.features.index.relatives import RELATIVES
from saekit.features.index.statistics import BINS, Moments, best_of_each, normalised_entropy
from saekit.features.index.token_pairs import PairTable
from saekit.features.names.lexicons import Words
from saekit.version import __version__

TOKENS = 6  # current tokens kept per feature
MIN_COUNT = 2  # activations of a feature on a token below which it is not listed there
MIN_PURITY = 0.01  # of a feature's total activation, below which only the `PER_RANK` are listed
PER_RANK = 5  # features of a token that are listed in any case: so many of each rank and layer
CLASS_SHARE = 0.8  # from here on a feature is one of a class: the most special class is stored
_CHUNK = 128  # features per HDF5 chunk
_ENTRIES = 4096  # entries of the token table per HDF5 chunk


def smallest_type(largest: int) -> np.dtype:
    """uint16 if it holds the value, else uint32."""
    return np.dtype(np.uint16 if largest < 2**16 else np.uint32)


def shortened(values: np.ndarray) -> np.ndarray:
    """As float16 rounded to 7 bits after the first: within 0.4%, and a quarter smaller on disk."""
    bits = values.astype(np.float16).view(np.uint16)
    return ((bits + 4) & 0xFFF8).astype(np.uint16).view(np.float16)


def shares(values: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """Fractions of the maximum, as stored (0 where the maximum is 0)."""
    return shortened(values / np.where(maximum > 0, maximum, 1))


def bytes_of(share: np.ndarray) -> np.ndarray:
    """A share in [0, 1] as 255ths."""
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


class IndexWriter:
    """Collects finished layers into one HDF5 file in memory: HDF5 crashes on a full disk.

    Args:
        attributes: everything of the layout's attributes except format and versions.
        n_examples, n_samples: places per feature.
        words: of the vocabulary.
        token_counts: occurrences of all tokens in the text.
        outputs: promoted and suppressed tokens per feature, together.
    """

    def __init__(
        self,
        attributes: dict[str, Any],
        n_examples: int,
        n_samples: int,
        words: Words,
        token_counts: np.ndarray,
        outputs: int,
    ):
        self.n_layers, self.d_sae = len(attributes["layers"]), attributes["d_sae"]
        self.token_counts, self.n_tokens = token_counts, attributes["n_tokens"]
        self.words, vocabulary = words, words.vocabulary
        self._token_type = smallest_type(len(vocabulary))
        self._feature_type = smallest_type(self.d_sae)
        self._entries: list[tuple[np.ndarray, ...]] = []
        # version 1.10 of the format has a smaller table of chunks
        self._file = h5py.File(
            "index", "w", driver="core", backing_store=False, libver=("v110", "v110")
        )
        versions = {"schema_version": SCHEMA_VERSION, "saekit": __version__}
        self._file.attrs.update(
            {"format": FORMAT, "classes": [*words.classes], **versions, **attributes}
        )
        texts = [text.encode() for text in vocabulary]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
        self._store("vocabulary/bytes", np.frombuffer(b"".join(texts), np.uint8))
        self._store("vocabulary/offsets", offsets.astype(np.uint32))
        self._store("vocabulary/counts", token_counts.astype(np.uint32))
        for name, tail, dtype in (
            ("features/count", (), np.uint32),
            ("features/mean", (), np.float32),
            ("features/maximum", (), np.float32),
            ("features/log2_range", (), np.int16),
            ("features/histogram", (BINS,), np.uint32),
            ("features/token", (TOKENS,), self._token_type),
            ("features/token_count", (TOKENS,), np.uint32),
            ("features/token_mean", (TOKENS,), np.float16),
            ("features/token_max", (TOKENS,), np.float16),
            ("features/output_token", (outputs,), self._token_type),
            ("features/output_value", (outputs,), np.float16),
            ("features/word", (1,), self._token_type),
            ("features/word_share", (1,), np.uint8),
            ("features/before", (NEIGHBOURS,), self._token_type),
            ("features/before_share", (NEIGHBOURS,), np.uint8),
            ("features/after", (NEIGHBOURS,), self._token_type),
            ("features/after_share", (NEIGHBOURS,), np.uint8),
            ("features/entropy", (), np.uint8),
            ("features/class", (), np.uint8),
            ("features/class_share", (), np.uint8),
            ("features/same_layer", (RELATIVES,), self._feature_type),
            ("features/same_correlation", (RELATIVES,), np.uint8),
            ("features/next_layer", (RELATIVES,), self._feature_type),
            ("features/next_correlation", (RELATIVES,), np.uint8),
        ):
            self._create(name, tail, dtype)
        for group, places in (("examples", n_examples), ("samples", n_samples)):
            self._create(f"{group}/row", (places,), np.int32)
            self._create(f"{group}/place", (places,), np.uint16)
            self._create(f"{group}/value", (places,), np.float16)
            self._create(f"{group}/window", (places, WINDOW), np.uint8)

    def _create(self, name: str, tail: tuple[int, ...], dtype: Any) -> None:
        whole = not tail  # one number per feature is read for all features at once
        self._file.create_dataset(
            name,
            (self.n_layers, self.d_sae, *tail),
            dtype,
            chunks=(1, self.d_sae if whole else min(_CHUNK, self.d_sae), *tail),
            compression="gzip",
            compression_opts=9,
            shuffle=True,
        )

    def _store(self, name: str, array: np.ndarray, chunk: int | None = None) -> None:
        options: dict[str, Any] = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
        if chunk is not None:
            options["chunks"] = (min(chunk, max(1, len(array))), *array.shape[1:])
        self._file.create_dataset(name, data=array, **(options if array.size else {}))

    def write_layer(
        self,
        slot: int,
        moments: Moments,
        pairs: PairTable,
        kept: dict[str, KeptExamples],
        output_token: np.ndarray,
        output_value: np.ndarray,
        per_token: int,
        neighbours: dict[str, PairTable],
        relatives: dict[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Store one layer.

        Args:
            kept: "examples" and "samples".
            neighbours: words "before" and "after" the positions where a feature is active.
            relatives: correlated features of the "same" and the "next" layer, the last one's are 0.
        """
        maximum = moments.largest
        columns = {
            "count": moments.count,
            "mean": moments.mean,
            "maximum": maximum,
            "log2_range": np.where(maximum > 0, moments.log2_range, 0),
            "histogram": moments.histogram,
            "output_token": output_token,
            "output_value": shortened(output_value),
            **self._feature_tokens(pairs, maximum),
            **self._feature_words(pairs, moments, neighbours),
        }
        for name, (feature, correlation) in relatives.items():
            columns[f"{name}_layer"] = feature
            columns[f"{name}_correlation"] = bytes_of(correlation)
        for name, column in columns.items():
            self._set(f"features/{name}", slot, column)
        for group, table in kept.items():
            steps = table.window / np.where(maximum > 0, maximum, 1)[:, None, None] * 255
            window = np.ceil(steps - 1e-3).clip(0, 255)  # the maximum itself is 255, not 256
            used = table.used
            self._set(f"{group}/row", slot, np.where(used, table.row, -1))
            self._set(f"{group}/place", slot, np.where(used, table.place, 0))
            self._set(f"{group}/value", slot, shares(table.value, maximum[:, None]) * used)
            self._set(f"{group}/window", slot, window * used[..., None])
        self._entries.append(self._token_features(slot, pairs, moments, per_token))

    def _set(self, name: str, slot: int, column: np.ndarray) -> None:
        dataset = self._file[name]
        assert isinstance(dataset, h5py.Dataset)
        dataset[slot, : len(column)] = column.astype(dataset.dtype)

    def _feature_tokens(self, pairs: PairTable, maximum: np.ndarray) -> dict[str, np.ndarray]:
        """The tokens with the most total activation of every feature."""
        feature = pairs.feature
        chosen, rank = best_of_each(feature, pairs.total, TOKENS)
        feature = feature[chosen]
        count, mean = pairs.count[chosen], pairs.total[chosen] / pairs.count[chosen]
        columns = {
            "token": pairs.token[chosen],
            "token_count": count,
            "token_mean": shares(mean, maximum[feature]),
            "token_max": shares(pairs.largest[chosen], maximum[feature]),
        }
        result = {}
        for name, column in columns.items():
            result[name] = np.zeros((self.d_sae, TOKENS), column.dtype)
            result[name][feature, rank] = column
        return result

    def _feature_words(
        self, pairs: PairTable, moments: Moments, neighbours: dict[str, PairTable]
    ) -> dict[str, np.ndarray]:
        """Current, previous and next words by their share of a feature's activation; its class."""
        d_sae = len(moments.count)
        total = np.where(moments.total > 0, moments.total, 1)
        of_word = pairs.under(self.words.of_token[pairs.token])
        columns = {}
        for name, table, limit in (
            ("word", of_word, 1),
            ("before", neighbours["before"], NEIGHBOURS),
            ("after", neighbours["after"], NEIGHBOURS),
        ):
            chosen, rank = best_of_each(table.feature, table.total, limit)
            at = (table.feature[chosen], rank)
            columns[name] = np.zeros((d_sae, limit), np.int64)
            columns[name][at] = self._representatives[table.token[chosen]]
            share = np.zeros((d_sae, limit))
            share[at] = table.total[chosen] / total[table.feature[chosen]]
            columns[f"{name}_share"] = bytes_of(share)
        columns["entropy"] = bytes_of(normalised_entropy(of_word.feature, of_word.total, d_sae))
        columns["class"], share = self._class(pairs, total)
        columns["class_share"] = bytes_of(share)
        return columns

    @cached_property
    def _representatives(self) -> np.ndarray:
        """The most frequent token of every word."""
        order = np.argsort(self.token_counts, kind="stable")
        result = np.zeros(len(self.words.texts), np.int64)
        result[self.words.of_token[order]] = order  # the last assignment stays
        return result

    def _class(self, pairs: PairTable, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the class (from 1; 0 for none) and its share of each feature's activation."""
        if not self.words.classes:
            return np.zeros(len(total), np.int64), np.zeros(len(total))
        members = np.zeros((len(self.words.classes), len(self.token_counts)))
        for number, ids in enumerate(self.words.classes.values()):
            members[number, ids] = 1
        frequency = members @ self.token_counts / max(1, self.n_tokens)
        feature, token = pairs.feature, pairs.token
        share = np.stack(
            [np.bincount(feature, pairs.total * row[token], len(total)) / total for row in members]
        )
        lift = share / np.maximum(frequency, 1e-9)[:, None]
        best = np.where(share >= CLASS_SHARE, 1 + lift, 0).argmax(0)
        best = np.where(share.max(0) >= CLASS_SHARE, best, share.argmax(0))
        value = np.take_along_axis(share, best[None], 0)[0]
        return np.where(value > 0, best + 1, 0), value

    def _token_features(
        self, slot: int, pairs: PairTable, moments: Moments, per_token: int
    ) -> tuple[np.ndarray, ...]:
        """Entries of the token table: for every token the features that are first by some rank."""
        share = pairs.count / np.maximum(1, self.token_counts[pairs.token])
        listed = np.flatnonzero((share >= MIN_SHARE) & (pairs.count >= MIN_COUNT))
        entries = pairs.entries[listed]
        token, feature = pairs.token[listed], pairs.feature[listed]
        count, mean = entries["count"], entries["total"] / entries["count"]
        maximum, times = moments.largest[feature], moments.count[feature]
        purity = entries["total"] / moments.total[feature]
        lift = share[listed] / times
        scores = {
            "match": purity * share[listed] * entries["largest"] / maximum,
            "purity": purity, "lift": lift, "mean": mean, "max": entries["largest"],
            "density": -times.astype(np.float64),
        }  # fmt: skip
        chosen, rank = best_of_each(token, purity, per_token)
        keep = [chosen[(purity[chosen] >= MIN_PURITY) | (rank < PER_RANK)]]
        for name, score in scores.items():
            # equal ones as a search orders them
            ties = (lift,) if name == "density" else (mean, count)
            keep.append(best_of_each(token, score, PER_RANK, ties)[0])
        at = np.unique(np.concatenate(keep))
        at = at[np.lexsort((-purity[at], token[at]))]
        return (
            token[at],
            np.full(len(at), slot, np.uint8),
            feature[at].astype(self._feature_type),
            count[at].astype(np.uint32),
            shares(mean[at], maximum[at]),
            shares(entries["largest"][at], maximum[at]),
        )

    def write_contexts(self, contexts: np.ndarray) -> None:
        """Store the rows of text that examples point into."""
        self._store("contexts", contexts.astype(self._token_type), chunk=16)

    def finish(self) -> bytes:
        """Store the token table; returns the bytes of the whole file."""
        columns = [np.concatenate(parts) for parts in zip(*self._entries, strict=True)]
        order = np.argsort(columns[0], kind="stable")  # within a token: layers, then falling purity
        token, *columns = (column[order] for column in columns)
        start = np.searchsorted(token, np.arange(len(self.token_counts) + 1))
        self._store("tokens/start", start.astype(np.int64))
        for name, column in zip(("layer", "feature", "count", "mean", "max"), columns, strict=True):
            self._store(f"tokens/{name}", column, chunk=_ENTRIES)
        self._file.flush()
        return self._file.id.get_file_image()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
