"""The packed bfloat16 forward pass against the float32 one."""

import pytest
import torch

from saekit.activations import residuals
from saekit.activations.narrow import NarrowForward, can_run
from saekit.activations.sources import ModelActivations


@pytest.fixture(scope="module")
def ids(tiny_model):
    return torch.randint(1, tiny_model.d_vocab, (6, 40), generator=torch.Generator().manual_seed(0))


def test_it_is_the_models_forward_pass_up_to_bfloat16(tiny_model, ids):
    """Mutations tried: attention not causal; GELU left out; the second LayerNorm from the first."""
    if not can_run(tiny_model):
        pytest.skip("no packed bfloat16 products here")
    exact = residuals(tiny_model, ids)
    automatic = residuals(tiny_model, ids, bf16=True)
    found = NarrowForward(tiny_model, 240)(ids, [0, 1, 2, 3])
    assert torch.equal(found[0], exact[0])
    for layer in (1, 2, 3):
        written = (exact[layer] - exact[0]).norm()  # what the blocks add is what can go wrong
        error = (found[layer] - exact[layer]).norm() / written
        assert error < 0.02
        assert error < 1.5 * (automatic[layer] - exact[layer]).norm() / written
    some = NarrowForward(tiny_model, 240)(ids, [1, 3])
    assert torch.equal(some, found[[1, 3]])


def test_a_source_uses_it_where_it_can(tiny_model, monkeypatch):
    text = ["The small house stood near the river and the road."] * 40
    narrow = ModelActivations(tiny_model, text, [3], context=20, bf16=True).next_pass()
    monkeypatch.setattr("saekit.activations.sources.can_run", lambda model: False)
    plain = ModelActivations(tiny_model, text, [3], context=20, bf16=True).next_pass()
    assert (narrow - plain).norm() / plain.norm() < 0.02
