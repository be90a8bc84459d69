"""The activation cache: what is in it, reading it as the model, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import h5py
import numpy as np
import pytest
import torch

from saekit.activations import (
    CachedActivations,
    ModelActivations,
    ShuffleBuffer,
    context_rows,
    residuals,
    write_cache,
)
from saekit.activations.cache import cached_activations as cache_module
from saekit.errors import FormatError, InputError, MismatchError, TrainingError
from saekit.text import relational


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3, sentences=(1, 1)), 300))


def write(model, text, path, **settings):
    options = {"tokens": 1000, "context": 16, "shard_tokens": 300, "text_name": "stories"}
    return write_cache(model, text, path, **{**options, **settings})


@pytest.fixture(scope="module")
def path(tiny_model, documents, tmp_path_factory):
    return write(tiny_model, documents, tmp_path_factory.mktemp("cache") / "a.h5")


def test_what_is_in_the_file(tiny_model, documents, path):
    """Read with h5py alone, as the module says."""
    rows = np.stack(list(islice(context_rows(tiny_model, documents, 16), 90)))
    words = rows != tiny_model.bos
    stream = residuals(tiny_model, torch.from_numpy(rows).long())[:, torch.from_numpy(words)]
    with h5py.File(path) as file:
        assert sorted(file["layers"]) == ["0", "1", "2", "3"]
        assert file.attrs["fingerprint"] == tiny_model.fingerprint
        assert (file.attrs["context"], file.attrs["prepend_bos"]) == (16, True)
        assert (file.attrs["n_tokens"], file.attrs["text"]) == (1000, "stories")
        assert (file["tokens"][:] == rows[words][:1000]).all()
        assert (np.diff(file["documents"][:]) >= 0).all()
        assert file["shards"][:, 0].tolist() == [1, 1, 1, 1]  # 300 + 300 + 300 + 100
        for layer in range(4):
            stored = file[f"layers/{layer}"]
            assert (stored.dtype, stored.shape, stored.chunks) == (np.uint16, (1000, 32), None)
            # bfloat16 is the upper half of float32
            values = (stored[:].astype(np.uint32) << 16).view(np.float32)
            error = np.abs(values - stream[layer, :1000].numpy())
            assert (error <= 2**-8 * np.abs(stream[layer, :1000].numpy()) + 1e-6).all()


def test_document_numbers_find_the_tokens_again(tiny_model, documents, path):
    with h5py.File(path) as file:
        tokens, numbers = file["tokens"][:], file["documents"][:]
    for number in (0, 5, 17):
        assert tokens[numbers == number].tolist() == tiny_model.tokens(documents[number])


@pytest.mark.parametrize(("precision", "rounding"), [("float32", 0), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("read_tokens", [4096, 77])
def test_batches_are_those_of_the_model(
    tiny_model, documents, tmp_path, precision, rounding, read_tokens, monkeypatch
):
    """Equal to the bit in float32; the same tokens in the same order always."""
    monkeypatch.setattr(cache_module, "READ_TOKENS", read_tokens)
    tokens = 2000
    path = write(tiny_model, documents, tmp_path / "a.h5", precision=precision, tokens=tokens)
    live = ShuffleBuffer(
        ModelActivations(tiny_model, documents, [0, 3], 16), 40, 300, 1, tokens=tokens
    )
    cached = ShuffleBuffer(CachedActivations(path, [0, 3]), 40, 300, 1, tokens=tokens)
    for _ in range(tokens // 40):
        one, other = live.next_batch(), cached.next_batch()
        assert (live.numbers[one.numpy()] == cached.numbers[other.numpy()]).all()
        for slot in range(2):
            x, y = live.layer(slot, one), cached.layer(slot, other)
            assert ((x - y).abs() <= rounding * x.abs()).all()
    assert cached.source.next_pass() is None  # no token was written in vain


def test_resuming_from_a_cache(tiny_model, path):
    buffer = ShuffleBuffer(CachedActivations(path), 40, 300, 1)
    for _ in range(9):
        buffer.next_batch()
    state = buffer.state()
    expected = [buffer.layer(1, buffer.next_batch()).clone() for _ in range(10)]
    again = ShuffleBuffer(CachedActivations(path), 40, 300, 1)
    again.load_state(state)
    for batch in expected:
        assert torch.equal(again.layer(1, again.next_batch()), batch)


def test_a_cache_that_is_there_is_used(tiny_model, documents, path, monkeypatch):
    monkeypatch.setattr(ModelActivations, "run", None)
    before = path.stat().st_mtime_ns
    assert write(tiny_model, documents, path, tokens=900, layers=[1, 2]) == path
    assert path.stat().st_mtime_ns == before
    CachedActivations(path).check(tiny_model, 16, 1000, "stories")


def test_a_cache_of_some_layers(tiny_model, documents, path, tmp_path):
    some = write(tiny_model, documents, tmp_path / "some.h5", layers=[3, 1])
    source = CachedActivations(some)
    assert source.layers == [1, 3]
    every = CachedActivations(path).next_pass()
    assert torch.equal(source.next_pass(), every[[1, 3]])
    with pytest.raises(MismatchError, match=r"does not hold layer 0, 2 \(it has 1, 3\)"):
        CachedActivations(some, [0, 1, 2])
    with pytest.raises(MismatchError, match="does not hold layer 0, 2"):
        write(tiny_model, documents, some)


def interrupted(tiny_model, documents, path, passes, monkeypatch, **settings):
    """A cache whose writer failed after some passes of the model."""
    with monkeypatch.context() as patch:
        original, calls = ModelActivations.run, []

        def run(self, rows):
            calls.append(1)
            if len(calls) > passes:
                raise KeyboardInterrupt
            return original(self, rows)

        patch.setattr(ModelActivations, "run", run)
        with pytest.raises(KeyboardInterrupt):
            write(tiny_model, documents, path, **settings)
    return path


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_writing_goes_on_after_the_whole_shards(
    tiny_model, documents, tmp_path, passes, monkeypatch
):
    """Mutation tried: the tokens to leave out forgotten."""
    monkeypatch.setattr("saekit.activations.sources.FORWARD_TOKENS", 640)
    whole = write(tiny_model, documents, tmp_path / "whole.h5", tokens=1600)
    path = tmp_path / "a.h5"
    interrupted(tiny_model, documents, path, passes, monkeypatch, tokens=1600)
    cut = CachedActivations(path)
    assert 0 <= cut.n_tokens < 640 * passes + 1
    assert cut.n_tokens % 300 == 0
    assert cut.n_tokens >= 300 * passes
    with pytest.raises(InputError, match="holds .* tokens, its writing was cut short; 1600 are"):
        cut.check(tiny_model, tokens=1600)
    cut.close()
    write(tiny_model, documents, path, tokens=1600)
    with h5py.File(path) as one, h5py.File(whole) as other:
        for name in ("tokens", "documents", "shards", *(f"layers/{layer}" for layer in range(4))):
            assert (one[name][:] == other[name][:]).all(), name


KILLED = """
import os, signal, sys
from pathlib import Path
from saekit.activations.cache import cache_writer
from saekit.model.loading import load_model
model, text, path, writes = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
original, calls = cache_writer._to_disk, []
def to_disk(*arguments):
    original(*arguments)
    calls.append(1)
    if len(calls) == writes:
        os.kill(os.getpid(), signal.SIGKILL)
