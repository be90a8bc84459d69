"""The k largest by a bfloat16 shortlist against the float32 product."""

from dataclasses import replace

import pytest
import torch

from saekit.sae import dictionary as dictionary_module
from saekit.sae.dictionary import Dictionary
from saekit.sae.kernels import Reference, kernels_for
from saekit.sae.narrow import MIN_TOKENS, NarrowTopK


def weights(d_in, d_sae, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_in, d_sae, generator=generator)
    return rows, 0.3 * torch.randn(d_sae, generator=generator)


@pytest.mark.parametrize("kernels", [Reference(), kernels_for(torch.device("cpu"))])
@pytest.mark.parametrize(("d_in", "d_sae", "k"), [(48, 700, 8), (192, 4096, 32), (5, 40, 30)])
def test_the_same_features_and_values_as_in_float32(kernels, d_in, d_sae, k):
    W_enc, b_enc = weights(d_in, d_sae)
    x = 3 * torch.randn(300, d_in, generator=torch.Generator().manual_seed(1))
    values, features = NarrowTopK(W_enc, b_enc, k, kernels)(x)
    wide = (x.double() @ W_enc.double() + b_enc.double()).topk(k, dim=1)
    # mutation tried: values of the bfloat16 product are off by 0.01 and more
    torch.testing.assert_close(values.double(), wide.values, rtol=1e-5, atol=1e-4)
    assert (features.sort(1).values == wide.indices.sort(1).values).all(1).float().mean() > 0.99
    assert torch.equal(values, values.sort(1, descending=True).values)


def test_what_bfloat16_cannot_tell_apart_is_done_in_float32():
    """64 features that are equal in bfloat16; the last ones are the largest by a hair.

    Mutation tried: without the bound the first four features, which the shortlist ends with, win.
    """
    W_enc = (1 + torch.arange(64) * 2.0**-15)[None]
    assert W_enc.bfloat16().unique().numel() == 1
    found = NarrowTopK(W_enc, torch.zeros(64), 2)(torch.tensor([[1.0], [2.0]]))
    assert found[1].tolist() == [[63, 62]] * 2
    assert found[0][1].tolist() == (2 * W_enc[0, [63, 62]]).tolist()


@pytest.mark.parametrize("rounded", ["token", "row", "bias", "result"])
def test_each_rounding_is_in_the_bound(rounded):
    """In bfloat16 all are equal, so the first four are listed; they are a quarter of a hair above.

    Mutation tried: each of the four parts of the bound left out, which fails its own case.
    """
    hair = 2.0**-10  # lost in bfloat16 beside 1
    x, W_enc = torch.ones(1, 2), torch.zeros(2, 32)
    b_enc = torch.full((32,), -1.0)  # sums near 0, where the result is hardly rounded
    better = torch.arange(32) >= 16
    more = torch.where(better, hair, hair / 4)
    if rounded == "token":
        x = 1 + torch.tensor([[hair / 4, hair]])
        W_enc[0, ~better], W_enc[1, better] = 1.0, 1.0
    elif rounded == "row":
        W_enc[0] = 1 + more
    elif rounded == "bias":
        W_enc[0], b_enc = -1.0, 1 + more
    else:
        W_enc[0], W_enc[1], b_enc = 1.0, more, torch.zeros(32)
    _, features = NarrowTopK(W_enc, b_enc, 2)(x)
    assert (features >= 16).all()


def test_a_dictionary_takes_the_fast_way_for_many_tokens_only(monkeypatch):
    monkeypatch.setattr(dictionary_module, "supported", lambda: True)
    W_enc, b_enc = weights(24, 200)
    topk = Dictionary(0, "topk", W_enc, b_enc, W_enc.T.contiguous(), torch.ones(24), k=5)
    x = torch.randn(MIN_TOKENS, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        topk.encode_sparse(x[1:])
        assert "_narrow" not in vars(topk)
        values, features = topk.encode_sparse(x)
        assert vars(topk)["_narrow"] is not None
        dense = topk.encode(x)
    found = torch.zeros_like(dense).scatter_(1, features, values)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
    assert (values >= 0).all()
    with torch.no_grad():  # other kinds have no fast way
        replace(topk, architecture="abstopk").encode_sparse(x)
    with_gradient = x.clone().requires_grad_()
    topk.encode_sparse(with_gradient)[0].sum().backward()
    assert with_gradient.grad is not None and with_gradient.grad.abs().sum() > 0
