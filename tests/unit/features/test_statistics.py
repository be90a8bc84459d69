import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saekit.features import statistics
from saekit.features.statistics import BINS, Moments, Pairs, best_of_each


def test_moments_by_hand():
    moments = Moments(3)
    moments.add(np.array([0, 0, 1]), np.array([1.0, 3.0, 0.5], np.float32))
    moments.add(np.array([0]), np.array([5.0], np.float32))
    assert_array_equal(moments.count, [3, 1, 0])
    assert_allclose(moments.mean, [3.0, 0.5, 0.0])
    assert_allclose(moments.largest, [5.0, 0.5, 0.0])
    assert_array_equal(moments.log2_range[:2], [3, 0])  # 0.5 is not below 2**-1, so the range is 1
    # bins of 8 / 50 = 0.16: 1 / 0.16 = 6.25, 3 / 0.16 = 18.75, 5 / 0.16 = 31.25
    assert_array_equal(np.flatnonzero(moments.histogram[0]), [6, 18, 31])
    assert_array_equal(np.flatnonzero(moments.histogram[1]), [25])
    assert moments.histogram[2].sum() == 0


def test_histogram_of_growing_values_is_that_of_all_values():
    # mutation tried: merging bins i and i + 25 instead of neighbours fails here
    rng = np.random.default_rng(0)
    moments = Moments(2)
    batches = [scale * rng.random(500, dtype=np.float32) + 1e-3 for scale in (0.01, 1, 0.1, 300)]
    for batch in batches:
        moments.add(np.ones(500, np.int64), batch)
    values = np.concatenate(batches)
    edges = np.linspace(0, 2.0 ** moments.log2_range[1], BINS + 1)
    assert_array_equal(moments.histogram[1], np.histogram(values, edges)[0])
    assert values.max() < edges[-1] <= 2 * values.max()


def test_pairs_equal_a_plain_count(monkeypatch):
    monkeypatch.setattr(statistics, "_BUFFERED", 100)  # several merges
    rng = np.random.default_rng(1)
    pairs, plain = Pairs(7), {}
    for _ in range(20):
        token, feature = rng.integers(0, 11, 60), rng.integers(0, 7, 60)
        value = rng.random(60, dtype=np.float32) + 0.1
        pairs.add(token, feature, value)
        for t, f, v in zip(token.tolist(), feature.tolist(), value.tolist(), strict=True):
            plain.setdefault((t, f), []).append(v)
    pairs.settle()
    found = list(zip(pairs.token.tolist(), pairs.feature.tolist(), strict=True))
    assert found == sorted(plain)
    assert_array_equal(pairs.count, [len(plain[pair]) for pair in found])
    assert_allclose(pairs.total, [sum(plain[pair]) for pair in found], rtol=1e-6)
    assert_allclose(pairs.largest, [max(plain[pair]) for pair in found])


def test_counting_sorts_stably():
    # mutations tried: NumPy's default argsort; equal numbers in descending order of place
    column = np.random.default_rng(0).integers(0, 5, 1000).astype(np.int32)
    assert_array_equal(statistics._ascending(column), np.argsort(column, kind="stable"))
    assert len(statistics._ascending(column[:0])) == 0


def test_pairs_forget_the_rarest_first(monkeypatch):
    monkeypatch.setattr(statistics, "PAIRS_PER_FEATURE", 1)
    pairs = Pairs(2)  # room for two pairs
    for times, token in ((3, 0), (1, 1), (2, 2)):
        pairs.add(np.full(times, token), np.zeros(times, np.int64), np.ones(times, np.float32))
    pairs.settle()
    assert_array_equal(pairs.token, [0, 2])
    assert_array_equal(pairs.count, [3, 2])


def test_best_of_each_group():
    group = np.array([4, 1, 4, 4, 1])
    chosen, rank = best_of_each(group, np.array([0.1, 9.0, 0.3, 0.2, 8.0]), 2)
    assert_array_equal(chosen, [1, 4, 2, 3])
    assert_array_equal(rank, [0, 1, 0, 1])


@pytest.mark.parametrize("table", [Moments, Pairs])
def test_nothing_seen_is_an_empty_table(table):
    empty = table(3)
    if isinstance(empty, Pairs):
        empty.settle()
        assert len(empty.key) == 0
        assert len(best_of_each(empty.feature, empty.total, 2)[0]) == 0
    else:
        assert_array_equal(empty.mean, [0, 0, 0])
