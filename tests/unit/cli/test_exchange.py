"""`saekit import` and `saekit export` from the command line."""

import json

import pytest

from saekit.cli import main
from saekit.coordinates import hook_name
from saekit.sae.interchange import sparsify
from saekit.sae.storage.dictionary_set import DictionarySet
from tests.unit.sae.samples import random_dictionary


@pytest.fixture
def theirs(tmp_path):
    """Two layers in sparsify's form."""
    for layer in (0, 3):
        dictionary = random_dictionary("topk", layer=layer, d_in=32, d_sae=48)
        sparsify.write_folder(tmp_path / "theirs" / sparsify.module_name(layer), dictionary)
    return tmp_path / "theirs"


def test_in_and_out(theirs, tmp_path, tiny_model_folder, capsys):
    out, model = str(tmp_path / "set"), str(tiny_model_folder)
    assert main(["import", str(theirs), "--model", model, "--out", out]) == 0
    assert "2 dictionaries (topk) of layers 0, 3 of" in capsys.readouterr().out
    assert DictionarySet.load(out).manifest["folders"]["3"] == hook_name(3, 3)
    again = str(tmp_path / "again")
    options = ["--format", "dictionary_learning", "--out", again, "--layers", "3", "--json"]
    assert main(["export", out, *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "dictionary_learning"
    assert [folder.split("/")[-1] for folder in document["folders"]] == ["resid_post_layer_2"]


def test_errors_are_one_sentence(tmp_path, capsys):
    options = ["--model", "gpt2-mini", "--out", str(tmp_path / "set")]
    assert main(["import", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds none of sae_weights.safetensors (saelens)" in error
