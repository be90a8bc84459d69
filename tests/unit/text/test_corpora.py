"""Text files of every format, and what is said of broken ones."""

import gzip
import json
import random

import numpy as np
import pyarrow
import pytest

from saekit.errors import InputError
from saekit.text.corpora import prose, read_documents, read_files, text_files

TWO = ["First document.\nIts second line.", "Second document."]
PLAIN = "\n---\n".join(TWO) + "\n"


def zstd(data):
    """One Zstandard frame, without a checksum."""
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TWO)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", PLAIN), ("a.md", PLAIN), ("a.jsonl", LINES), ("windows.txt", None)],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_all_formats(tmp_path, name, content, suffix):
    data = (content or PLAIN.replace("\n", "\r\n")).encode()
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESS[suffix](data))
    assert list(read_documents([path])) == TWO
    assert text_files(tmp_path) == [path]


def test_zst_files_of_several_frames(tmp_path):
    """As parallel compressors write them."""
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstd(b"first\n---\nsec") + zstd(b"ond"))
    assert list(read_documents([path])) == ["first", "second"]


def test_folder_is_read_in_order_of_names_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("three")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n')
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert list(read_documents([tmp_path])) == ["one", "two", "three"]


def test_another_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "hello"}\n')
    assert list(read_documents([path], key="content")) == ["hello"]
    with pytest.raises(InputError, match='line 1: no JSON object with a text under "text"'):
        list(read_documents([path]))


@pytest.mark.parametrize(
    "line", ['{"text": "cut o', "[1, 2]", '"text"', '{"text": 7}', '{"text": null}', "17"]
)
def test_bad_json_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    documents = read_documents([path])
    assert next(documents) == "good"
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: no JSON object"):
        next(documents)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_and_corrupt_compression(tmp_path, suffix):
    rng = random.Random(0)
    text = "".join(rng.choice("abcdefghij") for _ in range(400_000))
    whole = COMPRESS[suffix](text.encode())
    cut, corrupt, no = (tmp_path / f"{name}.txt{suffix}" for name in ("cut", "corrupt", "no"))
    cut.write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    corrupt.write_bytes(whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    no.write_bytes(b"plain text")
    # a Zstandard frame without a checksum cannot tell that its letters were changed
    for path in (cut, no) if suffix == ".zst" else (cut, no, corrupt):
        with pytest.raises(InputError, match=f"Cannot read .*{path.name}"):
            list(read_documents([path]))


def test_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=r"Cannot read .*a\.txt"):
        list(read_documents([tmp_path]))


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        list(read_documents([tmp_path / "missing.txt"]))
    with pytest.raises(InputError, match="holds no text that saekit reads"):
        text_files(tmp_path)
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(InputError, match="holds no text that saekit reads"):
        text_files(tmp_path / "image.png")
    (tmp_path / "empty.txt").write_text("\n---\n \n")
    with pytest.raises(InputError, match="every file is empty"):
        list(read_documents([tmp_path]))


def test_ids_in_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": [5, 6]}\n{"input_ids": [7]}\n{"tokens": []}\n{"text": "eight"}\n')
    found = [item if isinstance(item, str) else item.tolist() for item in read_files([path])]
    assert found == [[5, 6], [7], [], "eight"]
    with pytest.raises(InputError, match="source holds token ids: give another text"):
        list(read_documents([path]))
    for wrong in ('{"tokens": "text"}', '{"tokens": [1.5]}', '{"tokens": [[1]]}', '{"text": [1]}'):
        path.write_text(wrong)
        with pytest.raises(InputError, match="line 1: no JSON object"):
            list(read_files([path]))


def test_files_of_ids_are_read_when_named(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([1, 2]))
    (tmp_path / "a.txt").write_text("one")
    assert list(read_files([tmp_path])) == ["one"]
    assert [ids.tolist() for ids in read_files([tmp_path / "ids.npy"])] == [[1, 2]]


def test_reading_is_lazy(tmp_path):
    """A document is there before the rest of the file is read (a corpus may not fit in memory)."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n---\n" + b"x" * 100_000 + b"\xff\n---\nlast")
    assert next(read_documents([path])) == "first"


def test_prose_comes_with_the_package():
    documents = prose()
    assert sum(map(len, documents)) > 140_000
    assert len(set(documents)) == len(documents)
    assert not any(document.startswith("---") for document in documents)
