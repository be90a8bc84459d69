"""Files of token ids: sequences in blocks, arrays in rows, broken files."""

import numpy as np
import pytest

from saekit.errors import InputError
from saekit.text import token_ids
from saekit.text.token_ids import id_documents


def read(path):
    return [ids.tolist() for ids in id_documents(path)]


def test_sequences_are_handed_out_in_blocks(tmp_path, monkeypatch):
    """Mutation tried: a step of BLOCK + 1."""
    monkeypatch.setattr(token_ids, "BLOCK", 3)
    ids = np.arange(7, dtype=np.uint16)
    ids.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "a.npy", ids)
    for name in ("a.bin", "a.npy"):
        assert read(tmp_path / name) == [[0, 1, 2], [3, 4, 5], [6]]


def test_bin_files_are_little_endian_uint16(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x01\x00\x50\xc4")
    assert read(tmp_path / "a.bin") == [[1, 50256]]


def test_rows_are_documents(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]], np.int32))
    assert read(tmp_path / "a.npy") == [[1, 2], [3, 4]]


def test_broken_files(tmp_path):
    (tmp_path / "odd.bin").write_bytes(b"123")
    np.save(tmp_path / "cut.npy", np.arange(100))
    data = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-3])
    (tmp_path / "no.npy").write_bytes(b"text")
    for name in ("odd.bin", "cut.npy", "no.npy", "missing.bin"):
        with pytest.raises(InputError, match=f"Cannot read .*{name} as token ids"):
            read(tmp_path / name)
    (tmp_path / "empty.bin").write_bytes(b"")
    assert read(tmp_path / "empty.bin") == []


def test_arrays_that_are_no_ids(tmp_path):
    for array in (np.zeros(3), np.zeros((1, 1, 1), int)):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match="token ids are integers"):
            read(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))  # would need pickle
    with pytest.raises(InputError, match="Cannot read"):
        read(tmp_path / "a.npy")
