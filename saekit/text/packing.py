"""Documents to packed contexts of token ids.

A context is a row of fixed length that begins with BOS; documents inside a row are separated by
BOS, so the model sees where one ends.  BOS positions never count in training dictionaries, in
statistics or in spans.

A document is a text, or an array of token ids made elsewhere; BOS inside such an array separates
documents, too.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from saekit.errors import InputError

Document = str | np.ndarray
Encode = Callable[[list[str]], list[list[int]]]
_BATCH = 256  # documents encoded at once: long enough for the tokenizer's threads


class Place(NamedTuple):
    """Where a row begins: documents before its first token's, and tokens of that one before it."""

    document: int = 0
    offset: int = 0


class PackedRow(NamedTuple):
    """One context.

    Attributes:
        ids: token ids.
        documents: number of the document that each token is of (that follows, for BOS).
        end: where the next row begins.
    """

    ids: Int[np.ndarray, " context"]
    documents: Int[np.ndarray, " context"]
    end: Place


def encode_documents(documents: Iterable[Document], encode: Encode) -> Iterator[list[int]]:
    """Token ids per document, encoded in batches; ids pass as they are."""
    remaining = iter(documents)
    while batch := list(islice(remaining, _BATCH)):
        texts = [item for item in batch if isinstance(item, str)]
        encoded = iter(encode(texts) if texts else [])
        for item in batch:
            yield next(encoded) if isinstance(item, str) else item.tolist()


def _between(ids: list[int], bos: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of ids without BOS; empty runs are left out."""
    first = 0
    while first < len(ids):
        try:
            end = ids.index(bos, first)
        except ValueError:
            end = len(ids)
        if end > first:
            yield first, end
        first = end + 1


def pack_rows(
    documents: Iterable[Document],
    encode: Encode,
    context: int,
    bos: int,
    prepend_bos: bool = True,
    split: bool = True,
    start: Place = Place(),  # noqa: B008  (immutable)
) -> Iterator[PackedRow]:
    """Rows of `context` token ids, each with the place where the next one begins.

    Args:
        documents: the text, from document `start.document` on.
        encode: a batch of documents to token ids, without special tokens.
        context: row length, BOS included.
        bos: id of BOS, also put between documents.
        prepend_bos: whether each row begins with BOS.
        split: True continues a document in the next row (no token is lost but the last partial
            row); False starts the next row with a new document and drops what did not fit.
        start: the `end` of a row yielded before: the rows continue as they did then.

    Raises:
        InputError: the context has no room for a token.
    """
    lead = [bos] if prepend_bos else []
    if context <= len(lead):
        raise InputError(f"A context of {context} tokens is too short: give at least 2.")
    row: list[int] = []
    numbers: list[int] = []
    for number, ids in enumerate(encode_documents(documents, encode), start.document):
        begin = start.offset if number == start.document else 0
        for first, end in _between(ids[begin:], bos):
            first, end = first + begin, end + begin
            if row:
                row.append(bos)
                numbers.append(number)
            else:
                row, numbers = [*lead], [number] * len(lead)
            # a run that ends exactly with the row leaves an empty row, as a new text has
            while len(row) == context or end > first:
                taken = min(context - len(row), end - first)
                row += ids[first : first + taken]
                numbers += [number] * taken
                first += taken
                if len(row) < context:
                    break
                place = Place(number, first) if split else Place(number + 1)
                yield PackedRow(np.array(row, np.int32), np.array(numbers, np.int64), place)
                row, numbers = [], []
                if not split or first == end:
                    break
                row, numbers = [*lead], [number] * len(lead)
            if not split and not row:
                break


def pack(
    documents: Iterable[Document],
    encode: Encode,
    context: int,
    bos: int,
    prepend_bos: bool = True,
    split: bool = True,
) -> Iterator[Int[np.ndarray, " context"]]:
    """The ids of `pack_rows`."""
    rows = pack_rows(documents, encode, context, bos, prepend_bos, split)
    return (row.ids for row in rows)
