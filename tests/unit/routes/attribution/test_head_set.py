"""Shares with numbers that can be computed in the head."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.routes.attribution.arrivals import EdgeSplit, error_share
from saekit.routes.attribution.head_set import (
    N80_SHARE,
    positive,
    ranked_heads,
    ratio,
    smallest_set,
)

H = torch.tensor([[3.0, -2.0, 1.0], [0.0, 5.0, 1.0]])


def test_heads_are_ranked_and_negative_ones_left_out():
    assert [head for head, _ in ranked_heads(H)] == [(1, 1), (0, 0), (0, 2), (1, 2)]
    assert positive(H) == 10


@pytest.mark.parametrize(
    ("share", "size"), [(0.0, 0), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)]
)
def test_smallest_set(share, size):
    """5 + 3 = 80% of 10 exactly: two heads are enough."""
    assert len(smallest_set(H, share)) == size


def test_nothing_positive_gives_no_set():
    assert smallest_set(-H.abs(), N80_SHARE) == []


@pytest.mark.parametrize(
    ("part", "whole", "p", "expected"),
    [(1, 4, 10, 0.25), (1, -4, 10, -0.25), (1, 0.99, 10, None), (1, 1, 10, 1.0), (1, 0, 0, None),
     (10, 1, 0.5, 10.0), (10.1, 1, 0.5, None)],
)  # fmt: skip
def test_a_ratio_of_next_to_nothing_is_refused(part, whole, p, expected):
    assert ratio(part, whole, p) == expected


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0.01, 1))
def test_the_smallest_set_reaches_its_share_and_one_head_less_does_not(values, share):
    contributions = torch.tensor([values], dtype=torch.float64)
    chosen = smallest_set(contributions, share)
    total = positive(contributions)
    reached = [sum(values[h] for _, h in part) for part in (chosen, chosen[:-1])]
    assert reached[0] >= share * total * (1 - 1e-6)
    if chosen:
        assert reached[1] < share * total


def test_errors_of_different_heads_do_not_cancel():
    """|+2| + |-1| of |4| + |2|.  Mutation tried: |2 - 1| / 6, the absolute value of the sum."""
    first = EdgeSplit(features={3: 2.0}, error=2.0, decoder_bias=0.0, constant=0.0)
    second = EdgeSplit(features={5: 3.0}, error=-1.0, decoder_bias=0.0, constant=0.0)
    assert error_share({(0, 0): first, (1, 0): second}) == pytest.approx(0.5)
    assert error_share({}) is None
