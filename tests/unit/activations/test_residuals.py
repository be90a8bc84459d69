"""Bulk activations against Hugging Face's own hidden states."""

import sys
from itertools import islice

import numpy as np
import pytest
import torch

from saekit.activations import check_layers, context_rows, residuals, run_blocks, unembed
from saekit.errors import InputError
from saekit.text import relational


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3, sentences=(1, 1)), 300))


@pytest.fixture(scope="module")
def ids(tiny_model, documents):
    return torch.from_numpy(
        np.stack(list(islice(context_rows(tiny_model, documents, 24), 3)))
    ).long()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_residuals_are_the_hidden_states_before_the_final_norm(tiny_model, ids):
    caught = []
    block = tiny_model.hf.transformer.h[-1]
    handle = block.register_forward_hook(lambda *call: caught.append(call[-1]))
    with torch.no_grad():
        expected = tiny_model.hf(ids, output_hidden_states=True).hidden_states
    handle.remove()
    found = residuals(tiny_model, ids)
    assert found.shape == (4, 3, 24, 32)
    for layer in range(3):
        assert relative(found[layer], expected[layer]) < 1e-5
    # mutation tried: returning Hugging Face's last hidden state, which is after ln_f
    assert relative(found[3], caught[0]) < 1e-5
    assert relative(found[3], expected[3]) > 0.1


def test_scaled_attention_and_other_activation_functions(tiny_model, ids):
    """The options of GPT-2's configuration that change a block."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from saekit.model.loading import LanguageModel

    config = GPT2Config(
        vocab_size=tiny_model.d_vocab, n_positions=32, n_embd=16, n_layer=3, n_head=2,
        scale_attn_by_inverse_layer_idx=True, activation_function="relu", initializer_range=0.2,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    model = LanguageModel("other", hf, tiny_model.tokenizer)
    with torch.no_grad():
        expected = hf(ids, output_hidden_states=True)
        found = residuals(model, ids)
        assert relative(found[2], expected.hidden_states[2]) < 1e-5
        assert relative(unembed(model, found[3]), expected.logits) < 1e-5


def test_a_run_can_be_taken_up_at_any_layer(tiny_model, ids):
    streams = residuals(tiny_model, ids)
    with torch.no_grad():
        assert relative(run_blocks(tiny_model, streams[1], 1, 3), streams[3]) < 1e-6


def test_only_the_needed_blocks_run(tiny_model, ids, monkeypatch):
    bulk = sys.modules["saekit.activations.residuals"]  # the package's name is the function
    called, block = [], bulk._block
    monkeypatch.setattr(bulk, "_block", lambda *of: called.append(of[1]) or block(*of))
    found = residuals(tiny_model, ids, [2, 0])
    assert called == [0, 1]
    assert torch.equal(found, residuals(tiny_model, ids)[[0, 2]])


def test_bf16_is_close(tiny_model, ids):
    assert 1e-5 < relative(residuals(tiny_model, ids, bf16=True), residuals(tiny_model, ids)) < 0.02


def test_layers_are_checked(tiny_model, ids):
    assert check_layers(tiny_model, [2, 0, 2]) == [0, 2]
    with pytest.raises(InputError, match="Layer 4 does not exist.*0 to 3"):
        residuals(tiny_model, ids, [4])
    with pytest.raises(InputError, match="No layer"):
        check_layers(tiny_model, [])
    with pytest.raises(InputError, match="65 positions"):
        residuals(tiny_model, torch.zeros(1, 65, dtype=torch.long))
