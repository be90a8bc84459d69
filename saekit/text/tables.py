"""Documents in tables: which column holds them, and parquet files.

A row holds a text, or the token ids of one that was tokenised elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saekit.errors import InputError
from saekit.text.packing import Document

TEXT_COLUMN = "text"
ID_COLUMNS = ("tokens", "input_ids")
_ROWS = 1024  # of a parquet file in memory at once


def document_column(names: Sequence[str], texts: Sequence[str], where: str, key: str) -> str:
    """The column of documents: the one asked for, ids, or the only one of strings.

    Args:
        names: all columns.
        texts: those that hold strings.
        where: the table, for the error.
        key: the column of text asked for.

    Raises:
        InputError: none of these.
    """
    for name in (key, *ID_COLUMNS):
        if name in names:
            return name
    if len(texts) == 1:
        return texts[0]
    raise InputError(
        f'{where} has no column "{key}", {" or ".join(map(repr, ID_COLUMNS))} and not exactly one '
        f"column of strings (it has {', '.join(names) or 'none'}): rename the column of documents."
    )


def as_document(value: Any) -> Document | None:
    """A value as a document: a string, or integers as an array; None if it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, np.ndarray)):
        ids = np.asarray(value) if len(value) else np.empty(0, np.int64)
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            return ids
    return None


def row_document(row: Mapping[str, Any], column: str, where: str) -> Document:
    """The document in one row of a table.

    Raises:
        InputError: it is neither text nor token ids.
    """
    document = as_document(row.get(column))
    if document is None:
        raise InputError(f'{where}: "{column}" is neither text nor a list of token ids.')
    return document


def parquet_documents(path: Path, key: str = TEXT_COLUMN) -> Iterator[Document]:
    """The documents of a parquet file, in the order of rows; rows without one are left out.

    Raises:
        InputError: truncated, corrupt, or without a column of documents.
    """
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            fields = {field.name: field.type for field in file.schema_arrow}
            texts = [
                name
                for name, kind in fields.items()
                if types.is_string(kind) or types.is_large_string(kind)
            ]
            column = document_column(list(fields), texts, str(path), key)
            row = 0
            for batch in file.iter_batches(_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    if value is not None:
                        yield row_document({column: value}, column, f"{path}, row {row}")
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"Cannot read {path} (truncated, or not parquet): {reason}.") from error
