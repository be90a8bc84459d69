"""The k largest by a bfloat16 shortlist against the float32 product."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.sae.dictionary import Dictionary
from saekit.sae.topk import MIN_TOKENS, NarrowTopK, supported

needs_bfloat16 = pytest.mark.skipif(not supported(), reason="no fast products of bfloat16")


def weights(d_in, d_sae, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_in, d_sae, generator=generator)
    return rows, 0.3 * torch.randn(d_sae, generator=generator)


def largest(x, W_enc, b_enc, k):
    """By float64."""
    return (x.double() @ W_enc.double() + b_enc.double()).topk(k, dim=1)


@needs_bfloat16
@pytest.mark.parametrize(
    ("d_in", "d_sae", "k"),
    [(48, 700, 8), (192, 4096, 32), (5, 40, 30), (5, 40, 40), (64, 513, 1), (768, 3000, 200)],
)
@pytest.mark.parametrize("tokens", [1, 23, 300])
def test_the_same_features_and_values_as_in_float32(tokens, d_in, d_sae, k):
    """Mutations tried, each fails here: the second panel's sums for the first's; columns that are
    padded with a bias of 0; of equal values both put into one place."""
    W_enc, b_enc = weights(d_in, d_sae)
    x = 3 * torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(1))
    values, features = NarrowTopK(W_enc, b_enc, k)(x)
    wide = largest(x, W_enc, b_enc, k)
    # mutation tried: values of the bfloat16 product are off by 0.01 and more
    torch.testing.assert_close(values.double(), wide.values, rtol=1e-5, atol=1e-4)
    assert (features.sort(1).values == wide.indices.sort(1).values).all(1).float().mean() > 0.99
    assert torch.equal(values, values.sort(1, descending=True).values)


@needs_bfloat16
@settings(max_examples=40, deadline=None)
@given(
    d_in=st.integers(1, 40), d_sae=st.integers(1, 300), share=st.floats(0, 1),
    spread=st.integers(0, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_of_any_shape_and_size(d_in, d_sae, share, spread, seed):
    """Rows and columns of sizes up to 2**spread apart; nothing that is left out is larger."""
    k = max(1, round(share * d_sae))
    W_enc, b_enc = weights(d_in, d_sae, seed)
    generator = torch.Generator().manual_seed(seed)
    W_enc *= 2 ** (spread * torch.rand(d_in, d_sae, generator=generator))
    x = torch.randn(30, d_in, generator=generator) * 2 ** (
        spread * torch.rand(d_in, generator=generator)
    )
    values, features = NarrowTopK(W_enc, b_enc, k)(x)
    assert (features.sort(1).values.diff(dim=1) > 0).all()
    pre = x.double() @ W_enc.double() + b_enc.double()
    size = x.double().norm(dim=1)[:, None] * W_enc.double().norm(dim=0).max() + 1
    own = pre.gather(1, features)
    assert ((own - values.double()).abs() <= 1e-5 * size).all()
    rest = pre.scatter(1, features, -torch.inf).amax(1)
    assert (rest <= own.amin(1) + 1e-5 * size[:, 0]).all()


@needs_bfloat16
def test_any_number_of_threads_gives_the_same_bits():
    W_enc, b_enc = weights(48, 700)
    x = torch.randn(100, 48, generator=torch.Generator().manual_seed(1))
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(NarrowTopK(W_enc, b_enc, 8)(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_bfloat16
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["token", "row", "bias"])
def test_what_is_not_finite_is_said(where, wrong):
    """Mutation tried: without a look at the weights, one NaN row is never listed."""
    W_enc, b_enc = weights(16, 100)
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
    {"token": x, "row": W_enc.T, "bias": b_enc[:, None]}[where][7, 0] = wrong
    values, features = NarrowTopK(W_enc, b_enc, 4)(x)
    hit = torch.arange(30) == 7 if where == "token" else torch.ones(30, dtype=torch.bool)
    assert torch.equal(values.isnan().all(1), hit)
    assert ((features >= 0) & (features < 100)).all()


@needs_bfloat16
def test_what_bfloat16_cannot_tell_apart_is_done_in_float32():
    """64 features that are equal in bfloat16; the last ones are the largest by a hair.

    Mutation tried: without the bound the first four features, which the shortlist ends with, win.
    """
    W_enc = (1 + torch.arange(64) * 2.0**-15)[None]
    assert W_enc.bfloat16().unique().numel() == 1
    found = NarrowTopK(W_enc, torch.zeros(64), 2)(torch.tensor([[1.0], [2.0]]))
    assert found[1].tolist() == [[63, 62]] * 2
    assert found[0][1].tolist() == (2 * W_enc[0, [63, 62]]).tolist()


@needs_bfloat16
@pytest.mark.parametrize("d_sae", [32, 128])
@pytest.mark.parametrize("rounded", ["token", "row"])
def test_each_rounding_is_in_the_bound(rounded, d_sae):
    """In bfloat16 the first half is larger by `more`; it is smaller, as 1 - h and 1 + h become 1.

    32 features are all listed, of 128 only those near the largest.  Mutations tried, each fails
    its own case of 128: either part of the bound left out, or not added, or not subtracted.
    """
    h = 0.75 * 2.0**-10
    better = torch.arange(d_sae) >= d_sae // 2
    x, W_enc = torch.ones(1, 3), torch.zeros(3, d_sae)
    if rounded == "token":  # the bound is 1.4 h
        x[0, 0], x[0, 1], more = 1 - h, 1 + h, 1.6 * h
        W_enc[0, ~better], W_enc[1, better] = 1.0, 1.0
    else:  # 1.7 h
        W_enc[0] = torch.where(better, 1 + h, 1 - h)
        more = 1.85 * h
    W_enc[2, ~better] = more
    assert torch.tensor(more).bfloat16() > 1.5 * h
    _, features = NarrowTopK(W_enc, torch.full((d_sae,), -1.0), 2)(x)
    assert (features >= d_sae // 2).all()


@needs_bfloat16
@pytest.mark.parametrize(
    ("of_x", "of_W"), [(1e25, 1), (1e20, 1e-22), (1e-20, 1), (1e-24, 1), (1, 1e-20), (1, 1e-24)]
)
@pytest.mark.parametrize("rows", ["any", "of bfloat16", "some 0"])
def test_squares_that_overflow_or_vanish_do_not_matter(rows, of_x, of_W):
    """Rows that are 0 and those without rounding are not lost when the other factor is infinite.

    Mutations tried: without what is added to the norms in Python, to those in C++, or to either.
    """
    W_enc, _ = weights(64, 512)
    W_enc = W_enc.bfloat16().float() if rows == "of bfloat16" else W_enc
    if rows == "some 0":
        W_enc[:, ::2] = 0
    x = of_x * torch.randn(30, 64, generator=torch.Generator().manual_seed(1))
    W_enc, b_enc, k = of_W * W_enc, torch.zeros(512), 256 if rows == "some 0" else 4
    values, features = NarrowTopK(W_enc, b_enc, k)(x)
    wide = largest(x, W_enc, b_enc, k)
    atol = 1e-5 * float(wide.values.max())
    torch.testing.assert_close(values.double(), wide.values, rtol=1e-5, atol=atol)
    own = (x.double() @ W_enc.double()).gather(1, features)
    torch.testing.assert_close(own, wide.values, rtol=1e-5, atol=atol)


@needs_bfloat16
def test_a_dictionary_takes_the_fast_way_for_many_tokens_only():
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
        assert replace(topk, k=50)._narrow is None  # nor have those that list most features
    with_gradient = x.clone().requires_grad_()
    topk.encode_sparse(with_gradient)[0].sum().backward()
    assert with_gradient.grad is not None and with_gradient.grad.abs().sum() > 0


@needs_bfloat16
def test_values_are_of_the_type_of_the_dictionary():
    W_enc, b_enc = weights(16, 100)
    narrow, x = NarrowTopK(W_enc, b_enc, 4), torch.ones(3, 16)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert narrow(x)[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(default)
