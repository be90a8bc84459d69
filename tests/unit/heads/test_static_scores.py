"""Static scores against planted checkpoints and against an independent loop.

Mutations tried by hand, each of which fails here (the test that catches it in brackets):
ln_1 folded into W_V (loop); the embedding added to MLP_0's output (loop, planted); MLP_0 applied
for layer 0 (loop); ln_f's weight in front of W_U (loop); scores transposed to [head, layer]
(planted: the array is not square); the query or key third of c_attn in place of v (planted);
head slices off by one (planted); k = 10 for names (default k); sign of the suppression (planted);
a silent head scored 1 or 0 (silent); LN_2 without its bias (loop); float32 decisions kept where
they are within rounding (test_ranking).
"""

import numpy as np
import pytest
import torch

from saekit.errors import InputError, ModelError
from saekit.heads.static_scores import null_scores, score_heads
from tests.unit.heads.planted import (
    COPIER,
    FIRST_LAYER,
    N_HEADS,
    N_LAYERS,
    RELATION,
    SUPPRESSOR,
    VOCABULARY,
    oracle,
    random_model,
)

IDENTITY = [(t, t) for t in range(VOCABULARY)]
PARTNERS = [(t, t ^ 1) for t in range(VOCABULARY)]


def others(grid, *heads):
    """The scores of all heads but some."""
    mask = np.ones_like(grid, dtype=bool)
    for head in heads:
        mask[head] = False
    return grid[mask]


def test_planted_copiers_and_the_suppressor(planted):
    result = score_heads(planted, IDENTITY)
    assert result.k == 1
    assert result.scores.shape == result.suppression.shape == (N_LAYERS, N_HEADS)
    assert result.scores[COPIER] == result.scores[FIRST_LAYER] == 1
    assert others(result.scores, COPIER, FIRST_LAYER).max() <= 0.03
    assert result.suppression[SUPPRESSOR] == 1
    assert others(result.suppression, SUPPRESSOR).max() <= 0.03
    assert result.null_scores.max() <= 0.05  # one or two of 120 shuffled targets stay in place


def test_planted_relation_head_maps_both_ways_and_copies_nothing(planted):
    result = score_heads(planted, PARTNERS, k=1)
    assert result.scores[RELATION] == 1
    assert others(result.scores, RELATION).max() <= 0.03
    assert score_heads(planted, IDENTITY).scores[RELATION] <= 0.03


