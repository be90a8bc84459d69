"""Text readers: local files and folders to a stream of documents (strings).

`.txt` and `.md` files hold documents separated by a line of three dashes; `.jsonl` files hold one
document per line under "text" (or the key given); all may be gzipped.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path

from saekit.errors import InputError

SUFFIXES = (".txt", ".md", ".jsonl")


def _is_text(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return name.endswith(SUFFIXES) and path.is_file()


def text_files(path: str | Path) -> list[Path]:
    """The readable files at a path: the file itself, or all in a folder, sorted by name.

    Raises:
        InputError: nothing there, or no file of a known type.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no text at {path}: no such file or folder.")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_text(p))
    if not found or not _is_text(found[0]):
        raise InputError(
            f"{path} holds no text that saekit reads ({', '.join(SUFFIXES)}, also gzipped)."
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


def _json_lines(lines: Iterable[str], path: Path, key: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[key]
        except (ValueError, KeyError, TypeError) as error:
            raise _not_a_document(path, number, key) from error
        if not isinstance(text, str):
            raise _not_a_document(path, number, key)
        if text.strip():
            yield text


def _not_a_document(path: Path, number: int, key: str) -> InputError:
    return InputError(f'{path}, line {number}: no JSON object with a text under "{key}".')


def _documents_of_file(path: Path, key: str) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as handle:
            if path.name.removesuffix(".gz").endswith(".jsonl"):
                yield from _json_lines(handle, path, key)
            else:
                yield from _split_at_dashes(handle)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error


def read_documents(paths: Sequence[str | Path], key: str = "text") -> Iterator[str]:
    """All documents of files and folders, in order of file names.

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
