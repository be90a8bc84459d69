"""Training on a tiny model: what it writes, what it learns, and how it survives trouble."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from saekit.activations import CachedActivations, residuals, write_cache
from saekit.errors import FormatError, InputError, MismatchError, TrainingError
from saekit.sae.storage import tensors
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.sae.storage.tensors import load_tensors
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.trainer import train
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
    from saekit.sae.training.layer import LayerTraining

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
        patch.setattr("saekit.sae.training.layer.LayerTraining.step", stop_at(27))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_model, documents, CONFIG, out)
    assert (out / "training" / "checkpoint.json").exists()
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
        patch.setattr("saekit.sae.training.layer.LayerTraining.step", stop_at(15))
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


def test_resuming_with_other_input_is_refused(tiny_model, documents, tmp_path, monkeypatch):
    """Another text, another BOS, or a place in a cache where one in a text is needed."""
    with monkeypatch.context() as patch:
        patch.setattr("saekit.sae.training.layer.LayerTraining.step", stop_at(15))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_model, documents, CONFIG, tmp_path, text_name="stories")

    def resumed(model=tiny_model, text=documents, name="stories"):
        return train(model, text, CONFIG, tmp_path, resume=True, text_name=name)

    with pytest.raises(MismatchError, match="text stories -> letters"):
        resumed(name="letters")
    bare = replace(tiny_model, prepend_bos=False)
    with pytest.raises(MismatchError, match="prepend_bos True -> False"):
        resumed(bare)
    cache = write_cache(tiny_model, documents, tmp_path / "cache.h5", 4000, context=32)
    with pytest.raises(MismatchError, match="from a cache"):
        resumed(text=CachedActivations(cache))
    resumed(name="")  # unknown: taken to be the same
    with pytest.raises(MismatchError, match="complete.*text stories -> letters"):
        train(tiny_model, documents, CONFIG, tmp_path / "named", text_name="stories")
        train(tiny_model, documents, CONFIG, tmp_path / "named", resume=True, text_name="letters")


def test_a_signal_in_the_last_step_changes_nothing(tiny_model, documents, tmp_path, monkeypatch):
    """The set is saved, as nothing is left to stop."""
    from saekit.sae.training.layer import LayerTraining

    original = LayerTraining.step

    def signalled(self, *args, **kwargs):
        if self.adam_steps == CONFIG.steps - 1:
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(LayerTraining, "step", original)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LayerTraining, "step", signalled)
    assert train(tiny_model, documents, CONFIG, tmp_path / "set").layers == [0, 1, 2, 3]


def test_slow_runs_are_saved_by_the_clock(tiny_model, documents, tmp_path, monkeypatch):
    """However many tokens lie between two checkpoints; metrics stay those of any other run."""
    monkeypatch.setattr("saekit.sae.training.trainer._CHECKPOINT_SECONDS", 0.0)
    config = replace(CONFIG, checkpoint_tokens=1_000_000)
    with monkeypatch.context() as patch:
        patch.setattr("saekit.sae.training.layer.LayerTraining.step", stop_at(27))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_model, documents, config, tmp_path)
    assert saved_step(tmp_path) == 20


def test_without_decay_firings_are_counted_all_along(tiny_model, documents, tmp_path):
    found = train(tiny_model, documents, replace(CONFIG, decay=0.0), tmp_path / "set")
    assert (10 ** found[3].log_sparsity).sum() == pytest.approx(8, rel=0.05)


def test_activations_that_are_not_finite_name_step_and_layer(tiny_model, documents, tmp_path):
    from saekit.activations import ModelActivations

    class Broken(ModelActivations):
        def next_pass(self):
            found = super().next_pass()
            if self.position()[0] > self.rows_per_pass:  # not in the first pass
                found[2, 5, 7] = float("nan")
            return found

    broken = Broken(tiny_model, documents, None, 32)
    broken.rows_per_pass = 64
    with pytest.raises(TrainingError, match=r"Before step \d+: The activations of layer 2"):
        train(tiny_model, broken, CONFIG, tmp_path)
    assert saved_step(tmp_path) == 10


def test_a_foreign_checkpoint_is_refused(tiny_model, documents, tmp_path):
    work = tmp_path / "training"
    work.mkdir()
    foreign = {"schema_version": 1, "fingerprint": tiny_model.fingerprint, "config": []}
    (work / "checkpoint.json").write_text(json.dumps(foreign))
    with pytest.raises(FormatError, match="no checkpoint of a training"):
        train(tiny_model, documents, CONFIG, tmp_path, resume=True)


def test_a_finished_set_is_not_overwritten(trained, tiny_model, documents):
    with pytest.raises(InputError, match="manifest.json is there already"):
        train(tiny_model, documents, CONFIG, trained.path)


def saved_step(out):
    """The step of the checkpoint, after making sure that it is whole and finite."""
    document = json.loads((out / "training" / "checkpoint.json").read_text())
    for name in set(document["files"].values()):
        tensors, _ = load_tensors(out / "training" / name)
        assert all(torch.isfinite(value.float()).all() for value in tensors.values())
    return document["step"]


def test_full_disk_keeps_the_checkpoint(tiny_model, documents, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    original, calls = tensors.save_file, [0]

    def full(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 2:
            raise SafetensorError("No space left on device (os error 28)")
        return original(*args, **kwargs)

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(InputError, match="step-00000020-0.safetensors.*No space left"):
        train(tiny_model, documents, CONFIG, tmp_path)
    assert saved_step(tmp_path) == 10
    assert train(tiny_model, documents, CONFIG, tmp_path, resume=True).layers == [0, 1, 2, 3]


def test_values_that_are_not_finite_stop_the_run(tiny_model, documents, tmp_path, monkeypatch):
    from saekit.sae.training.layer import LayerTraining

    original = LayerTraining.step

    def broken(self, x, *args, **kwargs):
        if self.layer == 2 and self.adam_steps == 24:
            x = x * float("nan")
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(LayerTraining, "step", broken)
    with pytest.raises(TrainingError, match="layer 2 is nan at step 30"):
        train(tiny_model, documents, CONFIG, tmp_path)
    assert saved_step(tmp_path) == 20


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


RUN = (
    "import sys; from pathlib import Path; from saekit.model.loading import load_model;"
    "from saekit.sae.training.trainer import train;"
    "from saekit.sae.training.config import TrainConfig;"
    "config = TrainConfig(d_sae=64, k=8, tokens=20_000, batch_tokens=100, context=32,"
    "buffer_tokens=1000, checkpoint_tokens=500);"
    "train(load_model(sys.argv[1]), Path(sys.argv[2]), config, sys.argv[3], resume=True)"
)


def hashes(out):
    """SHA-256 of every file of a set but what names the time or the version."""
    files = sorted(p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def short_run(tiny_model_folder, documents, tmp_path_factory):
    """A command line that trains for 200 steps, and the hashes of what it makes undisturbed."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("\n---\n".join(documents))
    command = [sys.executable, "-c", RUN, str(tiny_model_folder), str(text)]
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    return command, hashes(folder / "whole")


def wait_for(condition, process):
    while process.poll() is None and not condition():
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(short_run, tmp_path, number):
    """Weights, sparsity, manifest (and after SIGKILL metrics) are equal to the bit.

    Mutations tried: Adam's moments not restored, dead counters not restored, the buffer's position
    one batch later: each changes the hashes.
    """
    command, expected = short_run
    out = tmp_path / "set"
    checkpoint = out / "training" / "checkpoint.json"
    for step in (20, 90):
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, text=True)
        wait_for(lambda step=step: _step(checkpoint) >= step, process)
        process.send_signal(number)
        errors = process.communicate()[1]
        assert process.returncode != 0
        assert not (out / "manifest.json").exists()
        if number == signal.SIGTERM:
            assert "Stopped by SIGTERM after step" in errors
    assert _step(checkpoint) >= 90
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    found = hashes(out)
    if number == signal.SIGTERM:  # it adds a line of metrics where it stopped
        assert found.pop("metrics.jsonl") != expected["metrics.jsonl"]
        expected = {name: value for name, value in expected.items() if name != "metrics.jsonl"}
    assert found == expected


def _step(checkpoint):
    return json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0


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
