"""Names as predicates: at which positions of a text a name says that its feature is active.

input    the token read is the word (any form: see `saekit.features.names.lexicons`)
class    it belongs to the class
output   the token that the model itself finds most likely next is the word
context  one of the words is among the 15 tokens before, in the same document
"""

import numpy as np
from jaxtyping import Int

from saekit.features.held_out import HeldOut
from saekit.features.index.index_file import BEFORE
from saekit.features.names.lexicons import CLASSES, Words


class _ByWord:
    """Positions of every word, ascending."""

    def __init__(self, numbers: Int[np.ndarray, " position"], n_words: int):
        order = np.argsort(numbers, kind="stable")
        self._order, ordered = order, numbers[order]
        self._start = np.searchsorted(ordered, np.arange(n_words + 1))

    def __getitem__(self, number: int) -> Int[np.ndarray, " hit"]:
        return self._order[self._start[number] : self._start[number + 1]]


class Predicates:
    """Where names hold in one text.

    Args:
        text: the text.
        words: of the vocabulary.
    """

    def __init__(self, text: HeldOut, words: Words):
        self._text, self._words = text, words
        of_token = np.append(words.of_token, -1)  # token -1 (BOS) is no word
        self._current = _ByWord(of_token[text.tokens], len(words.texts))
        following = np.where(text.tokens >= 0, of_token[text.predicted], -1)
        self._next = _ByWord(following, len(words.texts))
        self._kept: dict[tuple[str, str], np.ndarray] = {}

    def positions(self, kind: str, text: str) -> Int[np.ndarray, " hit"]:
        """The positions at which a name of a kind holds, ascending; none for an unknown word."""
        key = (kind, text)
        if key not in self._kept:
            self._kept[key] = self._found(kind, text)
        return self._kept[key]

    def _found(self, kind: str, text: str) -> Int[np.ndarray, " hit"]:
        if kind == "class":
            members = self._words.members(text) if text in CLASSES else []
            return np.flatnonzero(np.isin(self._text.tokens, members))
        if kind == "context":
            return self._after([word for word in text.split(", ")])
        number = self._words.number(text)
        if number is None:
            return np.zeros(0, np.int64)
        return (self._next if kind == "output" else self._current)[number]

    def _after(self, words: list[str]) -> Int[np.ndarray, " hit"]:
        tokens = self._text.tokens
        width = self._text.rows.shape[1]
        numbers = [n for word in words if (n := self._words.number(word)) is not None]
        holds = np.zeros(len(tokens), bool)
        for start in (p for n in numbers for p in self._current[n].tolist()):
            end = min(start + BEFORE + 1, (start // width + 1) * width)
            ends = np.flatnonzero(tokens[start + 1 : end] < 0)
            holds[start + 1 : start + 1 + int(ends[0]) if len(ends) else end] = True
        return np.flatnonzero(holds & (tokens >= 0))
