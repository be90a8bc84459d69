"""QK attribution: exact on a random GPT-2, and a match planted between two features is found.

Mutations tried by hand, each of which fails here: the score's scale dropped; LayerNorm's scale of
another position; the stream not centred; W_K in place of W_Q; the biases dropped; the key itself
among those it is contrasted with; the sign of the gate bias in the margin.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saekit.errors import InputError
from saekit.model.exact import ExactModel
from saekit.routes.attribution.qk import REST, split_score

PROMPT = 'The opposite of "large" is "'


@pytest.fixture(scope="module", params=["dense", "gated"])
def exact(request, tiny_model, gated_model):
    model = tiny_model if request.param == "dense" else gated_model
    return ExactModel(model, torch.float64)


def scores_by_hand(exact, clean, m, h, q):
    """score[q, k] of all keys, from the stored keys and the query computed again."""
    w = exact.blocks[m]
    normed, _ = exact.norm(clean.resid[m, q], w.gamma1, w.beta1)
    query = (normed @ w.W_QKV + w.b_QKV)[:32][h * 8 : h * 8 + 8]
    return clean.key[m, h, : q + 1] @ query * w.score_scale


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ids=st.lists(st.integers(1, 600), min_size=3, max_size=12),
    head=st.tuples(st.integers(0, 2), st.integers(0, 3)),
    seed=st.integers(0, 99),
)
def test_the_parts_sum_to_score_and_contrast(exact, random_dictionaries, ids, head, seed):
    clean = exact.run(torch.tensor(ids))
    q = len(ids) - 1
    key = seed % q
    expected = scores_by_hand(exact, clean, *head, q)
    others = [k for k in range(q + 1) if k != key]
    for against in (others, others[:1]):
        split = split_score(exact, clean, random_dictionaries[head[0]], head, q, key, against)
        assert split.score == pytest.approx(float(expected[key]), rel=1e-9, abs=1e-11)
        contrast = float(expected[key] - expected[against].mean())
        assert split.contrast == pytest.approx(contrast, rel=1e-9, abs=1e-11)
        assert split.absolute.shape == (len(split.query_parts), len(split.key_parts))
        assert float(split.absolute.sum()) == pytest.approx(split.score)
    assert split.query_parts[-3:] == split.key_parts[-3:] == list(REST)
    assert len(split.query_parts) <= 6 + 3
    # a constant on the key side is the same for all keys
    assert split.table[:, -1].abs().max() < 1e-12
    rest = split.table[-3:].sum() + split.table[:-3, -3:].sum()
    assert split.in_features() + float(rest) == pytest.approx(split.contrast, abs=1e-11)


def test_one_pair_is_the_formula(exact, random_dictionaries, tiny_model):
    """f_i f_j / (sigma sigma sqrt(d_head)) (d_i C gamma W_Q) . (d_j C gamma W_K), by hand."""
    clean = exact.run(tiny_model.prompt(PROMPT))
    m, h, q, k = 1, 2, 8, 5
    dictionary, w = random_dictionaries[m], exact.blocks[m]
    split = split_score(exact, clean, dictionary, (m, h), q, k, [3])
    pair = split.top(1, absolute=True)[0]
    sides = []
    for feature, position, first in ((pair.query, q, 0), (pair.key, k, 32)):
        f = float(dictionary.encode(clean.resid[m, position].float())[feature])
        row = dictionary.W_dec[feature].double()
        W = w.W_QKV[:, first + h * 8 : first + h * 8 + 8]
        sides.append(f / clean.scale1[m, position] * (((row - row.mean()) * w.gamma1) @ W))
    assert pair.value == pytest.approx(float(sides[0] @ sides[1]) / 8**0.5, rel=1e-6)


def test_the_gate_of_a_gated_model_reads_the_absolute_score(exact, random_dictionaries, tiny_model):
    clean = exact.run(tiny_model.prompt(PROMPT))
    for h in range(4):
        split = split_score(exact, clean, random_dictionaries[1], (1, h), 8, 5, [1, 2])
        if exact.gate_bias is None:
            assert split.margin is None
        else:
            assert (split.margin > 0) == bool(clean.pattern[1, h, 8, 5] > 0)


def test_a_planted_match_is_the_top_pair(planted, known_features, basis):
    """L1-H2 asks for u wherever the quote stands: query feature 1 (v at the quote), key feature 0.

    The planted model's embeddings have no v, so the quote's row gets 2 v; W_Q reads v, W_K reads u.
    """
    u, v = basis
    model = planted({(1, 2): 8.0})
    hf = model.hf
    with torch.no_grad():
        hf.transformer.wte.weight[model.single_token(' "')] += 2 * v
        attention = hf.transformer.h[1].attn.c_attn.weight
        attention[:, 2 * 8] = 3 * v
        attention[:, 32 + 2 * 8] = 3 * u
    exact = ExactModel(model, torch.float64)
    clean = exact.run(model.prompt(PROMPT))
    assert int(clean.pattern[1, 2, 8].argmax()) == 5
    others = [1, 2, 3, 4, 6, 7, 8]
    split = split_score(exact, clean, known_features(model)[1], (1, 2), 8, 5, others)
    pair, *rest = split.top(5)
    assert all(abs(other.value) < 1e-6 * pair.value for other in rest)
    assert (pair.query, pair.key) == (1, 0)
    sigma = clean.scale1[1, 8] * clean.scale1[1, 5]
    assert pair.value == pytest.approx(float(2 * 3 * 3 * 3 / sigma) / 8**0.5, rel=1e-4)
    assert pair.value == pytest.approx(split.contrast, rel=1e-4), "nothing else matters"
    assert abs(split.with_error()) < 1e-3 * abs(split.contrast)


def test_bad_input_is_one_sentence(exact, random_dictionaries, tiny_model):
    clean = exact.run(tiny_model.prompt(PROMPT))
    with pytest.raises(InputError, match="of layer 2, the head reads layer 1"):
        split_score(exact, clean, random_dictionaries[2], (1, 0), 8, 5, [1])
    for key, against in ((5, []), (5, [5]), (5, [9]), (9, [1])):
        with pytest.raises(InputError, match="contrasted with other keys"):
            split_score(exact, clean, random_dictionaries[1], (1, 0), 8, key, against)
