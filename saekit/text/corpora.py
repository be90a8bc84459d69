"""Text readers: local files and folders to a stream of documents (strings).

`.txt` and `.md` files hold documents separated by a line of three dashes; `.jsonl` files hold one
document per line under "text" (or the key given); all may be gzipped.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
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


def _documents_of_file(path: Path, key: str) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as handle:
            if path.name.removesuffix(".gz").endswith(".jsonl"):
                for number, line in enumerate(handle, 1):
                    try:
                        yield json.loads(line)[key]
                    except (ValueError, KeyError, TypeError) as error:
                        raise InputError(
                            f'{path}, line {number}: no JSON object with the text key "{key}".'
                        ) from error
            else:
                for document in handle.read().split("\n---\n"):
                    if document.strip():
                        yield document.strip()
    except (OSError, EOFError, UnicodeDecodeError) as error:
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
        document.strip()
        for name, entry in with_names
        if name.endswith(".txt")
        for document in entry.read_text(encoding="utf-8").split("\n---\n")
        if document.strip()
    ]
