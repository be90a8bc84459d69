"""Where text comes from, by name: files and folders, generated relational English, the prose.

`open_text` turns a list of sources into one endless, deterministic stream of documents in which
every source has the same share of characters.  Part of the built-in text is kept for measuring.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

from saekit.errors import InputError
from saekit.text import relational
from saekit.text.corpora import prose, read_documents, text_files
from saekit.text.packing import Document

BUILT_IN = ("generated", "prose")
HELD_OUT_EVERY = 5  # each fifth document of the prose is kept for measuring
_HELD_OUT_SEED = 1_000_000


def _prose_part(held_out: bool) -> list[str]:
    return [d for i, d in enumerate(prose()) if (i % HELD_OUT_EVERY == 0) == held_out]


def _repeated(open_once: Callable[[], Iterator[str]]) -> Iterator[str]:
    while True:
        yield from open_once()


def read_source(source: str) -> Iterator[Document]:
    """The documents of one source, once."""
    return read_documents([source])


def _open_source(source: str, seed: int, held_out: bool) -> Iterator[str]:
    if source == "generated":
        return relational.documents(seed=seed + held_out * _HELD_OUT_SEED)
    if source == "prose":
        return cycle(_prose_part(held_out))
    text_files(source)  # a wrong path is reported now, not in the middle of a run
    return _repeated(lambda: read_documents([source]))


def open_text(
    sources: Sequence[str] | None = None, seed: int = 0, held_out: bool = False
) -> Iterator[str]:
    """An endless stream of documents; the same arguments give the same stream.

    Args:
        sources: paths of files or folders, "generated" (relational English) or "prose" (comes
            with saekit); None means both built-in sources.
        seed: of the generated text.
        held_out: the part of the built-in text that training never sees; files are read as they
            are, so name other files for measuring.

    Raises:
        InputError: no such path, or nothing readable there.
    """
    names = tuple(sources) if sources else BUILT_IN
    streams = [_open_source(str(name), seed, held_out) for name in names]
    return _interleaved(streams)


def _interleaved(streams: list[Iterator[str]]) -> Iterator[str]:
    if not streams:
        raise InputError("No text was named.")
    characters = [0] * len(streams)
    while True:
        least = characters.index(min(characters))
        document = next(streams[least])
        characters[least] += len(document)
        yield document
