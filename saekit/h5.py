"""HDF5 files that may be damaged."""

from pathlib import Path

import h5py

from saekit.errors import FormatError

BROKEN = (OSError, RuntimeError, TypeError, ValueError)  # what h5py raises on damaged bytes


def open_h5(path: Path, what: str, cure: str) -> h5py.File:
    """Open a file for reading.

    Args:
        what: such as "an index".
        cure: what to do, a sentence.

    Raises:
        FormatError: it is missing, truncated, or no HDF5 file.
    """
    if not path.is_file():
        raise FormatError(f"There is no {what} at {path}. {cure}")
    try:
        return h5py.File(path, "r")
    except BROKEN as error:
        raise FormatError(f"{path} cannot be read (truncated, or not HDF5). {cure}") from error
