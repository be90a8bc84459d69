"""Planted circuits seen by every check of a trace: ablations, Shapley values, matches, gates.

Mutations tried by hand, each of which fails here: gated rows renormalised; one LayerNorm scale for
all positions; another key's edges removed; rows and columns of the pairs exchanged.
"""

import math

import pytest
import torch

from saekit.errors import InputError, MismatchError
from saekit.model.exact import ExactModel
from saekit.model.gating import install
from saekit.model.loading import LanguageModel
from saekit.routes.ablation.head_means import head_means
from saekit.routes.attribution.arrivals import arrivals
from saekit.routes.target import feature_target
from saekit.routes.trace import trace

PROMPT, OTHER = 'The opposite of "large" is "', 'The opposite of "small" is "'


@pytest.fixture(scope="module")
def one(planted):
    return planted({(1, 2): 8.0})


@pytest.fixture(scope="module")
def matching(planted, basis):
    """L1-H2 attends from the quote to "large": W_Q reads v (the quote has 2 v), W_K reads u."""
    u, v = basis
    model = planted({(1, 2): 8.0})
    with torch.no_grad():
        model.hf.transformer.wte.weight[model.single_token(' "')] += 2 * v
        attention = model.hf.transformer.h[1].attn.c_attn.weight
        attention[:, 2 * 8] = 1.2 * v
        attention[:, 32 + 2 * 8] = 1.2 * u
    return LanguageModel("planted match", model.hf, model.tokenizer)


def ways(circuit) -> dict[str, object]:
    return {f"{row.name}{' direct' * row.direct}": row for row in circuit.ablations}


def test_one_planted_head_is_everything_in_every_way(one, known_features):
    """Share 100%, N80 1, causal share 100%, every other edge below 1%, whatever it carries
    instead: no other token has anything along u."""
    means = head_means(one, ["The opposite of a word is another word. " * 40], 300, 16)
    circuit = trace(
        one, known_features(one), PROMPT, "3/1", random_sets=20, means=means, counterfactual=OTHER
    )
    assert (circuit.n80, circuit.set.heads, circuit.set.shapley) == (
        1, ["L1-H2"], pytest.approx([circuit.set.joint_drop], rel=1e-5),
    )  # fmt: skip
    rows = ways(circuit)
    assert set(rows) == {
        "zero", "renormalise", "mean", "resample", "resample full", "zero direct",
    }  # fmt: skip
    for row in rows.values():
        assert row.joint_drop == pytest.approx(circuit.set.joint_drop, rel=1e-4)
        assert row.share_causal == pytest.approx(1, abs=1e-4)
        assert row.redundancy == pytest.approx(0, abs=1e-4)
        assert row.random_median == pytest.approx(0, abs=1e-4)
        assert row.prediction_after < circuit.prediction[0].probability
        assert row.logit_drop > 0
    exact = ExactModel(one, torch.float64)
    clean = exact.run(one.prompt(PROMPT))
    found = arrivals(exact, clean, feature_target(exact, known_features(one)[3], 1, 8))
    others = found.edges.clone()
    assert float(others[1, 2, 5]) == pytest.approx(found.total, rel=1e-6)
    others[1, 2, 5] = 0
    assert others.abs().max() < 0.01 * found.total


def test_two_redundant_heads_share_what_they_do_together(planted, known_features):
    """Behind the final LayerNorm one head does almost what both do: by the axiom of symmetry each
    has half of the joint drop, far more than its drop alone."""
    model = planted({(1, 1): 60.0, (1, 3): 60.0})
    circuit = trace(model, known_features(model), PROMPT, target="small")
    chosen = circuit.set
    assert chosen.shapley == pytest.approx([chosen.joint_drop / 2] * 2, rel=1e-4)
    assert min(chosen.shapley) > 2 * max(head.causal for head in circuit.heads)
    assert ways(circuit)["zero"].redundancy == pytest.approx(
        chosen.joint_drop - chosen.sum_of_single_drops, rel=1e-4
    )
    assert ways(circuit)["zero"].redundancy > 0.5 * chosen.joint_drop


