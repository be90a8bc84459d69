"""SAELens folders, sets and their manifest: round trips, and files that are not whole."""

import json
import shutil

import pytest
import torch
from safetensors import SafetensorError

from saekit.errors import FormatError, InputError, MismatchError
from saekit.sae import storage
from saekit.sae.dictionary import Dictionary
from saekit.sae.manifest import read_manifest
from saekit.sae.storage import DictionarySet, load_dictionary, save_dictionary, save_tensors

FOLDERS = {"1": "blocks.1.hook_resid_pre", "3": "blocks.2.hook_resid_post"}


def random_dictionary(layer, architecture="topk"):
    generator = torch.Generator().manual_seed(layer)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        layer=layer,
        architecture=architecture,
        k=4 if architecture == "topk" else None,
        threshold=normal(24).abs() if architecture == "jumprelu" else None,
        W_enc=normal(8, 24),
        b_enc=normal(24),
        W_dec=normal(24, 8),
        b_dec=1e5 * normal(8),  # beyond float16
        log_sparsity=-normal(24).abs(),
        metadata={"hook_name": FOLDERS[str(layer)], "model_name": "tiny"},
    )


@pytest.fixture
def folder(tmp_path):
    manifest = {
        "model": "tiny", "fingerprint": "abc", "weights": "unprocessed", "prepend_bos": True,
        "layers": [1, 3], "folders": FOLDERS, "d_sae": 24,
    }  # fmt: skip
    dictionaries = {layer: random_dictionary(layer) for layer in (3, 1)}
    DictionarySet(dictionaries, manifest, tmp_path).save(tmp_path / "set")
    return tmp_path / "set"


def test_a_set_comes_back_equal(folder):
    loaded = DictionarySet.load(folder)
    assert loaded.layers == [1, 3]
    assert len(loaded) == 2
    assert loaded.manifest["schema_version"] == 1
    assert loaded.manifest["saekit"]
    for dictionary in loaded:
        original = random_dictionary(dictionary.layer)
        assert dictionary.k == 4
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "log_sparsity"):
            assert torch.equal(getattr(dictionary, name), getattr(original, name))
    with pytest.raises(InputError, match=r"no dictionary for layer 2, only \[1, 3\]"):
        loaded[2]


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saelens_opens_a_folder_with_equal_outputs(tmp_path, architecture, dtype):
    from sae_lens import SAE

    save_dictionary(tmp_path, random_dictionary(3, architecture), dtype)
    own, theirs = load_dictionary(tmp_path), SAE.load_from_disk(tmp_path)
    assert own.layer == 3
    assert theirs.cfg.metadata.hook_name == FOLDERS["3"]
    x = own.b_dec + torch.randn(50, 8)
    features = theirs.encode(x)
    assert features.count_nonzero() > 0
    assert torch.allclose(own.encode(x), features, rtol=1e-5, atol=1e-5)
    assert torch.allclose(own.decode(features), theirs.decode(features), rtol=1e-5)


def test_float16_halves_the_matrices(tmp_path):
    save_dictionary(tmp_path, random_dictionary(1), torch.float16)
    loaded, original = load_dictionary(tmp_path), random_dictionary(1)
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
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", architecture="gated"), '"gated"'),
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", k=None), "lacks 'k'"),
        (lambda f: edit(f / FOLDERS["1"] / "cfg.json", d_sae=25), r"\(8, 25\) and is \(8, 24\)"),
        (
            lambda f: edit(f / FOLDERS["1"] / "cfg.json", normalize_activations="layer_norm"),
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

    monkeypatch.setattr(storage, "save_file", full)
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

    code = "import saekit.sae.manifest, saekit.sae.config, sys; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
