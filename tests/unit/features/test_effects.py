import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from saekit.activations import residuals, run_blocks, unembed
from saekit.features.effects import Clamping, logit_rises, prompts_of, quantiles


@pytest.fixture(scope="module")
def clamping(plain_model):
    prompts = [plain_model.prompt(text) for text in (" a large house", " the opposite of large")]
    shortest = min(map(len, prompts))
    return Clamping(plain_model, torch.stack([ids[:shortest] for ids in prompts])), shortest


def test_one_token_with_kept_keys_equals_the_whole_forward_pass(
    clamping, plain_model, dictionaries
):
    # mutations tried: the own key left out of the softmax; the keys of the changed token's old
    # stream kept; both change the result
    clamping, length = clamping
    prompts = torch.stack([
        plain_model.prompt(text)[:length] for text in (" a large house", " the opposite of large")
    ])  # fmt: skip
    for layer in (0, 2, 3):
        dictionary = dictionaries[layer]
        stream = residuals(plain_model, prompts, [layer])[0]
        values = np.array([2.0, 5.0])
        found = clamping.changes(dictionary, [3, 9], values)
        with torch.no_grad():
            clean = unembed(plain_model, run_blocks(plain_model, stream, layer, 3))[:, -1]
            for place, (feature, value) in enumerate(zip((3, 9), values, strict=True)):
                own = dictionary.encode(stream[:, -1])[:, feature]
                changed = stream.clone()
                changed[:, -1] += (value - own)[:, None] * dictionary.W_dec[feature]
                logits = unembed(plain_model, run_blocks(plain_model, changed, layer, 3))[:, -1]
                W_U = plain_model.hf.lm_head.weight
                assert_allclose(found[place] @ W_U.T, (logits - clean).mean(0), atol=2e-4)


def test_the_rise_of_a_token_that_the_feature_writes(clamping, plain_model, make_set):
    """A decoder row that is a token's direction raises that token more than all others do."""
    dictionary = make_set(5)[3]
    token = plain_model.single_token(" large")
    gamma = plain_model.hf.transformer.ln_f.weight.detach()
    W_U = plain_model.hf.lm_head.weight.detach()
    direction = (W_U[token] - W_U.mean(0)) * gamma
    dictionary.W_dec.data[4] = direction / direction.norm()
    values = np.full(dictionary.d_sae, 4.0)
    alive = np.arange(dictionary.d_sae)
    found = logit_rises(clamping[0], dictionary, {4: [token], 5: [token]}, values, alive)
    assert found[4][0] > 0 and found[4][1] >= 0.98  # 4 itself may be among the random ones
    assert found[4][0] > found[5][0]
    assert logit_rises(clamping[0], dictionary, {}, values, alive) == {}


def test_quantiles_from_histograms():
    histogram = np.zeros((3, 50), np.uint32)
    histogram[0, :10] = 10  # even up to a fifth of the range
    histogram[1, 49] = 7
    found = quantiles(histogram, np.array([3, 0, 0], np.int16), 0.9)
    assert_allclose(found, [0.9 * 10 / 50 * 8, 49.9 / 50, 0])


def test_prompts_are_beginnings_of_spread_rows():
    rows = np.arange(20 * 64).reshape(20, 64).astype(np.uint16)
    found = prompts_of(rows)
    assert found.shape == (8, 33)
    assert found[:, 0].tolist() == [0, 2 * 64, 5 * 64, 8 * 64, 10 * 64, 13 * 64, 16 * 64, 19 * 64]
