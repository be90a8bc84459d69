"""The packed bfloat16 forward pass against the float32 one."""

import pytest
import torch
import torch.nn.functional as F

from saekit.activations import residuals
from saekit.activations.bf16 import (
    HEAD_WIDTHS,
    SOURCE,
    NarrowForward,
    attend,
    can_run,
)
from saekit.activations.sources import ModelActivations
from saekit.native.library import library


@pytest.fixture(scope="module")
def ids(tiny_model):
    return torch.randint(1, tiny_model.d_vocab, (6, 40), generator=torch.Generator().manual_seed(0))


def test_it_is_the_models_forward_pass_up_to_bfloat16(tiny_model, ids):
    """Mutations tried: attention not causal; GELU left out; the second LayerNorm from the first."""
    if not can_run(tiny_model):
        pytest.skip("no packed bfloat16 products here")
    exact = residuals(tiny_model, ids)
    automatic = residuals(tiny_model, ids, bf16=True)
    everything = torch.arange(ids.numel())
    run = NarrowForward(tiny_model, 240)
    found = run(ids, [0, 1, 2, 3], everything).float().view_as(exact)
    assert torch.equal(found[0], exact[0].bfloat16().float())
    for layer in (1, 2, 3):
        written = (exact[layer] - exact[0]).norm()  # what the blocks add is what can go wrong
        error = (found[layer] - exact[layer]).norm() / written
        assert error < 0.02
        assert error < 1.5 * (automatic[layer] - exact[layer]).norm() / written
    keep = torch.tensor([0, 7, 41, 239])
    some = run(ids, [1, 3], keep).float()
    assert torch.equal(some, found.flatten(1, 2)[[1, 3]][:, keep])
    below = run(ids, [1, 2], everything).float()
    assert torch.equal(below.view(2, *ids.shape, -1), found[1:3])


def test_a_source_uses_it_where_it_can(tiny_model, monkeypatch):
    text = ["The small house stood near the river and the road."] * 40
    narrow = ModelActivations(tiny_model, text, [3], context=20, bf16=True).next_pass()
    monkeypatch.setattr("saekit.activations.sources.can_run", lambda model: False)
    plain = ModelActivations(tiny_model, text, [3], context=20, bf16=True).next_pass()
    narrow = narrow.float()
    assert (narrow - plain).norm() / plain.norm() < 0.02


@pytest.mark.parametrize("pos", [1, 5, 16, 37])
@pytest.mark.parametrize("d_head", HEAD_WIDTHS)
def test_attention_of_every_width(d_head, pos):
    """Patterns and results are rounded to bfloat16.

    Mutations tried: the key after the query seen; the scale left out; the key moved; the second of
    two neighbouring values left out.
    """
    functions = library(SOURCE)
    if functions is None:
        pytest.skip("no C++ compiler")
    batch, heads, scale = 2, 3, 0.7
    generator = torch.Generator().manual_seed(pos)
    qkv = torch.randn(batch * pos, 3 * heads * d_head, generator=generator).bfloat16()
    q, k, v = qkv.float().view(batch, pos, 3, heads, d_head).permute(2, 0, 3, 1, 4)

    def mixed(values):
        result = F.scaled_dot_product_attention(q, k, values, is_causal=True, scale=scale)
        return result.transpose(1, 2).reshape(batch * pos, -1)

    found, expected = attend(functions, qkv, pos, heads, scale).float(), mixed(v)
    bound = 2**-8 * expected.abs() + 2**-8 * mixed(v.abs()) + 1e-5
    assert ((found - expected).abs() <= bound).all()
    assert (found - expected).norm() < 2**-9 * expected.norm() or pos == 1


def test_what_is_not_finite_stays_so():
    """A key that is NaN must not become a weight; queries before it do not see it."""
    functions = library(SOURCE)
    if functions is None:
        pytest.skip("no C++ compiler")
    qkv = torch.randn(6, 3 * 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    qkv[3, 20] = torch.nan
    found = attend(functions, qkv, 6, 1, 1.0)
    assert found[:3].isfinite().all()
    assert found[3:].isnan().all()
