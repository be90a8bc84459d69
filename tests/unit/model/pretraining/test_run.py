"""The script that makes gpt2-mini, on a model that takes seconds."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from saekit.errors import InputError, TrainingError
from saekit.model.loading import load_model
from saekit.model.pretraining import batches as pretraining_text
from saekit.model.pretraining import run as pretraining
from saekit.model.pretraining.batches import BLOCK, Batches
from saekit.model.pretraining.recipe import PretrainConfig
from saekit.model.pretraining.run import learning_rate, pretrain

TINY = PretrainConfig(
    d_model=16, n_layers=2, n_heads=2, n_ctx=64, vocabulary=700, tokens=256 * 40, context=32,
    batch_tokens=256, warmup_steps=4, checkpoint_steps=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from saekit.text.corpora import prose

    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n---\n".join(prose()[:6]))
    return [path]


@pytest.fixture(scope="module")
def quick_tokenizer():
    """The real one reads 20,000 documents; a twentieth is enough here."""
    patch = pytest.MonkeyPatch()
    documents = pretraining_text.relational.documents
    real = pretraining.make_tokenizer

    def make_tokenizer(corpus, config):
        with pytest.MonkeyPatch.context() as inner:
            few = islice(documents(seed=config.seed), 1000)
            inner.setattr(pretraining_text.relational, "documents", lambda seed: few)
            return real(corpus, config)

    patch.setattr(pretraining, "make_tokenizer", make_tokenizer)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(corpus, quick_tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    return out, pretrain(corpus, out, TINY, held_out=corpus, compiled=False)


def losses(out):
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_end_to_end(finished):
    out, manifest = finished
    model = load_model(str(out))
    assert (model.n_layers, model.n_heads, model.d_model, model.n_ctx) == (2, 2, 16, 64)
    assert manifest["fingerprint"] == model.fingerprint
    assert manifest["training"]["trained_tokens"] == TINY.tokens
    assert manifest["training"]["steps"] == 40
    assert manifest["figures"]["seed_tokens"] == len(model.tokens('The opposite of "large" is "'))
    assert manifest["figures"]["corpus_loss"] < np.log(700)  # better than a uniform guess
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert [line["step"] for line in losses(out)] == [10, 20, 25, 30, 40]


def test_the_loss_falls(corpus, finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "write_manifest", lambda *_: {})
        pretrain(corpus, tmp_path, replace(TINY, tokens=256 * 100), compiled=False)
    assert losses(tmp_path)[-1]["loss"] < losses(tmp_path)[0]["loss"] - 0.3


def test_an_interrupted_run_ends_as_an_uninterrupted_one(corpus, finished, tmp_path, monkeypatch):
    """Killed after the second checkpoint and some steps more; every weight must be the same.

    Mutation tried: not restoring the optimisers' states fails here.
    """
    out, manifest = finished
    steps = []
    real = pretraining.learning_rate

    def killed_at_step_27(done, step, config):
        steps.append(step)
        if len(steps) == 28:
            raise KeyboardInterrupt
        return real(done, step, config)

    monkeypatch.setattr(pretraining, "learning_rate", killed_at_step_27)
    with pytest.raises(KeyboardInterrupt):
        pretrain(corpus, tmp_path, TINY, compiled=False)
    assert load_file(tmp_path / "training" / "checkpoint.safetensors")["progress"].tolist() == [
        20, 20 * 256,
    ]  # fmt: skip
    with (tmp_path / "training" / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 26, "tok')
    resumed = pretrain(corpus, tmp_path, TINY, compiled=False)
    assert steps[28] == 20
    assert resumed["fingerprint"] == manifest["fingerprint"]
    expected = load_file(out / "training" / "checkpoint.safetensors")
    for name, value in load_file(tmp_path / "training" / "checkpoint.safetensors").items():
        assert torch.equal(value, expected[name]), name
    assert [line["step"] for line in losses(tmp_path)] == [10, 20, 25, 30, 40]  # 25 only once


def test_a_finished_run_is_only_measured_again(finished, corpus):
    out, manifest = finished
    again = pretrain(corpus, out, TINY, held_out=corpus, compiled=False)
    assert again["fingerprint"] == manifest["fingerprint"]
    assert again["figures"] == manifest["figures"]


def test_checkpoint_of_another_model(finished, corpus):
    out, _ = finished
    before = (out / "training" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="does not continue this run"):
        pretrain(corpus, out, replace(TINY, d_model=32), compiled=False)
    assert (out / "training" / "checkpoint.safetensors").read_bytes() == before


def test_loss_that_is_not_finite(corpus, finished, tmp_path):
    with pytest.raises(TrainingError, match="The loss is nan at step 10"):
        pretrain(corpus, tmp_path, replace(TINY, lr=float("inf")), compiled=False)
    assert not (tmp_path / "training" / "checkpoint.safetensors").exists()


def test_batches(finished):
    """Half the rows are generated, each row begins with BOS, natural windows are not repeated."""
    tokenizer = Tokenizer.from_file(str(finished[0] / "training" / "tokenizer.json"))
    corpus = np.arange(300, 600).repeat(10)[: 31 * 90].astype(np.uint16)
    corpus = (np.arange(len(corpus)) % 400 + 300).astype(np.uint16)
    batches = Batches(corpus, tokenizer, replace(TINY, generated_share=0.75))
    block = batches.block(0, 32)
    assert block.shape == (BLOCK, 8, 32)
    assert (block[..., 0] == 0).all()
    rows = block.flatten(0, 1)
    natural = [row for row in rows if ((row[2:] - row[1:-1]) % 400 == 1).all()]
    assert len(natural) == 64  # a quarter
    assert torch.equal(block, Batches(corpus, tokenizer, batches.config).block(0, 32))
    assert not torch.equal(block, batches.block(1, 32))


def test_learning_rate():
    config = replace(TINY, warmup_steps=10, decay_share=0.2)
    assert learning_rate(0.0, 0, config) == pytest.approx(0.1)
    assert learning_rate(0.01, 9, config) == 1.0
    assert learning_rate(0.79, 500, config) == 1.0
    assert learning_rate(0.9, 500, config) == pytest.approx(0.5)
    assert learning_rate(1.0, 500, config) == 0.0


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_heads": 3}, "d_model 16 is not divisible by 3 heads"),
        ({"context": 65}, "context 65, n_ctx 64"),
        ({"batch_tokens": 63}, "batch_tokens 63"),
        ({"vocabulary": 70_000}, "vocabulary of 70000"),
    ],
)
def test_sizes_that_do_not_fit(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(TINY, **wrong)


def test_text_that_is_missing_or_too_short(tmp_path, quick_tokenizer):
    with pytest.raises(InputError, match="needs --text"):
        pretrain([], tmp_path, TINY)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(InputError, match=r"has only \d+ tokens: give at least 64"):
        pretrain([tmp_path / "short.txt"], tmp_path / "out", TINY)
