"""Text files that may be compressed: gzip and Zstandard by their suffix."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from saekit.errors import InputError

COMPRESSIONS = (".gz", ".zst")


def plain_name(path: Path) -> str:
    """The file's name without the suffix of a compression."""
    return path.stem if path.suffix in COMPRESSIONS else path.name


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextmanager
def open_lines(path: Path) -> Iterator[io.TextIOWrapper]:
    """The lines of a UTF-8 file, one in memory at a time.

    Raises:
        InputError: it cannot be opened, is truncated or corrupt, or is not UTF-8.
    """
    try:
        with io.TextIOWrapper(_open_bytes(path), encoding="utf-8") as lines:
            yield lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
