"""Where text comes from, by name: files, folders, data sets, and the text that saekit brings.

    generated                   relational English, made by saekit
    prose                       the prose that comes with saekit
    PATH                        a file or folder (`saekit.text.corpora`), or a data set's folder
    hf:owner/name[:config[:split]]  a data set on the Hugging Face hub, streamed; `hf:` may be left
                                out where there is no file or folder of that name

`open_text` turns a list of sources into one endless, deterministic stream of documents in which
every source has the same share of characters.  Part of the built-in text is kept for measuring.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle
from pathlib import Path

from saekit.errors import InputError
from saekit.text import relational
from saekit.text.corpora import prose, read_files, text_files
from saekit.text.data_sets import PREFIX, hub_id, is_saved, read_hub, read_saved
from saekit.text.packing import Document

BUILT_IN = ("generated", "prose")
HELD_OUT_EVERY = 5  # each fifth document of the prose is kept for measuring
CHARACTERS_PER_TOKEN = 4  # of English in GPT-2's tokens, to weigh ids against text
_HELD_OUT_SEED = 1_000_000


def _prose_part(held_out: bool) -> list[str]:
    return [d for i, d in enumerate(prose()) if (i % HELD_OUT_EVERY == 0) == held_out]


def read_source(source: str) -> Iterator[Document]:
    """The documents of one path or data set, once: texts, or arrays of token ids.

    Raises:
        InputError: nothing readable there (said now), or a broken file (said when it is reached).
    """
    path = Path(source)
    if path.exists() and not source.startswith(PREFIX):
        if is_saved(path):
            return read_saved(path)
    elif wanted := hub_id(source):
        return read_hub(wanted)
    text_files(path)
    return read_files([path])


def _open_source(source: str, seed: int, held_out: bool) -> Iterator[Document]:
    if source == "generated":
        return relational.documents(seed=seed + held_out * _HELD_OUT_SEED)
    if source == "prose":
        return cycle(_prose_part(held_out))
    first = read_source(source)  # a wrong name is reported now, not in the middle of a run
    return chain(first, _repeated(lambda: read_source(source)))


def _repeated(open_once: Callable[[], Iterator[Document]]) -> Iterator[Document]:
    while True:
        yield from open_once()


def open_text(
    sources: Sequence[str] | None = None, seed: int = 0, held_out: bool = False
) -> Iterator[Document]:
    """An endless stream of documents; the same arguments give the same stream.

    Args:
        sources: names as above; None means both built-in sources.
        seed: of the generated text.
        held_out: the part of the built-in text that training never sees; files are read as they
            are, so name other files for measuring.

    Raises:
        InputError: no such source, or nothing readable there.
    """
    names = tuple(sources) if sources else BUILT_IN
    streams = [_open_source(str(name), seed, held_out) for name in names]
    return _interleaved(streams)


def _characters(document: Document) -> float:
    return len(document) * (1 if isinstance(document, str) else CHARACTERS_PER_TOKEN)


def _interleaved(streams: list[Iterator[Document]]) -> Iterator[Document]:
    if not streams:
        raise InputError("No text was named.")
    characters = [0.0] * len(streams)
    while True:
        least = characters.index(min(characters))
        document = next(streams[least])
        characters[least] += max(1, _characters(document))  # rows of no ids would never end
        yield document
