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
from saekit.model.decoder import ACTIVATIONS
from saekit.model.exact import ExactModel
from saekit.routes.attribution.paths import (
    derivative,
    frozen_maps,
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
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
    assert frozen_maps(exact, clean, [], 0) == []
