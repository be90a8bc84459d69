"""Gated attention: the same in plain loops, `transformers`, the bulk pass and the exact one.

Mutations tried by hand, each of which fails here: the gate left out; gated rows renormalised; the
sign of the gate bias; the gate read before the score is scaled; the bulk pass left dense; the gates
left out of the fingerprint.
"""

import copy
import math

import pytest
import torch

from saekit.activations import residuals
from saekit.activations.bf16 import can_run
from saekit.errors import ModelError
from saekit.model.exact import ExactModel
from saekit.model.gating import IMPLEMENTATION, gate_bias
from saekit.model.loading import LanguageModel, load_model
from saekit.model.pretraining.saving import save_model

PROMPT = 'The opposite of "large" is "'


@pytest.fixture(scope="module")
def exact(gated_model):
    return ExactModel(gated_model, torch.float64)


@pytest.fixture(scope="module")
def clean(exact, gated_model):
    return exact.run(gated_model.prompt(PROMPT))


def test_the_pattern_by_hand(exact, clean):
    """Query 6 of every head, number by number: softmax over all keys, then closed edges at 0."""
    q, sums = 6, []
    for m, w in enumerate(exact.blocks):
        normed, _ = exact.norm(clean.resid[m], w.gamma1, w.beta1)
        flat = normed @ w.W_QKV + w.b_QKV
        for h in range(4):
            query, key = flat[q, h * 8 : h * 8 + 8], flat[:, 32 + h * 8 : 32 + h * 8 + 8]
            scores = [float(query @ key[k]) / math.sqrt(8) for k in range(q + 1)]
            whole = sum(math.exp(s) for s in scores)
            bias = float(exact.gate_bias[m, h])
            expected = [math.exp(s) / whole * (s + bias > 0) for s in scores] + [0.0, 0.0]
            assert clean.pattern[m, h, q].tolist() == pytest.approx(expected, rel=1e-9)
            sums.append(sum(expected))
    assert any(0.01 < total < 0.9 for total in sums)


def test_some_edges_are_closed_and_rows_are_not_renormalised(clean):
    causal = torch.ones(9, 9).tril().bool()
    closed = (clean.pattern == 0)[:, :, causal].double().mean()
    assert 0.2 < closed < 0.8
    rows = clean.pattern.sum(-1)
    assert rows.max() <= 1 + 1e-12
    assert (rows < 0.9).any()


def test_transformers_and_the_bulk_pass_close_the_same_edges(gated_model, clean):
    ids = gated_model.prompt(PROMPT)
    hf = copy.deepcopy(gated_model.hf).double()
    with torch.no_grad():
        out = hf(ids[None], output_hidden_states=True, output_attentions=True)
        single = gated_model.hf(torch.stack([ids, ids.flip(0)])).logits[0]
    torch.testing.assert_close(out.logits[0], clean.logits)
    torch.testing.assert_close(single.double(), clean.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(out.attentions), clean.pattern)
    bulk = residuals(gated_model, ids[None])[:, 0]
    torch.testing.assert_close(bulk.double(), clean.resid, rtol=1e-4, atol=1e-4)
    assert not can_run(gated_model)


def test_open_gates_are_dense_attention(tiny_model, gated_model):
    hf = copy.deepcopy(gated_model.hf)
    hf.config.gate_bias = [[1e6] * 4] * 3
    opened = ExactModel(LanguageModel("open", hf, tiny_model.tokenizer), torch.float64)
    ids = tiny_model.prompt(PROMPT)
    dense = ExactModel(tiny_model, torch.float64).run(ids)
    torch.testing.assert_close(opened.run(ids).logits, dense.logits)


def test_a_gated_folder_is_opened_gated_and_is_another_model(gated_model, tiny_model, tmp_path):
    save_model(gated_model.hf, tiny_model.tokenizer.backend_tokenizer, tmp_path)
    opened = load_model(str(tmp_path))
    assert opened.hf.config._attn_implementation == IMPLEMENTATION
    torch.testing.assert_close(opened.gate_bias, gated_model.gate_bias)
    hf = copy.deepcopy(gated_model.hf)
    hf.config.gate_bias[0][0] += 0.5
    other = LanguageModel("other", hf, tiny_model.tokenizer)
    fingerprints = {gated_model.fingerprint, tiny_model.fingerprint, other.fingerprint}
    assert len(fingerprints) == 3


@pytest.mark.parametrize("bias", [None, [[0.0] * 4], [["a"] * 4] * 3, [[math.nan] * 4] * 3, 3])
def test_bad_gates_are_refused(tiny_model, bias):
    config = copy.deepcopy(tiny_model.hf.config)
    assert gate_bias(config) is None
    config.attention = "gated"
    if bias is not None:
        config.gate_bias = bias
    with pytest.raises(ModelError, match="gate_bias as 3 lists of 4 numbers"):
        gate_bias(config)
    config.attention = "linear"
    with pytest.raises(ModelError, match='is "linear"; saekit reads dense and gated'):
        gate_bias(config)
