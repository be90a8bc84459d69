"""Which features fire on which tokens: running counts in tables of fixed size.  Torch-free.

The tables are hashed, in C++, and take all their memory when they are made, so that memory
does not grow with the text.  Without a compiler they are sorted by NumPy: the same numbers but for
the rounding of sums, several times slower.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saekit.native.library import library

SOURCE = "token_pairs"
PAIRS_PER_FEATURE = 192
ENTRY = np.dtype([("key", "i8"), ("total", "f8"), ("count", "i4"), ("largest", "f4")])
_FREE = -1  # key of a free slot
_ROOM = 2.0  # times the limit: what may be there before the rarest are forgotten
_SLOTS = 8 / 3  # times the limit: a table three quarters full is still fast
_PART = 1 / 8  # of the limit: activations counted at once, all of which may be new pairs


@dataclass(frozen=True)
class PairTable:
    """Counted pairs, sorted by token and feature; without (token, feature) twice.

    Attributes:
        d_sae: features of the layer.
        entries: of type `ENTRY`: key (token * d_sae + feature), count, total and largest.
    """

    d_sae: int
    entries: np.ndarray

    @property
    def token(self) -> Int[np.ndarray, " pair"]:
        return self.entries["key"] // self.d_sae

    @property
    def feature(self) -> Int[np.ndarray, " pair"]:
        return self.entries["key"] % self.d_sae

    @property
    def count(self) -> Int[np.ndarray, " pair"]:
        return self.entries["count"]

    @property
    def total(self) -> Float[np.ndarray, " pair"]:
        return self.entries["total"]

    @property
    def largest(self) -> Float[np.ndarray, " pair"]:
        return self.entries["largest"]

    def under(self, token: Int[np.ndarray, " pair"]) -> "PairTable":
        """The same counts under other tokens (words, say), of which several may be one."""
        moved = self.entries.copy()
        moved["key"] = token.astype(np.int64) * self.d_sae + self.feature
        moved = moved[np.argsort(moved["key"], kind="stable")]
        return PairTable(self.d_sae, _reduced(moved))


class CountedPairs:
    """Which features fire on which tokens: count, total and largest per (token, feature) pair.

    Tokens may be words instead (names/lexicons.py), of the current or another position.
    At most 2 * `per_feature` * d_sae pairs are held; before there would be more, the table is
    brought down to half of that: the pairs with the smallest counts (of equal ones those
    with the smallest largest activation) are forgotten, so that only rare pairs of very long texts
    can be undercounted.

    Args:
        d_sae: features of the layer.
        per_feature: pairs to keep, on average.
        shares: forget by the share of the feature's activations instead of by count: for tables
            that only tell the most frequent tokens of each feature.
    """

    def __init__(self, d_sae: int, per_feature: int = PAIRS_PER_FEATURE, shares: bool = False):
        self.d_sae, self.shares = d_sae, shares
        self.limit = per_feature * d_sae
        self._functions = library(SOURCE)
        # hashed: all slots; sorted: the pairs alone
        self._entries = np.empty(int(_SLOTS * self.limit) + 1 if self._functions else 0, ENTRY)
        self._entries["key"] = _FREE
        self.used = 0

    def add(
        self,
        token: Int[np.ndarray, " n"],
        feature: Int[np.ndarray, " n"],
        value: Float[np.ndarray, " n"],
    ) -> None:
        """Count activations; those of negative tokens do not count."""
        part = max(1, int(_PART * self.limit))
        columns = (token.astype(np.int32), feature.astype(np.int32), value.astype(np.float32))
        for start in range(0, len(value), part):
            own = [column[start : start + part] for column in columns]
            if self.used + len(own[0]) > _ROOM * self.limit:
                self._forget()
            (self._hash if self._functions else self._sort)(*own)

    def _hash(self, token: np.ndarray, feature: np.ndarray, value: np.ndarray) -> None:
        assert self._functions is not None
        self.used += self._functions.count_pairs(
            self._entries, len(self._entries), self.d_sae, token, feature, value, len(value)
        )

    def _sort(self, token: np.ndarray, feature: np.ndarray, value: np.ndarray) -> None:
        counted = token >= 0
        token, feature, value = token[counted], feature[counted], value[counted]
        order = _ascending(feature)
        order = order[_ascending(token[order])]
        new = np.empty(len(order), ENTRY)
        new["key"] = (token.astype(np.int64) * self.d_sae + feature)[order]
        new["count"], new["total"], new["largest"] = 1, value[order], value[order]
        new, old = _reduced(new), self._entries
        at = np.searchsorted(old["key"], new["key"])
        known = old["key"][np.minimum(at, len(old) - 1)] == new["key"] if len(old) else at < 0
        place = at[known]
        old["count"][place] += new["count"][known]
        old["total"][place] += new["total"][known]
        old["largest"][place] = np.maximum(old["largest"][place], new["largest"][known])
        self._entries = np.insert(old, at[~known], new[~known])
        self.used = len(self._entries)

    def _forget(self) -> None:
        """Keep the `limit` most frequent pairs."""
        entries = self._present()
        surplus = len(entries) - self.limit
        if surplus <= 0:
            return
        largest = entries["largest"].astype(np.float64)
        largest /= 2 * max(largest.max(), 1e-300)  # decides among equal counts
        score = entries["count"] + largest
        if self.shares:
            feature = entries["key"] % self.d_sae
            score /= np.bincount(feature, entries["count"], self.d_sae)[feature]
        self._fill(entries[score > np.partition(score, surplus - 1)[surplus - 1]])

    def _present(self) -> np.ndarray:
        return self._entries[self._entries["key"] != _FREE]

    def _fill(self, entries: np.ndarray) -> None:
        """Hold these pairs and no others."""
        self.used = len(entries)
        if self._functions is None:
            self._entries = entries
            return
        self._entries["key"] = _FREE
        self._functions.put_pairs(self._entries, len(self._entries), entries, len(entries))

    def table(self) -> PairTable:
        """A copy of what was counted."""
        entries = self._present()
        return PairTable(self.d_sae, entries[np.argsort(entries["key"], kind="stable")])

    def finish(self) -> PairTable:
        """What was counted; the memory of the counting is given up, so nothing can be added."""
        table = self.table()
        del self._entries
        return table

    def restore(self, entries: np.ndarray) -> None:
        """Go on from the entries of a `table`.

        Raises:
            ValueError: they are not entries, or more than there is room for.
        """
        if entries.dtype != ENTRY or len(entries) > _ROOM * self.limit:
            raise ValueError(f"{len(entries)} pairs of type {entries.dtype} do not fit")
        self._fill(entries)


def _ascending(column: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """A stable argsort of small numbers by counting, in linear time: a sparse transposition."""
    starts = np.arange(len(column) + 1, dtype=np.int32)
    shape = (len(column), int(column.max(initial=0)) + 1)
    return csr_array((np.zeros(len(column), np.int8), column, starts), shape=shape).tocsc().indices


def _reduced(entries: np.ndarray) -> np.ndarray:
    """One entry per key, of entries sorted by key."""
    key = entries["key"]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    if not len(starts):
        return entries
    result = np.empty(len(starts), ENTRY)
    result["key"] = key[starts]
    for name, join in (("count", np.add), ("total", np.add), ("largest", np.maximum)):
        result[name] = join.reduceat(entries[name], starts)
    return result
