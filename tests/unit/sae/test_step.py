"""The sparse step against a dense one with autograd, and its pieces against plain indexing."""

import pytest
import torch
import torch.nn.functional as F

from saekit.sae.step import (
    PairsByFeature,
    Weights,
    largest,
    pair_products,
    sparse_step,
    weighted_rows,
)

TOKENS, D_IN, D_SAE, K = 40, 12, 64, 5


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Weights(
        W_enc=0.5 * normal(D_SAE, D_IN),
        b_enc=0.3 * normal(D_SAE),
        W_dec=F.normalize(normal(D_SAE, D_IN), dim=1),
        b_dec=0.5 * normal(D_IN),
    )


def dense_step(x, weights, k, dead, aux_k, aux_coefficient):
    """The loss of `saekit.sae.step`, written down with dense tensors; gradients by autograd."""
    W_enc, b_enc, W_dec, b_dec = (t.clone().requires_grad_() for t in weights.tensors())
    pre = (x - b_dec) @ W_enc.T + b_enc
    top = pre.topk(k, dim=1)
    features = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    error = x - features @ W_dec - b_dec
    squared_error = error.square().sum()
    loss = squared_error / x.numel()
    if len(dead):
        dead_pre = torch.full_like(pre, -torch.inf)
        dead_pre[:, dead] = pre[:, dead]
        top = dead_pre.topk(min(aux_k, len(dead)), dim=1)
        target = error.detach()
        rebuilt = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ W_dec
        aux_loss = (target - rebuilt).square().sum() / target.square().sum()
        loss = loss + aux_coefficient * aux_loss
    else:
        aux_loss = torch.zeros(())
    loss.backward()
    gradients = Weights(*(t.grad for t in (W_enc, b_enc, W_dec, b_dec)))
    return gradients, squared_error.detach(), aux_loss.detach()


@pytest.mark.parametrize("n_dead", [0, 3, 20])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_losses_and_gradients_equal_the_dense_form(n_dead, shift):
    """`shift` -3 makes most preactivations negative, so that relu cuts pairs off.

    Mutations tried: leaving out the relu mask on the slopes (fails at shift -3), leaving out the
    encoder's part of b_dec's gradient (fails everywhere).
    """
    weights = random_weights()
    weights.b_enc += shift
    x = 2 * torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1))
    dead = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))[:n_dead]
    found = sparse_step(x, weights, K, dead, aux_k=8, aux_coefficient=0.25)
    gradients, squared_error, aux_loss = dense_step(x, weights, K, dead, 8, 0.25)
    assert torch.allclose(found.squared_error, squared_error, rtol=1e-5)
    assert torch.allclose(found.aux_loss, aux_loss, rtol=1e-5)
    assert (aux_loss > 0) == (n_dead > 0)
    for name, expected in vars(gradients).items():
        difference = (getattr(found.gradients, name) - expected).norm() / expected.norm()
        assert difference < 1e-4, name
    if shift:
        assert (found.values == 0).any()


def test_bf16_selection_gives_exact_values_of_what_it_selects():
    weights = random_weights()
    x = torch.randn(TOKENS, D_IN)
    memory = torch.empty(TOKENS, D_SAE, dtype=torch.bfloat16)
    found = sparse_step(x, weights, K, pre=memory, W_enc_shadow=weights.W_enc.bfloat16())
    exact = (x - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    assert torch.allclose(found.values, exact.gather(1, found.features).relu(), atol=1e-5)
    best = exact.topk(K, dim=1).values.sum()
    assert exact.gather(1, found.features).sum() > 0.995 * best


def test_a_step_computed_by_hand():
    """x = (3, 4), two features along the axes, k = 1: feature 1 gives 4, the error is (3, 0)."""
    eye = torch.eye(2)
    weights = Weights(W_enc=eye, b_enc=torch.zeros(2), W_dec=eye, b_dec=torch.zeros(2))
    found = sparse_step(torch.tensor([[3.0, 4.0]]), weights, 1)
    assert found.features.tolist() == [[1]]
    assert found.values.tolist() == [[4.0]]
    assert found.squared_error == 9
    # L = 9 / 2; dL/d(W_dec row 1) = -2 * error * value / 2 = (-12, 0)
    assert found.gradients.W_dec.tolist() == [[0, 0], [-12, 0]]
    assert found.gradients.b_dec.tolist() == [-3, 0]


@pytest.mark.parametrize("n", [40, 512, 1024, 4096, 8192, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_selection_equals_topk(n, dtype):
    generator = torch.Generator().manual_seed(n)
    pre = torch.randn(30, n, generator=generator).to(dtype)
    pre[0] = -pre[0].abs()  # nothing positive: any k distinct places will do
    chosen = largest(pre, 32)
    assert chosen.sort(1).values.diff(dim=1).min() > 0
    expected = pre.topk(32, dim=1).values.relu()  # which negative ones are taken is not defined
    # mutation tried: one group fewer than k in the first stage
    found = pre.gather(1, chosen).relu().sort(dim=1, descending=True).values
    assert torch.equal(found, expected)


def test_pieces_against_plain_indexing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, D_IN, generator=generator)
    table = torch.randn(D_SAE, D_IN, generator=generator)
    indices = torch.randint(D_SAE, (TOKENS, K), generator=generator)
    weights = torch.randn(TOKENS, K, generator=generator)
    rows = table[indices]
    products = torch.einsum("td,tkd->tk", x, rows)
    assert torch.allclose(pair_products(x, table, indices), products, atol=1e-5)
    mixed = torch.einsum("tk,tkd->td", weights, rows)
    assert torch.allclose(weighted_rows(table, indices, weights), mixed, atol=1e-5)
    pairs = PairsByFeature(indices, D_SAE)
    expected = torch.zeros(D_SAE, D_IN)
    counts = torch.zeros(D_SAE)
    for token in range(TOKENS):
        for place in range(K):
            expected[indices[token, place]] += weights[token, place] * x[token]
            counts[indices[token, place]] += weights[token, place]
    assert torch.allclose(pairs.rows(x, weights), expected, atol=1e-4)
    assert torch.allclose(pairs.sums(weights), counts, atol=1e-5)
