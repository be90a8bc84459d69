"""Text cut into pieces, each of which belongs to one part for good: chosen on one, told on another.

A hash of a piece's content says which part it is in, so that a piece that comes twice is never on
both sides, whatever the order of the text.
"""

from collections.abc import Iterable, Iterator
from zlib import crc32

from saekit.text.packing import Document

INDEX, CHOOSE, REPORT = (0, 1), (2,), (3,)  # of PARTS
"""What the index and the names are made from; on what names are chosen; on what they are scored."""
PARTS = 4
_PIECE = 2000  # characters: a text of one long document still has several parts
_PIECE_IDS = 500
_MAX_REPEATED = 20_000  # repeated pieces in a row: a short text without end


def pieces(document: Document) -> Iterator[Document]:
    """A document cut into pieces of at most about 2,000 characters (between words) or 500 ids."""
    if not isinstance(document, str):
        yield from (document[at : at + _PIECE_IDS] for at in range(0, len(document), _PIECE_IDS))
        return
    start = 0
    while len(document) - start > _PIECE:
        cut = document.rfind(" ", start + 1, start + _PIECE)
        cut = cut if cut > 0 else start + _PIECE
        yield document[start:cut]
        start = cut
    yield document[start:]


def part_of(piece: Document, parts: int = PARTS) -> int:
    """0 .. parts - 1, decided by the content alone."""
    return crc32(piece.encode() if isinstance(piece, str) else piece.tobytes()) % parts


def only_parts(documents: Iterable[Document], wanted: tuple[int, ...]) -> Iterator[Document]:
    """The pieces of some parts, repeated as often as the text repeats them."""
    for document in documents:
        for piece in pieces(document):
            if part_of(piece) in wanted:
                yield piece


def new_pieces(documents: Iterable[Document]) -> Iterator[Document]:
    """Every piece once; an endless text that only repeats itself ends."""
    seen: set[int] = set()
    repeated = 0
    for document in documents:
        for piece in pieces(document):
            key = hash(piece if isinstance(piece, str) else piece.tobytes())
            repeated = repeated + 1 if key in seen else 0
            if repeated > _MAX_REPEATED:
                return
            if not repeated:
                seen.add(key)
                yield piece
