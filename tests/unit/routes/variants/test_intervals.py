"""Bootstrap intervals: coverage on known data, groups, too few values.

Mutation tried: single values drawn although groups are given.
"""

import numpy as np
import pytest

from saekit.routes.variants.intervals import bootstrap_interval


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values, np.mean)
    half = 1.96 * values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.04)


def test_the_true_median_is_inside_95_percent_of_the_time():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.exponential(size=40), resamples=300, seed=seed)
        inside += low <= np.log(2) <= high
    assert 0.9 <= inside / 200 <= 0.99


def test_groups_are_drawn_whole():
    """Ten copies of each of 8 values say no more than the 8 values."""
    values = np.arange(8.0)
    groups = np.repeat(range(8), 10).tolist()
    alone = bootstrap_interval(values, np.mean)
    copied = bootstrap_interval(np.repeat(values, 10), np.mean, groups)
    assert copied == pytest.approx(alone)
    low, high = bootstrap_interval(np.repeat(values, 10), np.mean)
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_rows_and_too_few_values():
    table = np.array([[2.0, 1.0], [4.0, 2.0], [6.0, 3.0]])
    ratio = bootstrap_interval(table, lambda t: t[:, 0].sum() / t[:, 1].sum())
    assert ratio == pytest.approx((2, 2))
    assert bootstrap_interval([1.0]) is bootstrap_interval([]) is None
    assert bootstrap_interval([1.0, 2.0], groups=["a", "a"]) is None
