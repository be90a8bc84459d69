"""Linear layers in bfloat16.

Mutations tried by hand, each fails a test here: the second panel's weights for the first's; the
last, partly filled tile of rows left out; GELU without its cubic term; the bias left out.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from saekit.activations.products import SOURCE, OneDnn, Product, linear
from saekit.native.library import library

FUNCTIONS = library(SOURCE)
pytestmark = pytest.mark.skipif(
    FUNCTIONS is None or not FUNCTIONS.supported(), reason="no fast products of bfloat16"
)


def layer(inputs: int, outputs: int, seed: int = 0) -> Conv1D:
    made = Conv1D(outputs, inputs)
    generator = torch.Generator().manual_seed(seed)
    for parameter in (made.weight, made.bias):
        parameter.data = torch.randn(parameter.shape, generator=generator).bfloat16().float()
    return made


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40), pairs=st.integers(1, 40), panels=st.integers(1, 3),
    gelu=st.booleans(),
)  # fmt: skip
@torch.no_grad()
def test_products_of_any_shape(rows: int, pairs: int, panels: int, gelu: bool):
    made = layer(2 * pairs, 32 * panels)
    x = torch.randn(rows, 2 * pairs, generator=torch.Generator().manual_seed(rows)).bfloat16()
    assert FUNCTIONS is not None
    found = Product(made.weight.detach(), made.bias.detach(), gelu, FUNCTIONS)(x).float()
    exact = x.float() @ made.weight + made.bias
    expected = F.gelu(exact, approximate="tanh") if gelu else exact
    assert torch.allclose(found, expected, rtol=2**-8, atol=1e-4)


@torch.no_grad()
def test_more_rows_than_one_block():
    made = layer(64, 96)
    x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = linear(made.weight.detach(), made.bias.detach(), 1000)
    assert isinstance(found, Product)
    expected = x.float() @ made.weight + made.bias
    assert torch.allclose(found(x).float(), expected, rtol=2**-8, atol=1e-3)


@torch.no_grad()
def test_gelu_everywhere():
    """From -12 to 12, and what is not a number of ordinary size."""
    made = layer(32, 32)
    made.weight.data, made.bias.data = torch.eye(32), torch.zeros(32)
    x = torch.linspace(-12, 12, 32 * 500).view(-1, 32).bfloat16()
    found, expected = (
        linear(made.weight.detach(), made.bias.detach(), 500, gelu=True)(x),
        F.gelu(x.float(), approximate="tanh"),
    )
    assert torch.allclose(found.float(), expected, rtol=2**-8, atol=1e-6)
    x = torch.zeros(1, 32).bfloat16()
    x[0, :4] = torch.tensor([300.0, -300.0, 1e-20, -0.0])
    found = linear(made.weight.detach(), made.bias.detach(), 1, gelu=True)(x)[0].float()
    assert found[0] == pytest.approx(300, rel=0.01) and abs(float(found[1])) < 1e-6
    assert found[2] == pytest.approx(5e-21, rel=0.01)
    x[0, 0] = torch.nan
    assert linear(made.weight.detach(), made.bias.detach(), 1, gelu=True)(x).isnan().any()


@torch.no_grad()
@pytest.mark.parametrize("inputs, outputs", [(33, 64), (64, 48), (2048, 64)])
def test_other_shapes_go_to_onednn(inputs: int, outputs: int):
    made = layer(inputs, outputs)
    x = torch.randn(5, inputs, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = linear(made.weight.detach(), made.bias.detach(), 5)
    assert isinstance(found, OneDnn)
    expected = x.float() @ made.weight + made.bias
    assert torch.allclose(found(x).float(), expected, rtol=0.02, atol=0.5)
