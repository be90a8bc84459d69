"""Encoder products in 8 bits.

Mutations tried by hand, each fails a test here: features' bytes without the 128 that is added (or
`shifts` without it); factors on one side only; one scale for all tokens; the last, partly filled
tile of tokens left out; a column of zeros with an infinite factor.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.sae.kernels import int8
from saekit.sae.training.operands import Scratch

SCRATCH = Scratch(torch.device("cpu"))
pytestmark = pytest.mark.skipif(
    not int8.supported(4, 32), reason="the processor has no fast products of bytes"
)


def computed(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    out = torch.empty(len(x), len(W_enc), dtype=torch.bfloat16)
    int8.products(x, W_enc.bfloat16(), b_enc, out, SCRATCH)
    return out


def rounded(rows: Tensor) -> Tensor:
    scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / scale).round() * scale


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_product_computed_by_hand():
    """Entries that are multiples of a 127th of the largest are exact: 127 * 127 + 1 * 2 + 0.5."""
    x = torch.tensor([[127.0, 1.0, 0.0, 0.0]])
    W_enc = torch.zeros(32, 4)
    W_enc[3] = torch.tensor([127.0, 2.0, 5.0, -5.0])
    W_enc[4] = torch.tensor([-127.0, 0.0, 0.0, 0.0])
    b_enc = torch.zeros(32)
    b_enc[3], b_enc[7] = 0.5, -3.0
    scaled = x.square().mean(0).sqrt().clamp_min(127e-4).sqrt()  # c_i
    factors = int8.column_factors(x)
    assert torch.allclose(factors, 1 / scaled)
    out = computed(x, W_enc, b_enc)[0].float()
    assert out[3] == pytest.approx(127 * 127 + 2 + 0.5, rel=0.01)
    assert out[4] == pytest.approx(-127 * 127, rel=0.01)
    assert out[7] == -3 and out[0] == 0


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 60), groups=st.integers(1, 12), panels=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_product_of_rounded_matrices(tokens: int, groups: int, panels: int, seed: int):
    d_in, d_sae = 4 * groups, 32 * panels
    x = normal(tokens, d_in, seed=seed) * normal(d_in, seed=seed + 1).exp()
    W_enc, b_enc = normal(d_sae, d_in, seed=seed + 2), normal(d_sae, seed=seed + 3)
    factors = int8.column_factors(x)
    expected = rounded(x * factors) @ rounded(W_enc.bfloat16().float() / factors).T + b_enc
    found = computed(x, W_enc, b_enc).float()
    # bfloat16 at the end; an entry half way between two bytes may go either way
    assert torch.allclose(found, expected, rtol=2**-8, atol=0.02 * float(expected.abs().max()))
    assert (found - expected).abs().mean() < 0.004 * expected.abs().max()


def test_wide_columns_do_not_drown_the_others():
    """Three columns are 30 times as wide as the other 189 (as in GPT-2): noise stays near 1%."""
    x, W_enc = normal(500, 192), normal(512, 192, seed=1)
    x[:, [3, 50, 100]] *= 30
    W_enc[:, [3, 50, 100]] /= 30  # all columns matter alike
    exact = x @ W_enc.T
    noise = (computed(x, W_enc, torch.zeros(512)).float() - exact).std() / exact.std()
    assert noise < 0.02
    plain = (rounded(x) @ rounded(W_enc).T - exact).std() / exact.std()
    assert plain > 3 * noise  # what factors are for


def test_columns_and_rows_of_zeros():
    x, W_enc = normal(30, 8), normal(64, 8, seed=1)
    x[:, 2] = 0
    x[7] = 0
    W_enc[5] = 0
    found = computed(x, W_enc, torch.zeros(64)).float()
    assert (found[7] == 0).all() and (found[:, 5] == 0).all()
    exact = x @ W_enc.T
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_chosen_features_are_nearly_those_of_float32():
    x, W_enc = normal(400, 256), normal(2048, 256, seed=1)
    exact = (x @ W_enc.T).topk(32).indices
    found = computed(x, W_enc, torch.zeros(2048)).topk(36).indices
    hits = (exact[:, :, None] == found[:, None, :]).any(-1).float().mean()
    assert hits > 0.995
