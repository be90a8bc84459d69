"""Sets of other libraries in and out, SAELens releases included (served from a folder)."""

import copy
import json
import logging
import shutil

import pytest
import torch

from saekit.errors import FormatError, InputError, MismatchError
from saekit.model.loading import LanguageModel
from saekit.sae.interchange.sets import export_dictionaries, import_dictionaries
from saekit.sae.storage.dictionary_set import DictionarySet, save_dictionary
from tests.unit.sae.samples import hooked, random_dictionary

X = torch.randn(30, 32, generator=torch.Generator().manual_seed(1)) + 2


def sample(layer, kind="topk", **fields):
    return random_dictionary(kind, layer=layer, d_in=32, d_sae=48, **fields)


@pytest.fixture
def own_set(tmp_path, tiny_model):
    """A saekit set of three layers of the tiny model."""
    folders = {"0": "blocks.0.hook_resid_pre", "2": "blocks.2.hook_resid_pre",
               "3": "blocks.2.hook_resid_post"}  # fmt: skip
    manifest = {
        "model": tiny_model.id, "fingerprint": tiny_model.fingerprint, "prepend_bos": True,
        "layers": [0, 2, 3], "folders": folders, "d_sae": 48,
    }  # fmt: skip
    parts = {n: sample(n, metadata={"hook_name": folders[str(n)]}) for n in (0, 2, 3)}
    DictionarySet(parts, manifest, tmp_path).save(tmp_path / "own")
    return DictionarySet.load(tmp_path / "own")


@pytest.mark.parametrize("library", ["sparsify", "dictionary_learning"])
def test_a_set_goes_out_and_comes_back(tmp_path, own_set, tiny_model, library):
    written = export_dictionaries(own_set, library, tmp_path / "out")
    assert len(written) == 3
    back = import_dictionaries(tmp_path / "out", tmp_path / "back", tiny_model)
    assert back.layers == [0, 2, 3]
    back.check_model(tiny_model)
    assert back.manifest["source"] == {"library": library, "name": "out"}
    assert back.manifest["folders"] == own_set.manifest["folders"]
    for layer in back.layers:
        assert torch.allclose(back[layer].encode(X), own_set[layer].encode(X), atol=1e-5)
        assert torch.allclose(back[layer].reconstruct(X), own_set[layer].reconstruct(X), atol=1e-5)


def test_only_some_layers_go_out(tmp_path, own_set):
    written = export_dictionaries(own_set, "sparsify", tmp_path / "out", [3])
    assert [path.name for path in written] == ["h.2"]
    with pytest.raises(InputError, match="no dictionary for layer 1"):
        export_dictionaries(own_set, "sparsify", tmp_path / "out", [1])
    with pytest.raises(InputError, match='does not write "saelens", only sparsify and'):
        export_dictionaries(own_set, "saelens", tmp_path / "out")


def test_saelens_folders_become_a_set(tmp_path, tiny_model):
    from sae_lens import SAE

    hooks = {1: "blocks.0.hook_resid_post", 3: "blocks.2.hook_resid_post"}  # 1: as saekit's pre
    for layer, hook in hooks.items():
        metadata = {"hook_name": hook, "context_size": 16, "prepend_bos": False}
        kind = "gated" if layer == 1 else "jumprelu"
        save_dictionary(tmp_path / "in" / str(layer), sample(layer, kind, metadata=metadata))
    back = import_dictionaries(tmp_path / "in", tmp_path / "out", tiny_model)
    assert back.manifest["folders"] == {
        "1": "blocks.1.hook_resid_pre",
        "3": "blocks.2.hook_resid_post",
    }
    assert back.manifest["prepend_bos"] is False
    assert back.manifest["training"] == {"context": 16}
    assert back.manifest["architecture"] is None  # they differ
    for layer in hooks:
        theirs = SAE.load_from_disk(tmp_path / "in" / str(layer))
        assert torch.allclose(back[layer].encode(X), theirs.encode(X), atol=1e-5)
        again = SAE.load_from_disk(tmp_path / "out" / back.manifest["folders"][str(layer)])
        assert torch.allclose(again.encode(X), theirs.encode(X), atol=1e-5)


