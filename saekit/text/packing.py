"""Documents to packed contexts of token ids.

A context is a row of fixed length that begins with BOS; documents inside a row are separated by
BOS, so the model sees where one ends.  BOS positions never count in training dictionaries, in
statistics or in spans.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Int

from saekit.errors import InputError

Encode = Callable[[list[str]], list[list[int]]]
_BATCH = 256  # documents encoded at once: long enough for the tokenizer's threads


def encode_documents(documents: Iterable[str], encode: Encode) -> Iterator[list[int]]:
    """Token ids per document, encoded in batches."""
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield from encode(batch)
            batch.clear()
    if batch:
        yield from encode(batch)


def pack(
    documents: Iterable[str],
    encode: Encode,
    context: int,
    bos: int,
    prepend_bos: bool = True,
    split: bool = True,
) -> Iterator[Int[np.ndarray, " context"]]:
    """Rows of `context` token ids.

    Args:
        documents: the text.
        encode: a batch of documents to token ids, without special tokens.
        context: row length, BOS included.
        bos: id of BOS, also put between documents.
        prepend_bos: whether each row begins with BOS.
        split: True continues a document in the next row (no token is lost but the last partial
            row); False starts the next row with a new document and drops what did not fit.

    Raises:
        InputError: the context has no room for a token.
    """
    lead = [bos] if prepend_bos else []
    if context <= len(lead):
        raise InputError(f"A context of {context} tokens is too short: give at least 2.")
    row = list(lead)
    for ids in encode_documents(documents, encode):
        if not ids:
            continue
        if len(row) > len(lead):
            row.append(bos)
        row.extend(ids)
        while len(row) >= context:
            yield np.array(row[:context], dtype=np.int32)
            row = lead + (row[context:] if split else [])
