"""Training on a tiny model: what it writes, what it learns, and how it survives trouble."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from saekit.activations import residuals
from saekit.errors import InputError, MismatchError, TrainingError
from saekit.sae import storage
from saekit.sae.config import TrainConfig
from saekit.sae.storage import DictionarySet
from saekit.sae.training import train
from saekit.text import relational

CONFIG = TrainConfig(
    d_sae=64, k=8, tokens=4000, batch_tokens=100, context=32, buffer_tokens=1000,
    dead_tokens=1500, checkpoint_tokens=1000, bf16=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3), 300))


@pytest.fixture(scope="module")
def trained(tiny_model, documents, tmp_path_factory):
    return train(tiny_model, documents, CONFIG, tmp_path_factory.mktemp("trained") / "set")


def test_what_is_written(trained, tiny_model):
    folder = trained.path
    hooks = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    hooks.append("blocks.2.hook_resid_post")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([*hooks, "manifest.json", "metrics.jsonl"])
    for hook in hooks:
        assert sorted(path.name for path in (folder / hook).iterdir()) == [
            "cfg.json", "sae_weights.safetensors", "sparsity.safetensors",
        ]  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fingerprint"] == tiny_model.fingerprint
    assert manifest["weights"] == "unprocessed"
    assert manifest["prepend_bos"] is True
    assert manifest["layers"] == trained.layers == [0, 1, 2, 3]
    assert manifest["tokens"] == 4000
    assert manifest["training"]["k"] == 8
    figures = manifest["metrics"]["3"]
    assert set(figures) == {"fvu", "l0", "dead_share", "never_active_share"}
    # 8 active features per token over the 16 decaying steps of 100 tokens
    rates = 10 ** trained[3].log_sparsity
    assert rates.sum() == pytest.approx(8, rel=0.05)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 10, 20, 30, 40]
    assert all(len(lines[-1][name]) == 4 for name in ("fvu", "l0", "dead_share", "layers"))


def test_it_learns(trained):
    lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    for layer in range(4):
        assert lines[-1]["fvu"][layer] < 0.75 * lines[0]["fvu"][layer]
    assert lines[-1]["l0"] == pytest.approx([8] * 4, abs=0.5)


def test_folded_dictionaries_read_the_models_own_activations(trained, tiny_model, documents):
    """The scale is gone: reconstruction error on raw activations is that of the training."""
    ids = torch.tensor([[tiny_model.bos, *tiny_model.tokens(" ".join(documents[:20]))[:60]]])
    streams = residuals(tiny_model, ids)[:, 0, 1:]
    for layer, dictionary in enumerate(trained):
        x = streams[layer]
        error = (x - dictionary.decode(dictionary.encode(x))).square().sum()
        fvu = error / (x - x.mean(0)).square().sum()
        # mutation tried: b_dec left in training units
        assert fvu < 2 * trained.manifest["metrics"][str(layer)]["fvu"] + 0.05
        assert torch.allclose(dictionary.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)


def test_saelens_opens_every_layer(trained):
    from sae_lens import SAE

    for dictionary in trained:
        hook = trained.manifest["folders"][str(dictionary.layer)]
        theirs = SAE.load_from_disk(trained.path / hook)
        assert theirs.cfg.metadata.hook_name == hook
        x = 3 * torch.randn(64, 32)
        features = dictionary.encode(x)
        assert torch.allclose(theirs.encode(x), features, atol=1e-5)
        assert torch.allclose(theirs.decode(features), dictionary.decode(features), atol=1e-5)


def test_layers_of_very_different_norm(tiny_model, documents, tmp_path):
    """A stream that is 1000 times larger is learnt as well as the original."""
    import copy

    large = copy.deepcopy(tiny_model.hf)
    with torch.no_grad():
        for table in (large.transformer.wte.weight, large.transformer.wpe.weight):
            table *= 1000
    from saekit.model.loading import LanguageModel

    model = LanguageModel("large", large, tiny_model.tokenizer)
    config = replace(CONFIG, layers=(0,))
    figures = [
        train(m, documents, config, tmp_path / m.id.replace("/", "_")).manifest["metrics"]["0"]
        for m in (model, replace(tiny_model, id="small"))
    ]
    assert figures[0]["fvu"] == pytest.approx(figures[1]["fvu"], rel=0.05)


def weights_of(dictionaries):
    return torch.cat(
        [t.flatten() for d in dictionaries for t in (d.W_enc, d.b_enc, d.W_dec, d.b_dec)]
    )


def stop_at(step, error=KeyboardInterrupt):
    """A patched `LayerTraining.step` that fails in the given step."""
    from saekit.sae.layer import LayerTraining

    original, calls = LayerTraining.step, [0]

    def counted(self, *args, **kwargs):
        calls[0] += 1
        if calls[0] > 4 * (step - 1):
            raise error
        return original(self, *args, **kwargs)

    return counted


def test_a_resumed_run_gives_the_same_dictionaries(
    trained, tiny_model, documents, tmp_path, monkeypatch
):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("saekit.sae.layer.LayerTraining.step", stop_at(27))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_model, documents, CONFIG, out)
    assert (out / "training" / "checkpoint.safetensors").exists()
    resumed = train(tiny_model, documents, CONFIG, out, resume=True)
    assert torch.equal(weights_of(resumed), weights_of(trained))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == steps
    assert steps[-1] == 40
    assert not (out / "training").exists()
    again = train(tiny_model, documents, CONFIG, out, resume=True)  # finished: only read
    assert torch.equal(weights_of(again), weights_of(trained))
    with pytest.raises(MismatchError, match="complete.*tokens 4000 -> 5000"):
        train(tiny_model, documents, replace(CONFIG, tokens=5000), out, resume=True)


def test_resuming_with_other_settings_or_model_is_refused(
    tiny_model, documents, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("saekit.sae.layer.LayerTraining.step", stop_at(15))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_model, documents, CONFIG, tmp_path)
    with pytest.raises(InputError, match=r"there already.*--resume"):
        train(tiny_model, documents, CONFIG, tmp_path)
    with pytest.raises(MismatchError, match="k 8 -> 9"):
        train(tiny_model, documents, replace(CONFIG, k=9), tmp_path, resume=True)
    other = replace(tiny_model)
    other.__dict__["fingerprint"] = "another"
    with pytest.raises(MismatchError, match="another"):
        train(other, documents, CONFIG, tmp_path, resume=True)


def test_a_finished_set_is_not_overwritten(trained, tiny_model, documents):
    with pytest.raises(InputError, match="manifest.json is there already"):
        train(tiny_model, documents, CONFIG, trained.path)


def test_full_disk_keeps_the_checkpoint(tiny_model, documents, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    original, calls = storage.save_file, [0]

    def full(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 2:
            raise SafetensorError("No space left on device (os error 28)")
        return original(*args, **kwargs)

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(InputError, match="checkpoint.safetensors.*No space left"):
        train(tiny_model, documents, CONFIG, tmp_path)
    tensors, _ = storage.load_tensors(tmp_path / "training" / "checkpoint.safetensors")
    assert tensors["position"][0] == 10
    assert train(tiny_model, documents, CONFIG, tmp_path, resume=True).layers == [0, 1, 2, 3]


def test_values_that_are_not_finite_stop_the_run(tiny_model, documents, tmp_path, monkeypatch):
    from saekit.sae.layer import LayerTraining

    original = LayerTraining.step

    def broken(self, x, *args, **kwargs):
        if self.layer == 2 and self.since_fired.max() >= 0 and self.adam.state:
            done = int(next(iter(self.adam.state.values()))["step"])
            if done == 24:
                x = x * float("nan")
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(LayerTraining, "step", broken)
    with pytest.raises(TrainingError, match="layer 2 is nan at step 30"):
        train(tiny_model, documents, CONFIG, tmp_path)
    tensors, _ = storage.load_tensors(tmp_path / "training" / "checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert tensors["position"][0] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "only 64 features"),
        ({"layers": (0, 4)}, "Layer 4 does not exist"),
        ({"context": 65}, "context of 65"),
        ({"tokens": 50}, "less than one batch"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"warmup": 0.7, "decay": 0.5}, "shares of the training"),
        ({"buffer_tokens": 0}, "buffer_tokens is 0"),
        ({"aux_k": -1}, "must not be negative"),
    ],
)
def test_impossible_settings(tiny_model, documents, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train(tiny_model, documents, replace(CONFIG, **change), tmp_path)


def test_no_text_and_no_place(tiny_model, documents, tmp_path):
    with pytest.raises(InputError, match="shorter than one context"):
        train(tiny_model, ["short"], CONFIG, tmp_path / "a")
    with pytest.raises(InputError, match="no such file"):
        train(tiny_model, tmp_path / "none.txt", CONFIG, tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write to"):
        train(tiny_model, documents, CONFIG, tmp_path / "file" / "set")


def test_learning_rate():
    config = TrainConfig(tokens=10_000, batch_tokens=100, lr=1.0, warmup=0.1, decay=0.5)
    assert config.steps == 100
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(9) == config.rate(50) == 1
    assert config.rate(75) == pytest.approx(0.5)
    assert config.rate(99) == pytest.approx(0.02)


def test_folding_the_scale():
    """Activations and reconstructions in model units are those of training, over the scale.

    Mutation tried: b_enc left in training units.
    """
    from saekit.sae.layer import LayerTraining

    generator = torch.Generator().manual_seed(0)
    x = 1000 * torch.randn(500, 16, generator=generator) + 500
    training = LayerTraining(0, 16, CONFIG, torch.device("cpu"))
    training.fit_input(x)
    scale, weights = training.scale, training.weights
    assert ((x - x.mean(0)) * scale).square().sum(1).mean() == pytest.approx(16, rel=1e-4)
    weights.b_enc.copy_(torch.randn(64, generator=generator))
    pre = (x * scale - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    top = pre.topk(CONFIG.k, dim=1)
    features = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    rebuilt = features @ weights.W_dec + weights.b_dec
    dictionary = training.dictionary({})
    assert torch.allclose(dictionary.encode(x) * scale, features, atol=1e-4)
    assert torch.allclose(dictionary.decode(dictionary.encode(x)) * scale, rebuilt, atol=1e-4)


def test_dead_features_come_back():
    """AuxK: features that cannot fire are dead after `dead_tokens`, then pushed until they do."""
    from saekit.sae.layer import LayerTraining

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    shares = []
    for coefficient in (0.0, 1 / 32):
        config = replace(CONFIG, k=4, dead_tokens=1024, aux_k=8, aux_coefficient=coefficient)
        training = LayerTraining(0, 16, config, torch.device("cpu"))
        training.fit_input(x)
        training.weights.b_enc[:32] = -6.0
        for _ in range(150):
            training.step(torch.randn(256, 16, generator=generator), 1e-2, False)
        shares.append(training.dead_share.item())
    assert shares[0] > 0.4
    assert shares[1] < 0.1


@pytest.mark.slow
def test_a_killed_run_goes_on(tiny_model_folder, documents, tmp_path):
    """SIGKILL while training; the newest checkpoint is whole and the run continues from it."""
    text = tmp_path / "text.txt"
    text.write_text("\n---\n".join(documents))
    code = (
        "import sys; from pathlib import Path; from saekit.model.loading import load_model;"
        "from saekit.sae.training import train; from saekit.sae.config import TrainConfig;"
        "config = TrainConfig(d_sae=64, k=8, tokens=400_000, batch_tokens=100, context=32,"
        "buffer_tokens=1000, checkpoint_tokens=500);"
        "train(load_model(sys.argv[1]), Path(sys.argv[2]), config, sys.argv[3], resume=True)"
    )
    out = tmp_path / "set"
    checkpoint = out / "training" / "checkpoint.safetensors"
    command = [sys.executable, "-c", code, str(tiny_model_folder), str(text), str(out)]
    positions = []
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        tensors, _ = storage.load_tensors(checkpoint)
        positions.append(int(tensors["position"][0]))
    assert 0 < positions[0] < positions[1]
    assert not (out / "manifest.json").exists()


def test_the_set_can_be_stored_in_float16(trained, tmp_path):
    trained_again = DictionarySet.load(trained.path)
    trained_again.save(tmp_path, torch.float16)
    half = DictionarySet.load(tmp_path)
    assert torch.allclose(half[2].W_enc, trained[2].W_enc, rtol=1e-3, atol=1e-6)
    assert sum(f.stat().st_size for f in tmp_path.rglob("sae_weights*")) < 0.65 * sum(
        f.stat().st_size for f in trained.path.rglob("sae_weights*")
    )


def test_without_a_folder_the_set_stays_in_memory(tiny_model, documents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dictionaries = train(tiny_model, documents, replace(CONFIG, tokens=1024))
    assert list(tmp_path.iterdir()) == []
    x = torch.randn(3, tiny_model.d_model)
    values, indices = dictionaries[0].encode_sparse(x)
    torch.testing.assert_close(
        dictionaries[0].decode_sparse(values, indices),
        dictionaries[0].decode(dictionaries[0].encode(x)),
    )
    dictionaries.save(tmp_path / "kept")
    kept = DictionarySet.load(tmp_path / "kept")
    assert torch.equal(kept[0].W_enc, dictionaries[0].W_enc)
