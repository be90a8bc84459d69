"""`saekit train`: settings per layer, caches, logs beside metrics.jsonl."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from saekit.cli import main
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.text import relational

SMALL = "--tokens 2000 --features 64 --k 8 --batch-tokens 100 --context 32 --buffer-tokens 1000"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n---\n".join(islice(relational.documents(seed=3), 200)))
    return path


def train(model, text, out, *more):
    return main(
        ["train", str(model), "--text", str(text), "--out", str(out), *SMALL.split(), *more]
    )


def test_a_cache_gives_what_the_model_gives(tiny_model_folder, text, tmp_path, capsys):
    """Written by the first run, read by the second; both equal a run without it, to the bit."""
    cache = tmp_path / "cache.h5"
    assert train(tiny_model_folder, text, tmp_path / "plain") == 0
    expected = DictionarySet.load(tmp_path / "plain")
    for name in ("first", "second"):
        assert train(tiny_model_folder, text, tmp_path / name, "--cache", str(cache)) == 0
        found = DictionarySet.load(tmp_path / name)
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.W_enc, other.W_enc)
    some = ["--cache", str(cache), "--layers", "1,3", "--k", "4"]
    assert train(tiny_model_folder, text, tmp_path / "some", *some) == 0
    assert DictionarySet.load(tmp_path / "some").layers == [1, 3]
    capsys.readouterr()
    assert (
        train(tiny_model_folder, text, tmp_path / "more", "--cache", str(cache), "--tokens", "9000")
        == 2
    )
    assert "tokens" in capsys.readouterr().err


def test_settings_at_some_layers(tiny_model_folder, text, tmp_path):
    more = ["--at", "2-3:d_sae=96,k=4", "--at", "3:architecture=batchtopk", "--layers", "1-3"]
    assert train(tiny_model_folder, text, tmp_path / "set", *more) == 0
    found = DictionarySet.load(tmp_path / "set")
    assert [d.d_sae for d in found] == [64, 96, 96]
    assert [d.training_architecture for d in found] == ["topk", "topk", "batchtopk"]
    assert found[2].k == 4
    assert found.manifest["per_layer"]["3"] == {"architecture": "batchtopk", "d_sae": 96, "k": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("2:width=3", '"width" is not one of'),
        ("2:k=many", 'k cannot be "many"'),
        ("2:k=65", "only 64 features"),
        ("9:k=4", "9"),
    ],
)
def test_impossible_settings_at_layers(given, message, tiny_model_folder, text, tmp_path, capsys):
    assert train(tiny_model_folder, text, tmp_path / "set", "--at", given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_tensorboard_gets_what_metrics_get(tiny_model_folder, text, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "set"
    assert train(tiny_model_folder, text, out, "--tensorboard", str(tmp_path / "tb")) == 0
    reader = events.EventAccumulator(str(tmp_path / "tb"))
    reader.Reload()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = reader.Scalars("fvu/layer_02")
    assert [event.step for event in found] == [line["tokens"] for line in lines]
    assert [event.value for event in found] == pytest.approx([line["fvu"][2] for line in lines])


def test_a_missing_logger_is_named(tiny_model_folder, text, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(tiny_model_folder, text, tmp_path / "set", "--wandb", "project") == 2
    assert "pip install wandb" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["short.txt", "bos.npy", "no_rows.npy"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_files_shorter_than_a_context_are_refused(
    command, source, tiny_model_folder, text, tmp_path, capsys
):
    """They used to be repeated without end; ids that are all BOS never filled a row."""
    (tmp_path / "short.txt").write_text("a few words")
    np.save(tmp_path / "bos.npy", np.zeros(500, int))
    np.save(tmp_path / "no_rows.npy", np.zeros((3, 0), int))
    if command == "evaluate":
        assert train(tiny_model_folder, text, tmp_path / "set") == 0
        assert main(["evaluate", str(tmp_path / "set"), "--text", str(tmp_path / source)]) == 2
    else:
        assert train(tiny_model_folder, tmp_path / source, tmp_path / "out") == 2
        assert not (tmp_path / "out").exists()
    assert "shorter than one context of 32 tokens" in capsys.readouterr().err


def test_float32_keeps_a_float32_cache(tiny_model_folder, text, tmp_path, capsys):
    """`--float32` with a cache is exactly `--float32` without; a bfloat16 cache is refused."""
    cache, exact = ("--cache", str(tmp_path / "cache.h5")), "--float32"
    assert train(tiny_model_folder, text, tmp_path / "plain", exact) == 0
    assert train(tiny_model_folder, text, tmp_path / "cached", exact, *cache) == 0
    plain, cached = (DictionarySet.load(tmp_path / name) for name in ("plain", "cached"))
    for one, other in zip(plain, cached, strict=True):
        assert torch.equal(one.W_enc, other.W_enc)
    narrow = "--cache", str(tmp_path / "narrow.h5")
    assert train(tiny_model_folder, text, tmp_path / "narrow", *narrow) == 0
    assert train(tiny_model_folder, text, tmp_path / "refused", exact, *narrow) == 2
    assert "bfloat16; this run asks for float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--device", "nowhere"], 'no device "nowhere"'),
        (["--features", str(10**12)], "not enough memory"),
        (["--tensorboard", __file__], "Cannot write to"),
    ],
)
def test_what_the_machine_cannot_do_is_one_sentence(
    more, words, tiny_model_folder, text, tmp_path, capsys
):
    assert train(tiny_model_folder, text, tmp_path / "set", *more) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_evaluating_nothing_is_refused(tiny_model_folder, text, tmp_path, capsys):
    assert train(tiny_model_folder, text, tmp_path / "set") == 0
    arguments = ["evaluate", str(tmp_path / "set"), "--text", str(text), "--tokens", "0"]
    assert main(arguments) == 2
    assert "0 tokens" in capsys.readouterr().err
