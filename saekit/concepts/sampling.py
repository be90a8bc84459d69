"""Held-out text in two halves, with rare words made frequent and weights that undo it.

Documents are cut into pieces; a piece that comes twice is read once, and a hash of its text says
which half it belongs to: features are chosen on one half and scored on the other.  In each half,
pieces that contain a wanted word are one *stratum*, all others the second.  A word that comes once
in ten thousand tokens would need millions of tokens to be scored; so half of what is read
comes from the first stratum, and every position carries the weight (characters met / characters
run through the model) of its stratum.  Scores with these weights estimate those of the text as it
is.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from saekit.text.corpora import only_texts
from saekit.text.parts import new_pieces, part_of

WANTED_SHARE = 0.5
FREQUENT = 0.05  # share of pieces with a word, above which it needs no help
_MAX_WAITING = 500  # pieces kept per stratum while another one is being filled
_MAX_MISSED = 20_000  # pieces without a new one for a stratum: there will be no more
_PROBE = 300  # pieces that tell how frequent the wanted words are


def half_of(piece: str) -> int:
    """0 or 1, decided by the text alone."""
    return part_of(piece, 2)


@dataclass
class Stratum:
    """The pieces of one half with (or without) a wanted word.

    Attributes:
        met: characters that came by, handed out or not.
        open: whether pieces are still kept for it.
    """

    half: int
    wanted: bool
    met: int = 0
    open: bool = True
    waiting: deque[str] = field(default_factory=deque)


class Sampler:
    """Divides a stream of documents into strata, each read at its own pace.

    Args:
        documents: the text, possibly endless; it is read as far as needed.
        words: words to look for, without regard to case; those in more than 5% of the first pieces
            are frequent enough and are left alone.
    """

    def __init__(self, documents: Iterable[str], words: Sequence[str]):
        self._stream = only_texts(new_pieces(documents))
        probe = [piece for _, piece in zip(range(_PROBE), self._stream, strict=False)]
        rare = [w for w in words if _share_with(w, probe) <= FREQUENT]
        self._pattern = _pattern(rare) if rare else None
        self.strata = [Stratum(half, wanted) for half in (0, 1) for wanted in (True, False)]
        for piece in probe:
            self._put(piece)

    def _put(self, piece: str) -> Stratum:
        wanted = self._pattern is not None and self._pattern.search(piece) is not None
        stratum = self.strata[2 * half_of(piece) + (not wanted)]
        stratum.met += len(piece)
        if stratum.open and len(stratum.waiting) < _MAX_WAITING:
            stratum.waiting.append(piece)
        return stratum

    def read(self, stratum: Stratum) -> Iterator[str]:
        """The pieces of one stratum, until there are no more."""
        while True:
            missed = 0
            while not stratum.waiting:
                piece = next(self._stream, None)
                if piece is None or missed > _MAX_MISSED:
                    return
                missed = 0 if self._put(piece) is stratum else missed + 1
            yield stratum.waiting.popleft()

    def close(self, stratum: Stratum) -> None:
        """No more of this stratum is needed; what comes is only counted."""
        stratum.open = False
        stratum.waiting.clear()

    def share(self, stratum: Stratum) -> float:
        """Which share of its half should be read from a stratum."""
        if self._pattern is None:
            return float(not stratum.wanted)
        return WANTED_SHARE if stratum.wanted else 1 - WANTED_SHARE


def _share_with(word: str, sample: Sequence[str]) -> float:
    pattern = _pattern([word])
    return sum(pattern.search(piece) is not None for piece in sample) / max(len(sample), 1)


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