def test_a_head_planted_for_half_of_the_names_scores_exactly_half(half_planted):
    result = score_heads(half_planted, IDENTITY)
    assert result.scores[COPIER] == result.scores[FIRST_LAYER] == 0.5
    assert [pair[0] for pair in result.words_of(*COPIER)] == [
        pair[0] for pair in result.pairs[: VOCABULARY // 2]
    ]
    assert others(result.scores, COPIER, FIRST_LAYER).max() <= 0.03


def test_a_silent_head_scores_k_of_the_vocabulary(planted):
    result = score_heads(planted, IDENTITY, k=6)
    assert "L2-H3" in result.silent and "L1-H2" not in result.silent
    assert len(result.silent) == N_LAYERS * N_HEADS - 4
    assert result.scores[2, 3] == result.suppression[2, 3] == pytest.approx(6 / VOCABULARY)
    assert result.null_scores[2, 3] == result.chance == 6 / VOCABULARY


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_random_checkpoints_equal_the_loop(k, activation):
    """LayerNorm weights and biases are far from 1 and 0, so that each wrong step shows."""
    model = random_model(seed=k, activation=activation, n_layers=3, n_heads=4, d_model=32,
                         vocabulary=300)  # fmt: skip
    rng = np.random.default_rng(k)
    pairs = list(zip(rng.permutation(300)[:80].tolist(), rng.permutation(300)[:80].tolist(),
                     strict=True))  # fmt: skip
    # tokens that heads do map, so that scores are not all 0
    likely = [(a, b) for (a, _), b in zip(pairs, oracle_tops(model, pairs), strict=True)]
    scores, suppression = oracle(model, likely, k)
    result = score_heads(model, likely, k=k)
    assert np.abs(result.scores - scores).max() <= 1e-6
    assert np.abs(result.suppression - suppression).max() <= 1e-6
    assert scores.max() > 0.1


def oracle_tops(model, pairs):
    """For each pair, a token that some head raises most: targets with hits in many heads."""
    state, tops = model.state_dict(), []
    d, d_head = model.config.n_embd, model.config.n_embd // model.config.n_head
    for i, (source, _) in enumerate(pairs):
        head = i % model.config.n_head
        columns = slice(2 * d + head * d_head, 2 * d + (head + 1) * d_head)
        z = (
            state["transformer.wte.weight"][source]
            @ state["transformer.h.0.attn.c_attn.weight"][:, columns]
        )
        rows = slice(head * d_head, (head + 1) * d_head)
        written = z @ state["transformer.h.0.attn.c_proj.weight"][rows]
        tops.append(int((written @ state["lm_head.weight"].T).argmax()))
    return tops


def test_a_score_and_its_suppression_never_exceed_one_together():
    model = random_model(seed=9, n_layers=2, n_heads=4, d_model=32, vocabulary=64)
    result = score_heads(model, [(t, (7 * t) % 64) for t in range(64)], k=20)
    assert (result.scores + result.suppression <= 1 + 1e-12).all()
    assert result.scores.max() > 0.3


def test_a_float16_checkpoint_is_scored_on_its_stored_values(planted):
    half = random_model(seed=4, n_layers=2, n_heads=4, d_model=32, vocabulary=200).half()
    pairs = [(t, (3 * t) % 200) for t in range(200)]
    scores, _ = oracle(half, pairs, 10)
    assert np.abs(score_heads(half, pairs, k=10).scores - scores).max() <= 1e-6


def test_default_k_follows_the_relation(tiny_model):
    words = [(t, t) for t in range(40)]
    assert score_heads(tiny_model, words).k == 1
    assert score_heads(tiny_model, [(t, t + 1) for t in range(40)]).k == 10
    assert score_heads(tiny_model, "general_copying", min_pairs=1).k == 1
    assert score_heads(tiny_model, "opposites", min_pairs=1).k == 10


def test_words_and_their_token_ids_give_the_same(tiny_model):
    by_words = score_heads(tiny_model, "opposites")
    ids = [
        (tiny_model.single_token(f" {a}"), tiny_model.single_token(f" {b}"))
        for a, b in by_words.pairs
    ]
    by_ids = score_heads(tiny_model, ids, k=10)
    assert (by_ids.scores == by_words.scores).all()
    assert by_ids.null_scores == pytest.approx(by_words.null_scores)
    assert by_words.n_listed > by_words.n_pairs == by_ids.n_pairs == len(ids)


def test_a_folder_a_language_model_and_a_loaded_model_are_the_same(tiny_model, tiny_model_folder):
    grids = [
        score_heads(model, "opposites").scores
        for model in (tiny_model, str(tiny_model_folder), tiny_model_folder)
    ]
    assert (grids[0] == grids[1]).all() and (grids[0] == grids[2]).all()
    pairs = [(t, t) for t in range(40)]
    assert (score_heads(tiny_model, pairs).scores == score_heads(tiny_model.hf, pairs).scores).all()


def test_the_null_is_the_quantile_over_permutations():
    """Three rows that always name token 5: a hit for each target 5, however targets are placed."""
    top = np.full((1, 2, 3, 1), 5)
    top[0, 1] = 9
    null = null_scores(top, np.array([5, 5, 7]), permutations=50, seed=0)
    assert null.tolist() == [[pytest.approx(2 / 3), 0.0]]
    one = np.array([[[[5], [6], [7]]]])
    null = null_scores(one, np.array([5, 6, 7]), permutations=500, seed=0)
    assert null[0, 0] == 1.0  # 1 in 6 permutations of three leaves all in place


def test_a_constant_head_is_found_out_by_the_baselines():
    """A head that writes token 5 for every source: its null and the constant head are as high."""
    model = random_model(seed=1, n_layers=1, n_heads=1, d_model=16, vocabulary=60)
    with torch.no_grad():
        direction = torch.randn(16)
        direction /= direction.norm()
        model.transformer.wte.weight -= torch.outer(
            model.transformer.wte.weight @ direction, direction
        )
        model.transformer.wte.weight += 3 * direction  # every token has it ...
        model.transformer.wte.weight[5] += 9 * direction  # ... and token 5 most
        model.transformer.h[0].attn.c_attn.weight[:, 32:] = torch.outer(direction, direction)
        model.transformer.h[0].attn.c_proj.weight.copy_(torch.outer(direction, direction))
    pairs = [(t, 5) for t in range(40)] + [(t, 6) for t in range(20)]
    result = score_heads(model, pairs, k=1)
    assert (
        result.scores[0, 0] == result.null_scores[0, 0] == result.constant == pytest.approx(2 / 3)
    )
    assert any("always writes" in note for note in result.notes)


@pytest.mark.parametrize(
    ("relation", "options", "words"),
    [
        ([(0, 0)] * 2, {}, "already"),
        ([], {}, "no pairs"),
        ([(1, 2, 3)], {}, "one source and one target"),
        ([(0, 5000)] + [(t, t) for t in range(40)], {}, "5000 is no token id"),
        ([(t, t) for t in range(29)], {}, "29 of the 29"),
        ([(t, t) for t in range(40)], {"k": 0}, "k is 0"),
        ([(t, t) for t in range(40)], {"k": 120}, "k is 120"),
        ([("a", 3)], {}, "neither two words nor two token ids"),
        ([("a", "b"), (1, 2)], {}, "mixes"),
        ("no_such_relation", {}, "no_such_relation"),
    ],
)
def test_relations_that_cannot_be_used(planted, relation, options, words):
    with pytest.raises(InputError, match=words):
        score_heads(planted, relation, **options)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), None, 3])
def test_what_is_not_a_gpt2_is_refused(model):
    with pytest.raises(ModelError, match=type(model).__name__):
        score_heads(model, IDENTITY)
