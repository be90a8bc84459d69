"""Parquet files: which column, which rows, and broken files."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from saekit.errors import InputError
from saekit.text.corpora import read_files
from saekit.text.tables import as_document, document_column, parquet_documents


def write(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def read(path, **options):
    found = parquet_documents(path, **options)
    return [item if isinstance(item, str) else item.tolist() for item in found]


def test_text_and_ids(tmp_path):
    path = write(tmp_path / "a.parquet", url=["u", "v", "w"], text=["one", None, "three"])
    assert read(path) == ["one", "three"]
    assert read(path, key="url") == ["u", "v", "w"]
    for name in ("tokens", "input_ids"):
        path = write(tmp_path / "b.parquet", **{name: [[5, 6], [], [7]], "score": [1, 2, 3]})
        assert read(path) == [[5, 6], [], [7]]
    path = write(tmp_path / "c.parquet", content=["only"], n=[1])
    assert read(path) == ["only"]


def test_a_folder_of_parquet_files(tmp_path):
    write(tmp_path / "b.parquet", text=["two"])
    write(tmp_path / "a.parquet", text=["one"])
    assert list(read_files([tmp_path])) == ["one", "two"]


def test_broken_files(tmp_path):
    path = write(tmp_path / "a.parquet", text=["x" * 1000 + str(i) for i in range(3000)])
    data = path.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 10, 0):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"Cannot read .*a\.parquet \(truncated"):
            read(path)


def test_no_column_of_documents(tmp_path):
    path = write(tmp_path / "a.parquet", title=["a"], body=["b"])
    with pytest.raises(InputError, match=r'no column "text".*it has title, body\): rename'):
        read(path)
    path = write(tmp_path / "a.parquet", text=[1.5])
    with pytest.raises(InputError, match=r'a\.parquet, row 1: "text" is neither text nor'):
        read(path)


def test_which_column():
    assert document_column(["input_ids", "text"], ["text"], "x", "text") == "text"
    assert document_column(["input_ids", "tokens"], [], "x", "text") == "tokens"
    assert document_column(["a", "b"], ["b"], "x", "text") == "b"


def test_what_is_a_document():
    assert as_document("") == ""
    assert as_document([3, 4]).tolist() == [3, 4]
    assert as_document([]).dtype.kind == "i"
    for value in (None, 3, [1.0], ["a"], [[1]], np.zeros((1, 1), int), {"a": 1}):
        assert as_document(value) is None
