"""SAELens folders, sets and their manifest: round trips, and files that are not whole."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from saekit.errors import FormatError, InputError, MismatchError
from saekit.sae.storage import dictionary_set as storage
from saekit.sae.storage import tensors
from saekit.sae.storage.dictionary_set import (
    DictionarySet,
    load_dictionary,
    save_dictionary,
    save_tensors,
)
from saekit.sae.storage.manifest import read_manifest
from tests.unit.sae.samples import KINDS, random_dictionary

FOLDERS = {"1": "blocks.1.hook_resid_pre", "3": "blocks.2.hook_resid_post"}


def stored(layer, kind="topk", **fields):
    """A random dictionary with everything that a folder holds."""
    dictionary = random_dictionary(kind, layer)
    dictionary.b_dec.mul_(1e5)  # beyond float16
    sparsity = -torch.rand(24, generator=torch.Generator().manual_seed(0))
    metadata = {"hook_name": FOLDERS[str(layer)], "model_name": "tiny"}
    return replace(dictionary, log_sparsity=sparsity, **{"metadata": metadata, **fields})


@pytest.fixture
def folder(tmp_path):
    manifest = {
        "model": "tiny", "fingerprint": "abc", "weights": "unprocessed", "prepend_bos": True,
        "layers": [1, 3], "folders": FOLDERS, "d_sae": 24,
    }  # fmt: skip
    dictionaries = {layer: stored(layer) for layer in (3, 1)}
    DictionarySet(dictionaries, manifest, tmp_path).save(tmp_path / "set")
    return tmp_path / "set"


def test_a_set_comes_back_equal(folder):
    loaded = DictionarySet.load(folder)
    assert loaded.layers == [1, 3]
    assert len(loaded) == 2
    assert loaded.manifest["schema_version"] == 1
    assert loaded.manifest["saekit"]
    for dictionary in loaded:
        original = stored(dictionary.layer)
        assert dictionary.k == 4
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "log_sparsity"):
            assert torch.equal(getattr(dictionary, name), getattr(original, name))
    with pytest.raises(InputError, match=r"no dictionary for layer 2, only \[1, 3\]"):
        loaded[2]


def tensors_of(dictionary):
    return {name: value for name, value in vars(dictionary).items() if torch.is_tensor(value)}


def inputs(dictionary):
    return dictionary.b_dec + torch.randn(50, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_comes_back_equal(tmp_path, kind):
    original = stored(3, kind)
    save_dictionary(tmp_path, original)
    loaded = load_dictionary(tmp_path)
    assert (loaded.layer, loaded.architecture, loaded.k) == (3, kind, original.k)
    assert tensors_of(loaded).keys() == tensors_of(original).keys()
    for name, value in tensors_of(original).items():
        assert torch.equal(getattr(loaded, name), value)


def agree(own, theirs, x):
    """Equal features and reconstructions of a saekit and a SAELens dictionary."""
    features = theirs.encode(x)
    assert features.count_nonzero() > 0
    assert torch.allclose(own.encode(x), features, rtol=1e-5, atol=1e-5)
    assert torch.allclose(own.reconstruct(x), theirs.decode(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("subtracts", [True, False])
def test_saelens_opens_a_folder_with_equal_outputs(tmp_path, kind, dtype, subtracts):
    from sae_lens import SAE

    save_dictionary(tmp_path, stored(3, kind, apply_b_dec_to_input=subtracts), dtype)
    own, theirs = load_dictionary(tmp_path), SAE.load_from_disk(tmp_path)
    assert own.layer == 3
    assert theirs.cfg.metadata.hook_name == FOLDERS["3"]
    # b_dec is 1e5: where it is not subtracted, small inputs are what can be compared
    x = inputs(own) if subtracts else inputs(own) - own.b_dec
    agree(own, theirs, x)


def saelens_made(folder, kind, **settings):
    """A random SAELens SAE, saved by SAELens."""
    from sae_lens import registry
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(0)
    sae_class, config_class = registry.get_sae_class(kind)
    settings = {"d_in": 8, "d_sae": 24, **settings}
    metadata = settings.pop("metadata", {"hook_name": "blocks.2.hook_resid_post"})
    sae = sae_class(config_class(**settings, metadata=SAEMetadata(**metadata)))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        if kind == "jumprelu":
            sae.threshold.abs_()
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_folder_of_saelens_opens_with_equal_outputs(tmp_path, kind, normalisation):
    k = {"k": 4} if "topk" in kind else {}
    # mutation tried: layer_norm with the biased standard deviation
    theirs = saelens_made(tmp_path, kind, normalize_activations=normalisation, **k)
    own = load_dictionary(tmp_path)
    assert own.layer == 3
    agree(own, theirs, torch.randn(50, 8) + 1)
    save_dictionary(tmp_path / "again", own)
    agree(load_dictionary(tmp_path / "again"), theirs, torch.randn(50, 8) + 1)


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_decoder_norms_are_folded_where_saelens_applies_them_at_run_time(tmp_path, kind):
    theirs = saelens_made(tmp_path, kind, k=4, rescale_acts_by_decoder_norm=True)
    own = load_dictionary(tmp_path)
    # mutation tried: the flag ignored, which chooses other features
    agree(own, theirs, torch.randn(50, 8))
    assert torch.allclose(own.W_dec.norm(dim=1), torch.ones(24))
    save_dictionary(tmp_path / "again", own)
    assert not json.loads((tmp_path / "again/cfg.json").read_text())["rescale_acts_by_decoder_norm"]
    agree(load_dictionary(tmp_path / "again"), theirs, torch.randn(50, 8))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk", "jumprelu", "standard"])
def test_what_saelens_trains_opens_as_what_it_saves_for_inference(tmp_path, kind):
    from sae_lens import SAE, registry

    torch.manual_seed(0)
    training_class, config_class = registry.get_sae_training_class(kind)
    options = {"k": 4, "rescale_acts_by_decoder_norm": True} if "topk" in kind else {}
    if kind == "matryoshka_batchtopk":
        options["matryoshka_widths"] = [8, 24]
    sae = training_class(config_class(d_in=8, d_sae=24, **options))
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
    if "topk" in kind:
        sae.topk_threshold.fill_(0.02)
    sae.save_inference_model(tmp_path)
    own, theirs = load_dictionary(tmp_path), SAE.load_from_disk(tmp_path)
    assert own.architecture == ("jumprelu" if "topk" in kind else kind)
    agree(own, theirs, 5 * torch.randn(50, 8))


def test_a_stream_without_its_mean(tmp_path):
    """Weights of a model with centred writing weights: used on the uncentred stream."""
    metadata = {
        "hook_name": "blocks.1.hook_resid_pre",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    theirs = saelens_made(tmp_path, "standard", metadata=metadata)
    own = load_dictionary(tmp_path)
    x = torch.randn(50, 8) + torch.randn(50, 1)
    centred = x - x.mean(1, keepdim=True)
    features = theirs.encode(centred)
    assert own.centre_input
    assert torch.allclose(own.encode(x), features, atol=1e-5)
    # mutation tried: no mean put back
    expected = theirs.decode(features) + x.mean(1, keepdim=True)
    assert torch.allclose(own.decode(features, x), expected, atol=1e-5)
    # what saekit saves says that it is folded, and is not folded again; SAELens sees the same
    from sae_lens import SAE

    save_dictionary(tmp_path / "again", own)
    again = load_dictionary(tmp_path / "again")
    assert again.centre_input
    assert torch.equal(again.W_enc, own.W_enc)
    assert torch.equal(again.b_enc, own.b_enc)
    reopened = SAE.load_from_disk(tmp_path / "again")
    assert torch.allclose(reopened.encode(centred), features, atol=1e-5)


def test_folders_from_before_saelens_6(tmp_path):
    """The form of gpt2-small-res-jb: all keys at the top level, no architecture."""
    from sae_lens import SAE

    original = random_dictionary("standard")
    save_dictionary(tmp_path, original)
    config = {
        "model_name": "gpt2-small", "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3, "hook_point_head_index": None, "dataset_path": "x",
        "context_size": 128, "d_in": 8, "d_sae": 24, "expansion_factor": 3, "l1_coefficient": 8e-5,
        "dtype": "torch.float32", "device": "cpu", "normalize_activations": False,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    scaling = {"scaling_factor": torch.ones(24)}
    save_tensors(tmp_path / storage.WEIGHTS, {**weights(tmp_path), **scaling})
    own = load_dictionary(tmp_path)
    assert (own.layer, own.architecture) == (3, "standard")
    assert own.metadata["hook_name"] == "blocks.3.hook_resid_pre"
    agree(own, SAE.load_from_disk(tmp_path), torch.randn(50, 8))
    config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    own = load_dictionary(tmp_path)
    assert (own.architecture, own.k) == ("topk", 3)
    agree(own, SAE.load_from_disk(tmp_path), torch.randn(50, 8))


def weights(folder):
    return storage.load_tensors(folder / storage.WEIGHTS)[0]


def test_float16_halves_the_matrices(tmp_path):
    save_dictionary(tmp_path, stored(1), torch.float16)
    loaded, original = load_dictionary(tmp_path), stored(1)
    assert torch.equal(loaded.W_dec, original.W_dec.half().float())
    assert torch.equal(loaded.b_dec, original.b_dec)  # 1e5 would overflow


def edit(path, **changes):
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "not a dictionary set"),
        (lambda f: edit(f / "manifest.json", schema_version=9), "schema_version 9"),
        (lambda f: edit(f / "manifest.json", layers=None), "lacks layers"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda f: shutil.rmtree(f / FOLDERS["1"]), "lacks the folder of layer 1"),
        (lambda f: (f / FOLDERS["1"] / "sae_weights.safetensors").unlink(), "missing"),
        (lambda f: truncate(f / FOLDERS["3"] / "sae_weights.safetensors"), "truncated"),
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", architecture="temporal"), '"temporal"'),
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", architecture="gated"), "b_gate should be"),
        (lambda f: add_tensor(f / FOLDERS["1"]), "holds a tensor extra that no"),
        (lambda f: spoil(f / FOLDERS["3"]), "W_enc has values that are not finite"),
        (
            lambda f: edit(f / FOLDERS["1"] / "cfg.json", reshape_activations="hook_z"),
            "not the residual stream",
        ),
        (
            lambda f: edit(f / FOLDERS["1"] / "cfg.json", metadata={"hook_name": "blocks.1.mlp"}),
            'hook point "blocks.1.mlp"; saekit uses',
        ),
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", k=None), "lacks 'k'"),
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", d_sae=25), r"\(8, 25\) and is \(8, 24\)"),
        (
            lambda f: edit(
                f / FOLDERS["1"] / "cfg.json", normalize_activations="expected_average_only_in"
            ),
            "fold the normalisation",
        ),
        (lambda f: swap(f), "holds layer 3; the manifest says 1"),
    ],
)
def test_damaged_sets_are_refused_in_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(FormatError, match=message) as caught:
        DictionarySet.load(folder)
    assert "\n" not in str(caught.value)


def add_tensor(folder):
    save_tensors(folder / storage.WEIGHTS, {**weights(folder), "extra": torch.zeros(2)})


def spoil(folder):
    values = weights(folder)
    values["W_enc"][0, 5] = float("nan")
    save_tensors(folder / storage.WEIGHTS, values)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def swap(folder):
    shutil.rmtree(folder / FOLDERS["1"])
    shutil.copytree(folder / FOLDERS["3"], folder / FOLDERS["1"])


def test_another_model_is_refused_with_both_fingerprints(folder, tiny_model):
    with pytest.raises(MismatchError, match=f"abc.*{tiny_model.fingerprint}"):
        DictionarySet.load(folder).check_model(tiny_model)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def full(tensors, temporary, metadata=None):
        temporary.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(InputError, match="No space left") as caught:
        save_tensors(path, {"a": torch.ones(2)})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_save_is_not_a_set(folder, monkeypatch):
    dictionaries = DictionarySet.load(folder)
    monkeypatch.setattr(
        storage, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        dictionaries.save(folder)
    with pytest.raises(FormatError, match="not a dictionary set"):
        read_manifest(folder)


def test_the_manifest_is_read_without_torch():
    import subprocess
    import sys

    code = (
        "import saekit.sae.storage.manifest, saekit.sae.training.config, sys;"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