cache_writer._to_disk = to_disk
cache_writer.write_cache(model, text, path, 4000, context=16, shard_tokens=500)
"""


def test_a_killed_writer_leaves_whole_shards(tiny_model_folder, documents, tmp_path):
    """SIGKILL between the values of the third shard and their mark: two shards are usable.

    Mutations tried: the mark written before the values; the newest form of HDF5.
    """
    text = tmp_path / "text.txt"
    text.write_text("\n---\n".join(documents))
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", KILLED, str(tiny_model_folder), str(text), str(path)]
    process = subprocess.run([*command, "5"], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert CachedActivations(path).n_tokens == 1000
    process = subprocess.run([*command, "0"], capture_output=True, check=False)
    assert process.returncode == 0, process.stderr
    from saekit.model.loading import load_model

    model = load_model(str(tiny_model_folder))
    cached = CachedActivations(path)
    cached.check(model, 16, 4000)
    live = ModelActivations(model, text, None, 16).next_pass()
    shared = min(live.shape[1], 4000)
    found = cached.next_pass()[:, :shared]
    assert torch.equal(found, live[:, :shared].to(torch.bfloat16))


@pytest.mark.slow
def test_killed_at_any_moment(tiny_model_folder, documents, tmp_path):
    """SIGKILL again and again while shards are written; the file opens each time, and grows."""
    text = tmp_path / "text.txt"
    text.write_text("\n---\n".join(documents))
    path = tmp_path / "a.h5"
    code = (
        "import sys; from pathlib import Path; from saekit.activations import write_cache;"
        "write_cache(sys.argv[1], Path(sys.argv[2]), sys.argv[3], 2_000_000, context=16,"
        "shard_tokens=500)"
    )
    command = [sys.executable, "-c", code, str(tiny_model_folder), str(text), str(path)]
    before = 0
    for round in range(4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        started = path.stat().st_mtime_ns if path.exists() else 0
        while process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns > started:
                time.sleep(0.3 + 0.11 * round)
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        source = CachedActivations(path)
        assert source.n_tokens >= before
        before = source.n_tokens
        source.close()
    assert before > 0


def test_another_model_text_or_context(tiny_model, documents, path):
    other = replace(tiny_model, id="other")
    other.__dict__["fingerprint"] = "f00d"
    source = CachedActivations(path)
    expected = rf"fingerprint {tiny_model.fingerprint}; .other. has f00d"
    with pytest.raises(MismatchError, match=expected):
        source.check(other)
    with pytest.raises(MismatchError, match=expected):
        write(other, documents, path)
    with pytest.raises(
        MismatchError, match="prepend_bos=True; .* prepend_bos=False. Give another --cache"
    ):
        source.check(replace(tiny_model, prepend_bos=False))
    with pytest.raises(MismatchError, match="context of 16 tokens; this run has 32"):
        source.check(tiny_model, context=32)
    with pytest.raises(MismatchError, match='holds the text "stories"; this run names "poems"'):
        source.check(tiny_model, text="poems")
    with pytest.raises(InputError, match="holds 1000 tokens; 1001 are needed"):
        source.check(tiny_model, tokens=1001)
    with pytest.raises(InputError, match="a cache of 1000 tokens; 1001 are needed"):
        write(tiny_model, documents, path, tokens=1001)


def test_files_that_are_no_whole_cache(path, tmp_path):
    data = path.read_bytes()
    cut = tmp_path / "cut.h5"
    for size in (len(data) - 1, len(data) // 2, 100, 0):
        cut.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"cut\.h5 cannot be read.*truncated"):
            CachedActivations(cut)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = [1]
    with pytest.raises(FormatError, match="is not an activation cache"):
        CachedActivations(other)
    with pytest.raises(InputError, match="There is no activation cache at"):
        CachedActivations(tmp_path / "none.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.modify("schema_version", 9), "schema_version 9; .* version 1"),
        (lambda file: file.attrs.pop("context"), "is incomplete .*context"),
        (lambda file: file.__delitem__("layers/2"), "is incomplete"),
        (lambda file: file.attrs.modify("n_tokens", 999), "wrong sizes"),
    ],
)
def test_headers_that_are_not_right(path, tmp_path, change, message):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        change(file)
    with pytest.raises(FormatError, match=message):
        CachedActivations(copy)


def test_space_is_checked_before_anything_is_written(tiny_model, documents, tmp_path):
    """4 layers of 32 values of 2 bytes, 12 bytes for the ids: 268 bytes per token."""
    with pytest.raises(InputError, match=r"needs 268000\.0 GB, .* are free"):
        write(tiny_model, documents, tmp_path / "a.h5", tokens=10**12)
    assert list(tmp_path.iterdir()) == []


def test_impossible_requests(tiny_model, documents, tmp_path):
    with pytest.raises(InputError, match="A cache of 0 tokens"):
        write(tiny_model, documents, tmp_path / "a.h5", tokens=0)
    with pytest.raises(InputError, match="precision float8 .* bfloat16, float32"):
        write(tiny_model, documents, tmp_path / "a.h5", precision="float8")
    with pytest.raises(InputError, match="Layer 4 does not exist"):
        write(tiny_model, documents, tmp_path / "a.h5", layers=[4])
    with pytest.raises(InputError, match=r"text ended after \d+ tokens .* is to hold 1000"):
        write(tiny_model, iter(documents[:20]), tmp_path / "b.h5")


def test_values_that_are_not_finite(tiny_model, documents, tmp_path, monkeypatch):
    original = ModelActivations.run

    def broken(self, rows):
        out = original(self, rows)
        out[2, 5, 1] = float("inf")
        return out

    monkeypatch.setattr(ModelActivations, "run", broken)
    with pytest.raises(TrainingError, match="layer 2 are not finite in tokens 0 to"):
        write(tiny_model, documents, tmp_path / "a.h5")


def test_a_full_disk(tiny_model, documents, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("saekit.activations.cache.cache_writer._write_part", full)
        with pytest.raises(InputError, match="No space left on device.*is intact"):
            write(tiny_model, documents, tmp_path / "a.h5")
    write(tiny_model, documents, tmp_path / "a.h5")


def test_a_file_that_is_being_written(path):
    with h5py.File(path, "r+"), pytest.raises(InputError, match="being written by another"):
        subprocess_open(path)


def subprocess_open(path):
    """Open in another process (HDF5 locks files between processes); raise what it raised."""
    code = (
        "import sys; from saekit.activations import CachedActivations\n"
        "from saekit.errors import SaekitError\n"
        "try: CachedActivations(sys.argv[1])\n"
        "except SaekitError as error: print(type(error).__name__, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith("InputError"), result.stderr
    raise InputError(result.stdout)
