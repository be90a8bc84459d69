"""Shapley values by their axioms and by averaging over all orders.

Mutation tried by hand, which fails here: the weight 1 / 2^(n-1) of the Banzhaf index.
"""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.routes.ablation.shapley import shapley_values, subsets


def test_subsets_in_the_order_of_their_bits():
    assert subsets("ab") == [[], ["a"], ["b"], ["a", "b"]]
    assert len(subsets(range(8))) == 256


def test_two_redundant_and_one_independent_player_by_hand():
    """a or b alone gives 6, both 6; c adds 1 to anything."""
    worth = [6.0 * bool({"a", "b"} & set(s)) + ("c" in s) for s in subsets("abc")]
    assert shapley_values(worth) == pytest.approx([3, 3, 1])


def test_two_players_that_only_work_together():
    assert shapley_values([0, 0, 0, 10.0]) == pytest.approx([5, 5])
    assert shapley_values([2.0]) == []


@given(st.lists(st.floats(-5, 5), min_size=16, max_size=16))
def test_the_average_over_all_orders_and_efficiency(worth):
    expected = [0.0] * 4
    for order in permutations(range(4)):
        index = 0
        for player in order:
            expected[player] += (worth[index | 1 << player] - worth[index]) / 24
            index |= 1 << player
    found = shapley_values(worth)
    assert found == pytest.approx(expected, abs=1e-9)
    assert sum(found) == pytest.approx(worth[-1] - worth[0], abs=1e-9)
