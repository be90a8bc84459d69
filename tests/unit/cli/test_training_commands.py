"""`saekit train`: settings per layer, caches, logs beside metrics.jsonl."""

import json
from itertools import islice

import pytest
import torch

from saekit.cli import main
from saekit.sae.storage import DictionarySet
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
