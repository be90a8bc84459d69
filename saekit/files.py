"""Writing that survives a kill: temporary file, fsync, rename.  Reading that explains itself."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from saekit.errors import FormatError, InputError


def _os_sentence(action: str, path: Path, error: OSError) -> str:
    return f"Cannot {action} {path}: {error.strerror or error}."


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed onto it when the block ends without an error.

    The file at `path` is always either the old one or the complete new one.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask gives; safetensors would make it 0600
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(_os_sentence("write", path, error)) from error
    except SafetensorError as error:  # how safetensors reports a full disk
        raise InputError(f"Cannot write {path}: {error}.") from error
    finally:
        with suppress(OSError):  # the folder may not even exist
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, document: Any) -> None:
    """Write a JSON document atomically (NaN is refused: it is not JSON)."""
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, schema_version: int | None = None) -> Any:
    """Read a JSON document, checking its `schema_version` when one is given.

    Raises:
        FormatError: missing, not JSON, or of another version.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(_os_sentence("read", path, error)) from error
    except ValueError as error:
        raise FormatError(f"{path} is not valid JSON ({error}); is it truncated?") from error
    if schema_version is not None:
        found = document.get("schema_version") if isinstance(document, dict) else None
        if found != schema_version:
            raise FormatError(
                f"{path} has schema_version {found}; this saekit reads version {schema_version}."
            )
    return document


def ensure_writable(folder: str | Path) -> Path:
    """Create `folder` and prove that a file can be written there, before minutes of work.

    Raises:
        InputError: it cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"saekit")
            handle.flush()
    except OSError as error:
        raise InputError(_os_sentence("write to", folder, error)) from error
    return folder


def ensure_file_writable(path: str | Path) -> Path:
    """Prove that a file can be written at `path`, before minutes of work; nothing is left there.

    Raises:
        InputError: it is a folder, or its folder cannot be written.
    """
    if Path(path).is_dir():  # an empty path is the folder that one is in
        raise InputError(f"Cannot write {path or 'to an empty path'}: give the path of a file.")
    ensure_writable(Path(path).resolve().parent)
    return Path(path)
