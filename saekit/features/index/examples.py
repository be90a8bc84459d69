"""The best places in the text for every feature of a layer, kept while the text streams by.

Torch-free.  A `Chunk` is what was read at once; `KeptExamples` is a table [feature, place] that is
merged with each chunk, in C++ (examples.cpp) or, without a compiler, the same by NumPy.  Examples
of one feature come from distinct contexts: at most one per row, and never two that end in the same
`SUFFIX` tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from saekit.features.index.index_file import AFTER, BEFORE
from saekit.features.index.statistics import best_of_each
from saekit.native.library import library

SOURCE = "examples"
WINDOW = BEFORE + 1 + AFTER
SUFFIX = 8
_HASH = np.uint64(0x9E3779B97F4A7C15)  # an odd constant that spreads bits (2**64 / golden ratio)
_BLOCK = 4096


@dataclass
class Chunk:
    """Rows of text with the active features of one layer.

    Attributes:
        ids: token ids.
        first_row: number of the first row in the whole text.
        suffix: hash of the last tokens at each position, see `suffix_hashes`.
        values: activations, 0 where a place is unused and at BOS.
        features: which feature each value belongs to.
    """

    ids: Int[np.ndarray, "row pos"]
    first_row: int
    suffix: np.ndarray
    values: Float[np.ndarray, "row pos k"]
    features: Int[np.ndarray, "row pos k"]

    @cached_property
    def active(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(position, feature, value) of every active feature; positions are row * pos + place."""
        at = np.flatnonzero(self.values > 0)
        position = (at // self.values.shape[-1]).astype(np.int32)
        return position, self.features.ravel()[at], self.values.ravel()[at]

    def windows(
        self,
        row: Int[np.ndarray, " n"],
        place: Int[np.ndarray, " n"],
        feature: Int[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n window"]:
        """Activations of one feature each, around places; 0 beyond the row."""
        result = np.zeros((len(row), WINDOW), np.float32)
        columns = place[:, None] + np.arange(-BEFORE, AFTER + 1)
        inside = (columns >= 0) & (columns < self.ids.shape[1])
        columns = np.where(inside, columns, 0)
        for start in range(0, len(row), _BLOCK):
            part = slice(start, start + _BLOCK)
            at = (row[part, None], columns[part])
            same = self.features[at] == feature[part, None, None].astype(self.features.dtype)
            result[part] = np.where(same, self.values[at], 0).sum(-1) * inside[part]
        return result


def suffix_hashes(ids: Int[np.ndarray, "row pos"], bos: int) -> np.ndarray:
    """A hash of the last `SUFFIX` tokens of the same document, at each position."""
    result = np.zeros(ids.shape, np.uint64)
    same_document = np.ones(ids.shape, bool)
    for back in range(min(SUFFIX, ids.shape[1])):
        shifted = np.full(ids.shape, bos, ids.dtype)
        shifted[:, back:] = ids[:, : ids.shape[1] - back]
        same_document &= shifted != bos
        with np.errstate(over="ignore"):
            result = (result ^ (shifted.astype(np.uint64) + np.uint64(1)) * same_document) * _HASH
            result ^= result >> np.uint64(29)
    return result


class KeptExamples:
    """Per feature the `per_feature` places of the highest score.

    Attributes (all [feature, place], strongest first):
        score: -inf where unused.
        value: activation.
        row: of the whole text.
        place: tensor index in the row.
        window: activations around it, [feature, place, WINDOW].
    """

    def __init__(self, d_sae: int, per_feature: int):
        shape = (d_sae, per_feature)
        self.per_feature = per_feature
        self.score = np.full(shape, -np.inf, np.float32)
        self.value = np.zeros(shape, np.float32)
        self.row = np.full(shape, -1, np.int32)
        self.place = np.zeros(shape, np.uint16)
        self.suffix = np.zeros(shape, np.uint64)
        self.window = np.zeros((*shape, WINDOW), np.float32)

    def offer(self, chunk: Chunk, score: Float[np.ndarray, " n"]) -> None:
        """Take what is better than the kept places.

        Args:
            chunk: what was read.
            score: one number for each entry of `chunk.active`; the higher the better.
        """
        functions = library(SOURCE)
        if functions is None:
            self._merge(chunk, score)
            return
        _, pos, k = chunk.values.shape
        position, feature, value = chunk.active
        functions.merge(
            len(value), position, feature, value, score, chunk.values, chunk.features,
            chunk.suffix, chunk.first_row, pos, k, self.per_feature, BEFORE, WINDOW,
            self.score, self.value, self.row, self.place, self.suffix, self.window,
        )  # fmt: skip

    def _merge(self, chunk: Chunk, score: Float[np.ndarray, " n"]) -> None:
        """`offer` by NumPy."""
        position, feature, value = chunk.active
        better = np.flatnonzero(score > np.take(self.score[:, -1], feature))
        if not len(better):
            return
        position, feature, value, score = (
            column[better] for column in (position, feature, value, score)
        )
        row, place = np.divmod(position, chunk.ids.shape[1])
        touched = np.unique(feature)
        kept_feature, kept_slot = np.nonzero(np.isfinite(self.score[touched]))
        kept_feature = touched[kept_feature]
        kept = (kept_feature, kept_slot)

        all_feature = np.concatenate([feature, kept_feature])
        all_score = np.concatenate([score, self.score[kept]])
        all_row = np.concatenate([row + chunk.first_row, self.row[kept]]).astype(np.uint64)
        all_suffix = np.concatenate([chunk.suffix[row, place], self.suffix[kept]])
        order = np.lexsort((-all_score, all_feature))
        with np.errstate(over="ignore"):
            salt = all_feature.astype(np.uint64) * _HASH
            for key in (all_row * np.uint64(2**40 + 15), all_suffix):
                order = order[_first_of_each((key ^ salt)[order])]
        chosen, rank = best_of_each(all_feature[order], all_score[order], self.per_feature)
        chosen = order[chosen]

        n = len(feature)
        new = chosen < n
        from_chunk, to_new = chosen[new], (all_feature[chosen[new]], rank[new])
        old = chosen[~new] - n
        from_kept = (kept_feature[old], kept_slot[old])
        to_old = (kept_feature[old], rank[~new])
        sources = {
            "score": score, "value": value, "row": row + chunk.first_row, "place": place,
            "suffix": chunk.suffix[row, place],
        }  # fmt: skip
        windows = chunk.windows(row[from_chunk], place[from_chunk], feature[from_chunk])
        for name in ("score", "value", "row", "place", "suffix", "window"):
            table = getattr(self, name)
            moved = table[from_kept]
            if name == "score":
                table[touched] = -np.inf
            table[to_old] = moved
            table[to_new] = windows if name == "window" else sources[name][from_chunk]

    def thin_by_quantile(self, per_feature: int) -> None:
        """Keep one place from each of `per_feature` equal ranges of rank, strongest first.

        For places that were drawn at random: these are quantile ranges of all activations, as far
        as the drawn ones tell.
        """
        names = ("score", "value", "row", "place", "suffix", "window")
        order = np.argsort(np.where(self.used, -self.value, np.inf), -1, kind="stable")
        n_used = self.used.sum(-1)[:, None]
        # the middle of each range; where there are no more places than ranges, all of them
        middle = ((np.arange(per_feature) + 0.5) / per_feature * n_used).astype(np.int64)
        slot = np.where(n_used > per_feature, middle, np.arange(per_feature))
        order = np.take_along_axis(order, np.minimum(slot, self.per_feature - 1), -1)
        for name in names:
            column = getattr(self, name)
            at = order[..., None] if name == "window" else order
            setattr(self, name, np.take_along_axis(column, at, 1))
        self.per_feature = per_feature

    @property
    def used(self) -> np.ndarray:
        """Which places hold an example."""
        return np.isfinite(self.score)


def _first_of_each(key: np.ndarray) -> Int[np.ndarray, " m"]:
    """Indices of the first occurrence of every value, ascending."""
    return np.sort(np.unique(key, return_index=True)[1])
