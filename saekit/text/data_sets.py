"""Hugging Face data sets: streamed from the hub by id, or a folder that `save_to_disk` made.

Needs the package `datasets` (an extra of saekit: `pip install "saekit[hub]"`), imported when a
data set is opened.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from saekit.errors import InputError, SaekitError
from saekit.text.packing import Document
from saekit.text.tables import TEXT_COLUMN, document_column, row_document

PREFIX = "hf:"
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+){0,2}")
_FILE = re.compile(r".*\.(txt|md|jsonl|parquet|npy|bin|gz|zst|json|csv)")  # a path mistyped
_SECONDS = 10  # to wait for the hub's first answer


class HubId(NamedTuple):
    """A data set on the hub."""

    name: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        return ":".join([self.name, *([self.config] if self.config else [])])


def hub_id(source: str) -> HubId | None:
    """The data set that a source names, or None if it can only be a path.

    `hf:` in front always names one: `hf:owner/name`, `hf:owner/name:config` or
    `hf:owner/name:config:split` (the split is "train" if it is not given).  Without it, a source
    of the form `owner/name` names one when there is no such file or folder; whether there is one
    is for the caller to see.
    """
    name = source.removeprefix(PREFIX)
    if name == source and (_FILE.fullmatch(name) or not _ID.fullmatch(name)):
        return None
    return HubId(*name.split(":", 2))


def is_saved(path: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _library(why: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f'{why} needs the package datasets: pip install "saekit[hub]", or give files.'
        ) from error
    return datasets


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def read_hub(wanted: HubId) -> Iterator[Document]:
    """The documents of a data set on the hub, streamed; it is opened now, not at the first one.

    Raises:
        InputError: no package `datasets`, no network, no such data set, config or split, no
            column of documents; while iterating, the connection was lost.
    """
    where = f'The data set "{wanted}"'
    datasets = _library(where)
    from huggingface_hub import HfApi

    try:
        # asked once here: `datasets` would repeat each failed request for half a minute
        HfApi().dataset_info(wanted.name, timeout=_SECONDS)
        rows = datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
    except Exception as error:  # a lost network is another type in each version of the hub's client
        raise InputError(
            f"{where} is no local file or folder and cannot be opened on the Hugging Face hub "
            f"(offline, or no such data set, config or split: {_first_line(error)}): give local "
            "files, or hf:owner/name:config:split."
        ) from error
    return _documents(rows, where)


def read_saved(path: Path) -> Iterator[Document]:
    """The documents of a folder that `save_to_disk` made; of several splits, "train".

    Raises:
        InputError: no package `datasets`, a broken folder, several splits without "train", no
            column of documents.
    """
    where = str(path)
    datasets = _library(where)
    import pyarrow

    try:
        rows = datasets.load_from_disk(path)
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        raise InputError(
            f"Cannot read the data set {path} (truncated or empty?): {_first_line(error)}."
        ) from error
    if isinstance(rows, dict):
        if "train" not in rows and len(rows) != 1:
            raise InputError(
                f"{path} has the splits {', '.join(rows)}: give the folder of one of them."
            )
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    return _documents(rows, where)


def _documents(rows: Any, where: str) -> Iterator[Document]:
    done = 0
    column = None
    try:
        for row in rows:
            if column is None:
                texts = [name for name, value in row.items() if isinstance(value, str)]
                column = document_column(list(row), texts, where, TEXT_COLUMN)
            done += 1
            yield row_document(row, column, f"{where}, row {done}")
    except SaekitError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} cannot be read after {done} documents ({_first_line(error)}); what was "
            "trained is in the last checkpoint: run again with --resume."
        ) from error
    if not done:
        raise InputError(f"No text in {where}: it has no rows.")
