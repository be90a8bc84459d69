"""A file is the old one or the whole new one; errors are sentences."""

import json
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from saekit.errors import FormatError, InputError
from saekit.files import (
    atomic_path,
    ensure_file_writable,
    ensure_writable,
    read_json,
    write_json,
    write_text,
)


@contextmanager
def full_disk():
    """Every file is limited to 4 kB, which a writer meets as it meets a full disk.

    Only around what is tested: a report of pytest's own that goes into a long file must not fail.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_write_and_read(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    document = {"schema_version": 2, "text": "café \u2028", "values": [1, 2.5, None]}
    write_json(path, document)
    assert read_json(path) == read_json(path, schema_version=2) == document
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_an_exception_leaves_the_old_file(tmp_path):
    """Mutation tried: writing to `path` itself instead of the temporary file fails here."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, [float("nan")])
    assert read_json(path) == [1]


def test_folder_that_cannot_exist(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"Cannot write .*file/a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "text")
    with pytest.raises(InputError, match=r"Cannot write to .*file/out: Not a directory\."):
        ensure_writable(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="Cannot write to"):
        ensure_writable("/proc/saekit")


def test_a_file_that_cannot_be_written(tmp_path):
    """It is known before there is anything to write, and trying leaves nothing behind."""
    assert ensure_file_writable(tmp_path / "new" / "a.json") == tmp_path / "new" / "a.json"
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    (tmp_path / "file").write_text("x")
    for path, words in (
        (tmp_path, "give the path of a file"),
        ("", "an empty path"),
        (tmp_path / "file" / "a.json", "Cannot write to"),
        ("/proc/saekit/a.json", "Cannot write to"),
    ):
        with pytest.raises(InputError, match=words):
            ensure_file_writable(path)


def test_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with full_disk(), pytest.raises(InputError, match=r"Cannot write .*a\.txt: File too large"):
        write_text(path, "x" * 100_000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_while_saving_tensors(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    old, new = {"w": np.ones(3)}, {"w": np.ones(50_000)}
    with atomic_path(path) as temporary:
        save_file(old, temporary)
    refused = pytest.raises(InputError, match=r"Cannot write .*checkpoint\.safetensors")
    with full_disk(), refused, atomic_path(path) as temporary:
        save_file(new, temporary)
    assert load_file(path)["w"].shape == (3,)
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_is_written(tmp_path):
    """As the umask says; safetensors itself would let only the owner read."""
    (tmp_path / "usual").touch()
    with atomic_path(tmp_path / "w.safetensors") as temporary:
        save_file({"w": np.ones(3)}, temporary)
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_block_that_writes_nothing_replaces_nothing(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(InputError, match="Cannot write"), atomic_path(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_ensure_writable_leaves_nothing(tmp_path):
    assert ensure_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_reading_what_is_not_there_or_broken(tmp_path):
    with pytest.raises(FormatError, match=r"Cannot read .*a\.json: No such file or directory\."):
        read_json(tmp_path / "a.json")
    (tmp_path / "cut.json").write_text(json.dumps({"a": [1, 2]})[:-3])
    with pytest.raises(FormatError, match="not valid JSON .* is it truncated"):
        read_json(tmp_path / "cut.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not valid JSON"):
        read_json(tmp_path / "bytes.json")


@pytest.mark.parametrize("document", [{"schema_version": 9}, {}, [1], 7])
def test_unknown_schema_version(tmp_path, document):
    write_json(tmp_path / "a.json", document)
    with pytest.raises(FormatError, match=r"has schema_version (9|None); this saekit reads ver"):
        read_json(tmp_path / "a.json", schema_version=1)
