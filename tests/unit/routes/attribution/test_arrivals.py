"""Every identity of arrivals.py on a random GPT-2 with perturbed LayerNorms and biases.

Mutations tried by hand, each of which fails here: gamma or the centring left out of
`through_norm`; scale1 in place of scale2, or of another position; the pattern transposed; the
value bias dropped from the moved value or from the self-edge constant; b_out or b_O left out of the
rest; the self-edge path left out of g; edges k >= q kept; the attention biases left out of the
component table; a token's direction not centred; the sign of b_dec in a feature's constant.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saekit.model.exact import ExactModel
from saekit.routes.attribution.arrivals import (
    arrivals,
    arrivals_of,
    completeness_error,
    components,
    split_edge,
)
from saekit.routes.target import Target, feature_target, token_target

some_ids = st.lists(st.integers(1, 600), min_size=3, max_size=14)
few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["dense", "gated"])
def model(request, tiny_model, gated_model):
    return tiny_model if request.param == "dense" else gated_model


@pytest.fixture(scope="module")
def exact(model):
    return ExactModel(model, torch.float64)


@pytest.fixture(scope="module")
def single(model):
    return ExactModel(model, torch.float32)


def random_target(exact, layer: int, query: int, seed: int) -> Target:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(seed)).to(exact.W_E)
    return Target("random", "feature", layer, query, direction, 0.7, feature=0)


def frozen(exact, clean, target, without: tuple[int, int, int] | None = None) -> float:
    """p in the network restricted to position q, in plain equations: patterns, scales and gate
    ratios are the clean ones, other positions' values too; `without` removes one edge."""
    q = target.query
    x = clean.resid[0, q]
    for m in range(target.layer):
        w = exact.blocks[m]
        mid = x + w.b_O
        own = (x - x.mean()) / clean.scale1[m, q] * w.gamma1 + w.beta1
        for h in range(exact.n_heads):
            for k in range(q + 1):
                if (m, h, k) == without:
                    continue
                value = own @ w.W_V[h] + w.b_V[h] if k == q else clean.value[m, h, k]
                mid = mid + clean.pattern[m, h, q, k] * (value @ w.W_O[h])
        z = ((mid - mid.mean()) / clean.scale2[m, q] * w.gamma2 + w.beta2) @ w.W_in + w.b_in
        x = mid + (z * exact.gate(clean.pre[m, q])) @ w.W_out + w.b_out
    return float(x @ target.direction) + target.constant


@few
@given(ids=some_ids, layer=st.integers(1, 3), back=st.integers(0, 3), seed=st.integers(0, 999))
def test_completeness_and_last_arrival_in_both_precisions(exact, single, ids, layer, back, seed):
    query = max(1, len(ids) - 1 - back)
    for model, tolerance in ((exact, 1e-10), (single, 1e-4)):
        clean = model.run(torch.tensor(ids))
        target = random_target(model, layer, query, seed)
        p = target.value(clean)
        table = components(model, clean, target)
        assert completeness_error(table, p) <= tolerance
        assert len(table) == 1 + layer * (model.n_heads + 1) + 2
        found = arrivals(model, clean, target)
        size = float(found.edges.abs().sum()) + abs(found.rest)
        assert abs(found.total - p) <= tolerance * max(abs(p), 0.01 * size)


def test_an_edge_is_what_its_removal_takes_in_the_frozen_network(exact, tiny_model):
    clean = exact.run(tiny_model.prompt('The opposite of "large" is "'))
    target = random_target(exact, 3, 8, seed=5)
    found = arrivals(exact, clean, target)
    p = frozen(exact, clean, target)
    assert p == pytest.approx(target.value(clean), rel=1e-12)
    for edge in [(0, 0, 0), (0, 3, 5), (1, 2, 5), (2, 1, 7), (2, 3, 1)]:
        drop = p - frozen(exact, clean, target, without=edge)
        assert float(found.edges[edge]) == pytest.approx(drop, rel=1e-9, abs=1e-12)
    assert found.edges[:, :, 8:].abs().max() == 0


def test_several_targets_are_each_as_if_alone(exact, tiny_model):
    clean = exact.run(tiny_model.prompt('The opposite of "large" is "'))
    targets = [random_target(exact, layer, query, 3) for layer, query in [(2, 5), (3, 8), (0, 4)]]
    for target, found in zip(targets, arrivals_of(exact, clean, targets), strict=True):
        alone = arrivals(exact, clean, target)
        assert found.target is target
        assert found.rest == pytest.approx(alone.rest, rel=1e-12)
        assert found.total == pytest.approx(target.value(clean), rel=1e-10)
        torch.testing.assert_close(found.edges, alone.edges)
        torch.testing.assert_close(found.mid_cotangents, alone.mid_cotangents)
    assert arrivals_of(exact, clean, []) == []


def test_only_blocks_below_the_target_contribute(exact, tiny_model):
    clean = exact.run(tiny_model.prompt("large and small"))
    target = random_target(exact, 1, 3, seed=2)
    found = arrivals(exact, clean, target)
    assert found.edges.shape[0] == 1
    at_zero = random_target(exact, 0, 3, seed=2)
    assert arrivals(exact, clean, at_zero).rest == pytest.approx(at_zero.value(clean))


@few
@given(ids=some_ids, layer=st.integers(0, 2), head=st.integers(0, 3), seed=st.integers(0, 99))
def test_an_edge_splits_into_features_error_and_constants(
    exact, random_dictionaries, ids, layer, head, seed
):
    clean = exact.run(torch.tensor(ids))
    query, key = len(ids) - 1, seed % (len(ids) - 1)
    found = arrivals(exact, clean, random_target(exact, 3, query, seed))
    split = split_edge(exact, clean, found, random_dictionaries[layer], (layer, head), key)
    assert split.total == pytest.approx(float(found.edges[layer, head, key]), rel=1e-9, abs=1e-12)
    assert 0 < len(split.features) <= 6


def test_a_feature_target_is_its_preactivation(exact, tiny_model, random_dictionaries):
    clean = exact.run(tiny_model.prompt("large and small"))
    dictionary = random_dictionaries[2]
    expected = dictionary.preactivations(clean.resid[2, 3])
    for feature in (0, 17, 47):
        target = feature_target(exact, dictionary, feature, 3)
        assert target.value(clean) == pytest.approx(float(expected[feature]), abs=1e-4)
        measured = target.measure(exact, clean.resid[2, 3])
        assert float(measured) == pytest.approx(target.value(clean), rel=1e-12)
    assert target.label == "2/47"


def test_a_token_target_is_its_logit_minus_the_mean(exact, tiny_model):
    clean = exact.run(tiny_model.prompt("large and small"))
    expected = clean.logits[3, 77] - clean.logits[3].mean()
    target = token_target(exact, clean, 77, 3, "x")
    assert target.value(clean) == pytest.approx(float(expected), rel=1e-10)
    assert float(target.measure(exact, clean.resid[3, 3])) == pytest.approx(float(expected))
    found = arrivals(exact, clean, target)
    assert found.total == pytest.approx(float(expected), rel=1e-10)
