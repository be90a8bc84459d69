"""The frozen affine map, against autograd through a frozen network written out in plain equations.

Mutations tried by hand, each of which fails here: ln_1's gamma in place of ln_2's; the pattern
transposed; the value bias or b_out left out of the constant; sum of A taken as 1 (gated); the
curvature node left out; the slope of gelu_new without its factor 3; scale1 in place of scale2 for a
tangent; self-edges kept among the arrivals; the sign of b_dec.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saekit.errors import InputError
from saekit.model.exact import ExactModel
from saekit.routes.attribution.arrivals import arrivals
from saekit.routes.attribution.paths import (
    derivative,
    edge_arrivals,
    frozen_maps,
    head_loadings,
    split_paths,
)
from saekit.routes.target import Target, token_target

MODES = ("direct", "frozen", "gradient")
few = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["dense", "gated"])
def exact(request, tiny_model, gated_model):
    model = tiny_model if request.param == "dense" else gated_model
    return ExactModel(model, torch.float64)


@pytest.fixture(scope="module")
def clean(exact, tiny_model):
    return exact.run(tiny_model.prompt('The opposite of "large" is "'))


def random_target(layer: int, query: int, seed: int = 0) -> Target:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(seed)).double()
    return Target("random", "feature", layer, query, direction, 0.7, feature=0)


def frozen_network(exact, clean, target, layer, mode, x):
    """p as a function of x_layer, everything but the stream at its clean value."""
    for m in range(layer, target.layer):
        w = exact.blocks[m]
        own = (x - x.mean(-1, keepdim=True)) / clean.scale1[m][:, None] * w.gamma1 + w.beta1
        mid = x + w.b_O
        for h in range(exact.n_heads):
            mid = mid + clean.pattern[m, h] @ (own @ w.W_V[h] + w.b_V[h]) @ w.W_O[h]
        own = (mid - mid.mean(-1, keepdim=True)) / clean.scale2[m][:, None] * w.gamma2 + w.beta2
        z = own @ w.W_in + w.b_in
        if mode == "direct":
            mlp = clean.mlp_out[m]
        elif mode == "frozen":
            mlp = (z * exact.gate(clean.pre[m])) @ w.W_out + w.b_out
        else:
            mlp = (z * exact.gate(z)) @ w.W_out + w.b_out  # live: autograd takes act'
        x = mid + mlp
    return x[target.query] @ target.direction + target.constant


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("layer", "top", "query"), [(0, 3, 8), (1, 3, 6), (2, 2, 8), (1, 2, 8)])
def test_J_is_the_gradient_of_the_frozen_network(exact, clean, mode, layer, top, query):
    target = random_target(top, query)
    (found,) = frozen_maps(exact, clean, [target], layer, mode)
    x = clean.resid[layer].clone().requires_grad_()
    p = frozen_network(exact, clean, target, layer, mode, x)
    p.backward()
    torch.testing.assert_close(found.J, x.grad, rtol=1e-9, atol=1e-12)
    assert float(p) == pytest.approx(target.value(clean), rel=1e-10)
    assert found.total(clean) == pytest.approx(target.value(clean), rel=1e-10)
    assert bool(found.nodes.any()) == (mode != "frozen" and layer < top)


@few
@given(
    ids=st.lists(st.integers(1, 600), min_size=3, max_size=12),
    layer=st.integers(0, 3),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_split_sums_to_the_preactivation_in_both_precisions(
    tiny_model, random_dictionaries, ids, layer, mode, seed
):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        exact = ExactModel(tiny_model, dtype)
        clean = exact.run(torch.tensor(ids))
        target = token_target(exact, clean, seed, len(ids) - 1, "x")
        (found,) = frozen_maps(exact, clean, [target], layer, mode)
        split = split_paths(clean, found, random_dictionaries[layer])
        p = target.value(clean)
        size = float(split.features.abs().sum() + split.error.abs().sum())
        assert abs(split.total - p) <= tolerance * max(abs(p), 0.01 * size)
        assert int((split.features != 0).sum()) <= 6 * len(ids)
        assert 0 <= split.error_share <= 1


def test_the_error_is_what_the_dictionary_misses(exact, clean, random_dictionaries):
    (found,) = frozen_maps(exact, clean, [random_target(3, 8)], 1)
    split = split_paths(clean, found, random_dictionaries[1])
    missed = clean.resid[1] - random_dictionaries[1].reconstruct(clean.resid[1]).double()
    expected = (missed * found.J).sum(-1)
    torch.testing.assert_close(split.error, expected, rtol=1e-4, atol=1e-4)


def test_several_targets_are_each_as_if_alone(exact, clean):
    targets = [random_target(2, 5, 1), random_target(3, 8, 2), random_target(1, 3, 3)]
    for mode in MODES:
        together = frozen_maps(exact, clean, targets, 1, mode)
        for target, found in zip(targets, together, strict=True):
            (alone,) = frozen_maps(exact, clean, [target], 1, mode)
            torch.testing.assert_close(found.J, alone.J)
            assert found.constant == pytest.approx(alone.constant)
            torch.testing.assert_close(found.nodes, alone.nodes)
            assert found.mid.shape == alone.mid.shape == (target.layer - 1, 9, 32)


@pytest.mark.parametrize("mode", MODES)
def test_heads_and_bypass_of_every_layer_add_up_to_the_effect(exact, clean, mode):
    (found,) = frozen_maps(exact, clean, [random_target(3, 8)], 0, mode)
    source = torch.randn(32, generator=torch.Generator().manual_seed(9)).double()
    loadings = head_loadings(exact, clean, found, source, 5)
    assert loadings.heads.shape == (3, 4)
    effect = float(source @ found.J[5])
    assert loadings.effect == pytest.approx(effect)
    for m in range(3):
        whole = float(loadings.heads[m].sum() + loadings.bypass[m])
        assert whole == pytest.approx(effect, rel=1e-9)
    assert float(loadings.heads.abs().max()) > 1e-3


def test_the_last_arrivals_of_one_source_add_up_to_its_effect(exact, clean):
    target = random_target(3, 8)
    (found,) = frozen_maps(exact, clean, [target], 0)
    restricted = arrivals(exact, clean, target)
    source = torch.randn(32, generator=torch.Generator().manual_seed(9)).double()
    edges = edge_arrivals(exact, clean, found, restricted, source, 5)
    assert float(edges.sum()) == pytest.approx(float(source @ found.J[5]), rel=1e-9)
    assert edges[:, :, 8:].abs().max() == 0
    assert edges[0, :, :5].abs().max() == 0, "in block 0 the source is at its own position only"
    # all streams together give the part of H that is not constant: H of the whole prompt
    x = clean.resid[0]
    parts = sum(edge_arrivals(exact, clean, found, restricted, x[k], k) for k in range(8))
    w = exact.blocks[0]
    constant = torch.einsum("d,hde->he", w.beta1, w.W_V) + w.b_V
    moved = torch.einsum("he,hem,m->h", constant, w.W_O, restricted.mid_cotangents[0])
    block0 = parts[0] + clean.pattern[0, :, 8] * moved[:, None]
    torch.testing.assert_close(block0[:, :8], restricted.edges[0][:, :8], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_the_derivative_of_the_activation(exact, activation):
    z = torch.linspace(-4, 4, 40, dtype=torch.float64, requires_grad=True)
    other = ExactModel.__new__(ExactModel)
    other.activation = activation
    (z * other.gate(z)).sum().backward()
    torch.testing.assert_close(derivative(other, z.detach()), z.grad)


def test_bad_input_is_one_sentence(exact, clean, random_dictionaries):
    target = random_target(2, 8)
    with pytest.raises(InputError, match='"IG" is no treatment of MLPs: use direct, frozen'):
        frozen_maps(exact, clean, [target], 0, "IG")
    with pytest.raises(InputError, match="from layer 3 do not reach a target at layer 2"):
        frozen_maps(exact, clean, [target], 3)
    (found,) = frozen_maps(exact, clean, [target], 1, "direct")
    with pytest.raises(InputError, match="of layer 0, the paths begin at 1"):
        split_paths(clean, found, random_dictionaries[0])
    with pytest.raises(InputError, match="mode frozen, these are of mode direct"):
        edge_arrivals(exact, clean, found, arrivals(exact, clean, target), target.direction, 3)
    assert frozen_maps(exact, clean, [], 0) == []