@pytest.fixture
def twelve_layers(tiny_model):
    """A random GPT-2 with the 12 blocks of gpt2-small, 32 wide."""
    from transformers import GPT2LMHeadModel

    config = copy.deepcopy(tiny_model.hf.config)
    config.n_layer = 12
    torch.manual_seed(0)
    return LanguageModel("twelve", GPT2LMHeadModel(config).eval(), tiny_model.tokenizer)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """gpt2-small-res-jb as its repository has it (before SAELens 6, 13 folders), 32 wide."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    repository = tmp_path / "repository"
    places = [(n, f"blocks.{n}.hook_resid_pre") for n in range(12)]
    for layer, hook in [*places, (12, "blocks.11.hook_resid_post")]:
        save_dictionary(repository / hook, sample(layer, "standard"))
        config = {
            "model_name": "gpt2-small", "hook_point": hook, "hook_point_layer": min(layer, 11),
            "d_in": 32, "d_sae": 48, "dtype": "torch.float32", "device": "cpu",
            "context_size": 128, "normalize_activations": "none", "dataset_path": "openwebtext",
        }  # fmt: skip
        (repository / hook / "cfg.json").write_text(json.dumps(config))

    def download(repo_id, filename, force_download=False):
        assert repo_id == "jbloom/GPT2-Small-SAEs-Reformatted"
        if not (repository / filename).exists():
            raise loaders.EntryNotFoundError(filename)
        return str(repository / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return repository


def test_all_13_of_gpt2_small_res_jb_on_the_uncentred_stream(tmp_path, served, twelve_layers):
    """Features and errors of SAELens on TransformerLens' centred stream, from the raw stream."""
    from sae_lens import SAE

    from saekit.activations import residuals

    found = import_dictionaries("gpt2-small-res-jb", tmp_path / "out", twelve_layers)
    assert found.layers == list(range(13))
    assert found.manifest["centre_input"] is True
    assert found.manifest["source"] == {"library": "saelens", "name": "gpt2-small-res-jb"}
    found.check_model(twelve_layers)
    ids = torch.randint(1, 600, (2, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 0
    raw = residuals(twelve_layers, ids)
    for layer in (0, 5, 12):
        sae_id = found.manifest["folders"][str(layer)]
        theirs = SAE.from_pretrained("gpt2-small-res-jb", sae_id)
        x = raw[layer]
        stream = x - x.mean(-1, keepdim=True)
        features = theirs.encode(stream)
        assert features.count_nonzero() > 100
        assert torch.allclose(found[layer].encode(x), features, atol=1e-4)
        error = stream - theirs.decode(features)
        assert torch.allclose(x - found[layer].reconstruct(x), error, atol=1e-4)


def test_centring_is_what_transformer_lens_does(twelve_layers):
    """The stream of centred writing weights is the raw stream without its mean, as assumed."""
    from saekit.activations import residuals

    lens = hooked(twelve_layers, centred=True)
    ids = torch.randint(1, 600, (1, 20), generator=torch.Generator().manual_seed(0))
    raw = residuals(twelve_layers, ids)
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    for layer in (0, 7):
        stream = cache[f"blocks.{layer}.hook_resid_pre"]
        assert torch.allclose(raw[layer] - raw[layer].mean(-1, keepdim=True), stream, atol=1e-4)


def test_some_ids_of_a_release(tmp_path, served, twelve_layers):
    wanted = ["blocks.11.hook_resid_post", "blocks.3.hook_resid_pre"]
    found = import_dictionaries("gpt2-small-res-jb", tmp_path / "out", twelve_layers, wanted)
    assert found.layers == [3, 12]
    with pytest.raises(InputError, match=r'no dictionary "blocks.9" of "gpt2-small-res-jb" \(ID'):
        import_dictionaries("gpt2-small-res-jb", tmp_path / "no", twelve_layers, ["blocks.9"])


def test_no_network_and_no_such_release(tmp_path, twelve_layers):
    with pytest.raises(InputError, match="check both names and the network") as caught:
        import_dictionaries("gpt2-small-res-jb", tmp_path / "out", twelve_layers)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match='"no-such-thing" is neither a folder nor a SAELens rel'):
        import_dictionaries("no-such-thing", tmp_path / "out", twelve_layers)
    assert not (tmp_path / "out").exists()


def test_wrong_models_are_refused(tmp_path, own_set, tiny_model, twelve_layers):
    export_dictionaries(own_set, "sparsify", tmp_path / "out")
    save_dictionary(
        tmp_path / "narrow",
        random_dictionary("topk", metadata={"hook_name": "blocks.1.hook_resid_pre"}),
    )
    with pytest.raises(MismatchError, match="reads 8 dimensions; the stream of .* has 32"):
        import_dictionaries(tmp_path / "narrow", tmp_path / "no", tiny_model)
    shutil.move(tmp_path / "out/h.2", tmp_path / "out/h.9")
    with pytest.raises(MismatchError, match="dictionary of layer 10; .* layers 0 to 3"):
        import_dictionaries(tmp_path / "out", tmp_path / "no", tiny_model)
    with pytest.raises(InputError, match="do not say which model they belong to"):
        import_dictionaries(tmp_path / "out", tmp_path / "no")
    assert import_dictionaries(tmp_path / "out", tmp_path / "yes", twelve_layers).layers[-1] == 10


def test_a_model_that_is_not_here_is_a_warning(tmp_path, own_set, tiny_model, caplog):
    export_dictionaries(own_set, "sparsify", tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        found = import_dictionaries(tmp_path / "out", tmp_path / "in", "gpt2-far-away")
    assert "written without the model's fingerprint" in caplog.text
    assert found.manifest["fingerprint"] is None
    assert found.manifest["folders"]["3"] == "blocks.2.hook_resid_post"
    found.check_model(tiny_model)  # the width is all that can be compared
    assert DictionarySet.load(tmp_path / "in").layers == [0, 2, 3]


def test_what_is_not_there_or_not_clear(tmp_path, own_set, tiny_model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="holds none of sae_weights.safetensors .saelens., sae"):
        import_dictionaries(tmp_path / "empty", tmp_path / "no", tiny_model)
    export_dictionaries(own_set, "sparsify", tmp_path / "two")
    shutil.copytree(tmp_path / "two/h.1", tmp_path / "two/more/h.1")
    with pytest.raises(InputError, match="several dictionaries of layer 2: choose one per layer"):
        import_dictionaries(tmp_path / "two", tmp_path / "no", tiny_model)
    export_dictionaries(own_set, "dictionary_learning", tmp_path / "two")
    with pytest.raises(FormatError, match="dictionaries of sparsify and dictionary_learning"):
        import_dictionaries(tmp_path / "two", tmp_path / "no", tiny_model)
    with pytest.raises(InputError, match="holds a dictionary set already"):
        import_dictionaries(tmp_path / "two", own_set.path, tiny_model)
    with pytest.raises(InputError, match="ids .--id. belong to SAELens releases"):
        import_dictionaries(tmp_path / "two", tmp_path / "no", tiny_model, ["a"])
