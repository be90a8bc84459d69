"""sparsify folders: its equations by hand, its own class where it is installed, and refusals."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from saekit.errors import FormatError, InputError
from saekit.sae.interchange.sparsify import (
    layer_of_module,
    module_name,
    read_folder,
    write_folder,
)
from tests.unit.sae.samples import random_dictionary

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(5)) + 1


def made_by_hand(folder, **changes):
    """A folder as sparsify 1.3 writes it: no num_latents, bf16 weights are possible."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weights = {
        "encoder.weight": torch.randn(24, 8, generator=generator),
        "encoder.bias": torch.randn(24, generator=generator),
        "W_dec": torch.randn(24, 8, generator=generator),
        "b_dec": torch.randn(8, generator=generator),
    }
    save_file(weights, folder / "sae.safetensors")
    config = {
        "activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "num_latents": 0,
        "k": 4, "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": 8,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return weights


def equations(weights, x, k=4):
    """(features, reconstruction), written from sparsify's paper form."""
    pre = (x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    values, indices = pre.relu().topk(k)
    features = torch.zeros_like(pre).scatter(1, indices, values)
    return features, features @ weights["W_dec"] + weights["b_dec"]


def test_reading_by_the_equations(tmp_path):
    features, rebuilt = equations(made_by_hand(tmp_path / "h.5"), X)
    dictionary = read_folder(tmp_path / "h.5")
    assert (dictionary.layer, dictionary.k, dictionary.d_sae) == (6, 4, 24)
    # mutations tried: layer 5; b_dec not subtracted
    assert torch.allclose(dictionary.encode(X), features, atol=1e-5)
    assert torch.allclose(dictionary.reconstruct(X), rebuilt, atol=1e-5)


@pytest.mark.parametrize("subtracts", [True, False])
def test_writing_by_the_equations_and_back(tmp_path, subtracts):
    dictionary = random_dictionary("topk", layer=3, apply_b_dec_to_input=subtracts)
    write_folder(tmp_path / "h.2", dictionary)
    features, rebuilt = equations(load_file(tmp_path / "h.2/sae.safetensors"), X)
    # mutation tried: apply_b_dec_to_input ignored
    assert torch.allclose(dictionary.encode(X), features, atol=1e-5)
    assert torch.allclose(dictionary.reconstruct(X), rebuilt, atol=1e-5)
    again = read_folder(tmp_path / "h.2")
    assert again.layer == 3
    assert torch.allclose(again.encode(X), features, atol=1e-5)


def test_sparsify_itself_opens_what_is_written_and_writes_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # read when it is imported; needs no GPU
    sparsify = pytest.importorskip("sparsify", exc_type=ImportError)
    dictionary = random_dictionary("topk", layer=3)
    write_folder(tmp_path / "h.2", dictionary)
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "h.2")
    assert theirs.num_latents == 24

    def compare(own, theirs):
        values, indices, _ = theirs.encode(X)
        dense = torch.zeros(40, 24).scatter(1, indices, values)
        assert torch.allclose(own.encode(X), dense, atol=1e-5)
        assert torch.allclose(own.reconstruct(X), theirs.decode(values, indices), atol=1e-5)

    with torch.no_grad():
        compare(dictionary, theirs)
        torch.manual_seed(0)
        coder = sparsify.SparseCoder(8, sparsify.SparseCoderConfig(expansion_factor=3, k=5))
        coder.encoder.bias.normal_()
        coder.b_dec.normal_()
        coder.save_to_disk(tmp_path / "transformer.h.0")
        own = read_folder(tmp_path / "transformer.h.0")
        assert (own.layer, own.k) == (1, 5)
        compare(own, coder)


def test_module_names():
    assert [module_name(layer) for layer in (0, 1, 12)] == ["drop", "h.0", "h.11"]
    for layer in range(13):
        assert layer_of_module(module_name(layer)) == layer
    assert layer_of_module("layers.3") == layer_of_module("transformer.h.3") == 4
    with pytest.raises(FormatError, match=r'"h.3.mlp" is not a block'):
        layer_of_module("h.3.mlp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "transcode True: saekit reads autoencoders"),
        ({"skip_connection": True}, "skip_connection True"),
        ({"activation": "groupmax"}, "activation groupmax"),
        ({"d_in": 9}, r"encoder.weight should be \(27, 9\) and is \(24, 8\)"),
    ],
)
def test_other_forms_are_refused(tmp_path, changes, message):
    made_by_hand(tmp_path / "h.0", **changes)
    with pytest.raises(FormatError, match=message) as caught:
        read_folder(tmp_path / "h.0")
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(tmp_path):
    weights = made_by_hand(tmp_path / "h.0")
    del weights["W_dec"]
    save_file(weights, tmp_path / "h.0/sae.safetensors")
    with pytest.raises(FormatError, match=r"W_dec should be \(24, 8\) and is nothing"):
        read_folder(tmp_path / "h.0")
    (tmp_path / "h.0/cfg.json").write_text('{"d_in": 8}')
    with pytest.raises(FormatError, match="lacks 'k'"):
        read_folder(tmp_path / "h.0")


def test_what_sparsify_cannot_say_is_not_written(tmp_path):
    for dictionary, message in (
        (random_dictionary("gated"), '"gated"; sparsify has topk only'),
        (random_dictionary("topk", centre_input=True), "without its mean"),
        (replace(random_dictionary("topk"), normalize_activations="layer_norm"), "normalises each"),
    ):
        with pytest.raises(InputError, match=message):
            write_folder(tmp_path / "h.0", dictionary)
    assert not (tmp_path / "h.0").exists()
