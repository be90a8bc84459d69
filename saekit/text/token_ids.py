"""Files of token ids made elsewhere: `.npy` arrays, and `.bin` files of uint16 ids."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from saekit.errors import InputError

SUFFIXES = (".npy", ".bin")
BLOCK = 65_536  # ids of a long sequence handed out as one document: little enough for memory


def _opened(path: Path) -> np.ndarray:
    """The ids, mapped from disk."""
    if path.suffix == ".bin":
        size = path.stat().st_size
        if size % 2:
            raise ValueError(f"{size} bytes are no whole number of uint16 ids")
        return np.memmap(path, np.uint16, "r") if size else np.empty(0, np.uint16)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def id_documents(path: Path) -> Iterator[np.ndarray]:
    """The ids of a file, as documents.

    A two-dimensional array is one document per row.  A sequence (all `.bin` files) is handed out
    in blocks of `BLOCK` ids; its documents are told apart by the model's BOS between them.

    Raises:
        InputError: truncated, or not ids.
    """
    try:
        ids = _opened(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"Cannot read {path} as token ids (truncated?): {error}.") from error
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise InputError(
            f"{path} holds {ids.dtype} values of shape {ids.shape}; token ids are integers, in a "
            "sequence or in rows."
        )
    if ids.ndim == 2:
        yield from (np.asarray(row) for row in ids)
    else:
        for first in range(0, len(ids), BLOCK):
            yield np.asarray(ids[first : first + BLOCK])
