"""Text readers: local files and folders to a stream of documents.

`.txt` and `.md` files hold documents separated by a line of three dashes; `.jsonl` files hold one
document per line under "text" (or the key given), or its token ids under "tokens" or "input_ids";
all may be compressed (`.gz`, `.zst`).  `.parquet` files hold one per row, in such a column.  Files
of token ids (`.npy`, `.bin`) are read when they are named, not when a folder is.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path

from saekit.errors import InputError
from saekit.text import token_ids
from saekit.text.compressed import open_lines, plain_name
from saekit.text.packing import Document
from saekit.text.tables import ID_COLUMNS, as_document, parquet_documents

SUFFIXES = (".txt", ".md", ".jsonl")


def _is_text(path: Path) -> bool:
    return path.is_file() and (plain_name(path).endswith(SUFFIXES) or path.suffix == ".parquet")


def text_files(path: str | Path) -> list[Path]:
    """The readable files at a path: the file itself, or all of text in a folder, sorted by name.

    Raises:
        InputError: nothing there, or no file of a known type.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no text at {path}: no such file or folder.")
    if path.is_file():
        found = [path] if _is_text(path) or path.suffix in token_ids.SUFFIXES else []
    else:
        found = sorted(p for p in path.rglob("*") if _is_text(p))
    if not found:
        raise InputError(
            f"{path} holds no text that saekit reads ({', '.join(SUFFIXES)}, each also as .gz or "
            f".zst, .parquet; token ids as {', '.join(token_ids.SUFFIXES)})."
        )
    return found


def _split_at_dashes(lines: Iterable[str]) -> Iterator[str]:
    """The documents between lines of three dashes, one in memory at a time."""
    document: list[str] = []
    for line in chain(lines, ["---"]):
        if line.rstrip() != "---":
            document.append(line)
            continue
        if text := "".join(document).strip():
            yield text
        document.clear()


def _json_lines(lines: Iterable[str], path: Path, key: str) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            column = next(name for name in (key, *ID_COLUMNS) if name in row)
            document = as_document(row[column])
        except (ValueError, TypeError, StopIteration) as error:
            raise _not_a_document(path, number, key) from error
        if document is None or isinstance(document, str) != (column == key):
            raise _not_a_document(path, number, key)
        if not isinstance(document, str) or document.strip():
            yield document


def _not_a_document(path: Path, number: int, key: str) -> InputError:
    return InputError(f'{path}, line {number}: no JSON object with a text under "{key}".')


def _documents_of_file(path: Path, key: str) -> Iterator[Document]:
    if path.suffix in token_ids.SUFFIXES:
        yield from token_ids.id_documents(path)
    elif path.suffix == ".parquet":
        yield from parquet_documents(path, key)
    else:
        with open_lines(path) as lines:
            if plain_name(path).endswith(".jsonl"):
                yield from _json_lines(lines, path, key)
            else:
                yield from _split_at_dashes(lines)


def read_files(paths: Sequence[str | Path], key: str = "text") -> Iterator[Document]:
    """All documents of files and folders, in order of file names: texts, or arrays of token ids.

    Raises:
        InputError: a path without readable text, a broken file, or no text at all.
    """
    empty = True
    for path in paths:
        for file in text_files(path):
            for document in _documents_of_file(file, key):
                empty = False
                yield document
    if empty:
        raise InputError(f"No text in {', '.join(map(str, paths))}: every file is empty.")


def only_texts(documents: Iterable[Document]) -> Iterator[str]:
    """The documents, for work that needs to see words.

    Raises:
        InputError: one is token ids.
    """
    for document in documents:
        if not isinstance(document, str):
            raise InputError("This needs text, and a source holds token ids: give another text.")
        yield document


def read_documents(paths: Sequence[str | Path], key: str = "text") -> Iterator[str]:
    """`read_files`, for work that needs to see words.

    Raises:
        InputError: as `read_files`; token ids.
    """
    return only_texts(read_files(paths, key))


def prose() -> list[str]:
    """The original prose that comes with saekit (about 150 kB), one string per document."""
    folder = files("saekit").joinpath("data", "prose")
    with_names = sorted((entry.name, entry) for entry in folder.iterdir())
    return [
        document
        for name, entry in with_names
        if name.endswith(".txt")
        for document in _split_at_dashes(entry.read_text(encoding="utf-8").splitlines(True))
    ]