def test_a_suppressing_head_has_a_negative_contribution(planted, known_features):
    """It is in no set and in no list of heads, but in the table and in what comes from the key."""
    model = planted({(1, 2): 8.0, (1, 0): -2.0, (0, 3): -1.0})
    circuit = trace(model, known_features(model), PROMPT, target="3/1", heads=3)
    table = {row.name: row.value for row in circuit.components}
    moved = table["L1-H2"]
    assert table["L1-H0"] == pytest.approx(-moved / 4, rel=1e-4)
    assert table["L0-H3"] == pytest.approx(-moved / 8, rel=0.01)  # sigma(5) is another
    assert circuit.set.heads == [head.head for head in circuit.heads] == ["L1-H2"]
    assert circuit.arrivals[5].negative == pytest.approx(-moved * 3 / 8, rel=0.01)


def test_the_planted_match_says_why(matching, known_features, named):
    dictionaries, catalogue = known_features(matching), named(matching)
    circuit = trace(matching, dictionaries, PROMPT, "3/1", catalogue=catalogue, spans=[])
    (head,) = circuit.heads
    assert 0.6 < head.attention < 0.8
    (match,) = circuit.matches
    assert match.head == "L1-H2"
    assert match.against == [1, 2, 3, 4, 6, 7, 8]
    # all other scores are 0, BOS among them: the softmax is known
    odds = 8 * head.attention / (1 - head.attention)
    assert match.contrast == pytest.approx(math.log(odds), rel=1e-4)
    best, *rest = match.pairs
    assert (best.query, best.key, best.key_name) == ("1/1", "1/0", "large")
    assert best.value == pytest.approx(match.contrast, rel=1e-4)
    assert match.in_features == pytest.approx(match.contrast, rel=1e-4)
    assert all(abs(pair.value) < 0.01 * best.value for pair in rest)
    assert (match.key_features[0].feature, match.key_features[0].name) == ("1/0", "large")
    assert match.margin is None
    from saekit.report.terminal.circuit_text import render

    assert "1/1 x 1/0 [large]" in " ".join(render(circuit).split())


def test_a_planted_gate_leaves_one_edge(matching, known_features, tiny_model):
    """Every head's bias is below 0, so edges of score 0 are closed; L1-H2's edge has score > 1.

    What it carries is its dense weight: the rows of a gated model are not renormalised.
    """
    import copy

    hf = copy.deepcopy(matching.hf)
    hf.config.attention, hf.config.gate_bias = "gated", [[-1.0] * 4] * 3
    install(hf)
    model = LanguageModel("planted gates", hf, tiny_model.tokenizer)
    dense = trace(matching, known_features(matching), PROMPT, "3/1")
    gated = trace(model, known_features(model), PROMPT, "3/1", dtype=torch.float64)
    assert gated.set.heads == ["L1-H2"]
    assert gated.heads[0].attention == pytest.approx(dense.heads[0].attention, rel=1e-4)
    assert gated.heads[0].contribution == pytest.approx(dense.heads[0].contribution, rel=1e-4)
    assert gated.set.share_positive == pytest.approx(1, abs=1e-6)
    assert gated.set.share_causal == pytest.approx(1, abs=1e-6)
    rows = ways(gated)
    assert rows["zero"].joint_drop == pytest.approx(rows["renormalise"].joint_drop), "none is left"
    assert gated.matches[0].margin == pytest.approx(gated.matches[0].score - 1, rel=1e-5)
    exact = ExactModel(model, torch.float64)
    clean = exact.run(model.prompt(PROMPT))
    assert (clean.pattern[:, :, 8] > 0).nonzero().tolist() == [[1, 2, 5]]
    assert gated.completeness_error < 1e-10


def test_a_trace_refuses_what_does_not_belong(one, known_features, tiny_model, tmp_path):
    dictionaries = known_features(one)
    means = head_means(tiny_model, ["The opposite of a word is another word. " * 40], 300, 16)
    with pytest.raises(MismatchError, match="stored means belong to model .* with fingerprint"):
        trace(one, dictionaries, PROMPT, "3/1", means=means)
    with pytest.raises(InputError, match="counterfactual prompt has 4 tokens and the prompt 9"):
        trace(one, dictionaries, PROMPT, "3/1", counterfactual="The opposite of")
    path = tmp_path / "means.safetensors"
    head_means(one, ["The opposite of a word is another word. " * 40], 300, 16).save(path)
    assert ways(trace(one, dictionaries, PROMPT, "3/1", means=path))["mean"].share_causal > 0.99
