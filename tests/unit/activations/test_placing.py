"""Rows copied into the buffer."""

import pytest
import torch

from saekit.activations.placing import place_rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wrong", [None, torch.nan, torch.inf, -torch.inf])
def test_rows_are_placed_and_looked_at(dtype, wrong):
    """Mutations tried: infinity taken for finite; a row's place for another."""
    source = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows, places = torch.tensor([6, 4, 1]), torch.tensor([8, 0, 3])
    source[2, 5] = torch.nan  # not copied: does not count
    if wrong is not None:
        source[4, 49] = wrong
    out = torch.zeros(9, 50, dtype=torch.bfloat16)
    told = place_rows(source, rows, places, out)
    assert bool(torch.isfinite(told)) == (wrong is None)
    expected = torch.zeros(9, 50, dtype=torch.bfloat16)
    expected[places] = source[rows].bfloat16()
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=0, atol=0)
