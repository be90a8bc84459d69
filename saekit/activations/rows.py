"""Rows of token ids for the model: packed from text, started over when it ends, from any place."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from saekit.errors import InputError, TrainingError
from saekit.model.loading import LanguageModel
from saekit.text.corpora import only_texts
from saekit.text.packing import Document, PackedRow, Place, pack_rows
from saekit.text.sources import read_source

Text = str | Path | Iterable[Document] | Iterable[Path] | Callable[[], Iterable[Document]]


def documents_of(text: Text) -> Iterator[Document]:
    """The documents of a text, from its start (a one-shot iterator: from where it stands).

    Args:
        text: a source by name (see `saekit.text.sources.read_source`: a file or folder, or a data
            set), several `Path`s, documents (texts or arrays of token ids), or a function that
            returns documents.

    Raises:
        InputError: nothing readable there.
    """
    if isinstance(text, (str, Path)):
        return read_source(str(text))
    if callable(text):
        return iter(text())
    if isinstance(text, Sequence) and text and all(isinstance(item, Path) for item in text):
        return chain.from_iterable(read_source(str(path)) for path in text)
    return iter(text)  # type: ignore[arg-type]


def texts_of(text: Text) -> Iterator[str]:
    """`documents_of`, for work that needs to see words.

    Raises:
        InputError: a document is token ids.
    """
    return only_texts(documents_of(text))


def _in_vocabulary(model: LanguageModel, documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        if not isinstance(document, str) and len(document):
            low, high = int(document.min()), int(document.max())
            if low < 0 or high >= model.d_vocab:
                raise InputError(
                    f"Token id {low if low < 0 else high} is outside the vocabulary of {model.id} "
                    f"({model.d_vocab} ids): these ids are of another tokenizer."
                )
        yield document


def _packed(
    model: LanguageModel, documents: Iterable[Document], context: int, start: Place
) -> Iterator[PackedRow]:
    if not 2 <= context <= model.n_ctx:
        raise InputError(
            f"A context of {context} tokens is not possible: {model.id} reads 2 to {model.n_ctx}."
        )
    checked = _in_vocabulary(model, documents)
    return pack_rows(
        checked, model.encode_batch, context, model.bos, model.prepend_bos, start=start
    )


def context_rows(
    model: LanguageModel, documents: Iterable[Document], context: int
) -> Iterator[Int[np.ndarray, " context"]]:
    """Packed rows of token ids, documents separated by BOS (see `saekit.text.packing`).

    Raises:
        InputError: `context` is shorter than 2 or longer than the model's; ids that the model
            does not have.
    """
    return (row.ids for row in _packed(model, documents, context, Place()))


def check_length(model: LanguageModel, sources: Sequence[str] | None, context: int) -> None:
    """Refuse files that hold less than one context: `open_text` repeats them without end.

    Text that saekit brings and data sets on the hub are taken to be long enough.

    Raises:
        InputError: too little text, or what `read_source` and `context_rows` say.
    """
    if not sources or not all(Path(source).exists() for source in sources):
        return
    documents = chain.from_iterable(read_source(str(source)) for source in sources)
    if next(context_rows(model, documents, context), None) is None:
        raise _too_short(context)


def _too_short(context: int) -> InputError:
    return InputError(
        f"The text is shorter than one context of {context} tokens; "
        "give more text or a smaller context."
    )


class Rows(NamedTuple):
    """Several contexts: token ids, and the number of the document that each token is of."""

    ids: Int[np.ndarray, "row pos"]
    documents: Int[np.ndarray, "row pos"]


class TextRows:
    """`context_rows` of a text that starts over when it ends; a one-shot iterator just ends.

    Documents are counted on when the text starts over.

    Attributes:
        row: rows taken so far.
    """

    def __init__(self, model: LanguageModel, text: Text, context: int):
        self.model, self.text, self.context = model, text, context
        self.row, self._place = 0, Place()
        self._rows = self._walk(self._place)

    def _walk(self, start: Place) -> Iterator[PackedRow]:
        seen = 0  # documents taken from the text, over all its repetitions
        while True:
            found = seen <= start.document and start != Place()  # rows were found before
            waiting = documents_of(self.text)
            # no tokenizer is needed to pass over documents
            skipped = _skip(waiting, start.document - seen)
            seen += skipped
            counted = _Counted(waiting)
            if seen >= start.document:
                begin = start if seen == start.document else Place(seen)
                for row in _packed(self.model, counted, self.context, begin):
                    found = True
                    yield row
                seen += counted.count
            once = isinstance(self.text, Iterator)
            if start != Place() and (seen == 0 or once and Place(seen, 1) <= start):
                raise TrainingError(
                    f"The text has only {seen} documents; the run to be continued had read "
                    f"{start.document}: give the same text."
                )
            if once:
                return
            if not found:
                raise _too_short(self.context)

    def take(self, n: int) -> Rows | None:
        """The next `n` rows (fewer where a one-shot text ends), or None after its end.

        Raises:
            InputError: the text has not one whole context, or cannot be read.
        """
        taken: list[PackedRow] = []
        while len(taken) < n and (row := next(self._rows, None)) is not None:
            taken.append(row)
        if not taken:
            return None
        self.row += len(taken)
        self._place = taken[-1].end
        ids, documents = zip(*(row[:2] for row in taken), strict=True)
        return Rows(np.stack(ids), np.stack(documents))

    def position(self) -> list[int]:
        """Rows taken, and the document and offset where the next row begins."""
        return [self.row, *self._place]

    def seek(self, position: Sequence[int]) -> None:
        """Go to a `position` of another run over the same text; documents before it are not
        tokenized.

        Raises:
            TrainingError: a one-shot text from which rows were taken.
        """
        if isinstance(self.text, Iterator) and self.row:
            raise TrainingError("A one-shot text cannot be read again: give a function or a file.")
        self.row, self._place = position[0], Place(*position[1:])
        self._rows = self._walk(self._place)


class _Counted:
    """An iterator that knows how many items were taken."""

    def __init__(self, items: Iterator[Document]):
        self.items, self.count = items, 0

    def __iter__(self) -> Iterator[Document]:
        for item in self.items:
            self.count += 1
            yield item


def _skip(items: Iterator[Document], n: int) -> int:
    """Take up to `n` items; how many there were."""
    return sum(1 for _ in zip(range(n), items, strict=False))
