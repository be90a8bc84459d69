import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from saekit.features.index.statistics import BINS, Moments, best_of_each


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


def test_best_of_each_group():
    group = np.array([4, 1, 4, 4, 1])
    chosen, rank = best_of_each(group, np.array([0.1, 9.0, 0.3, 0.2, 8.0]), 2)
    assert_array_equal(chosen, [1, 4, 2, 3])
    assert_array_equal(rank, [0, 1, 0, 1])


def test_nothing_seen():
    assert_array_equal(Moments(3).mean, [0, 0, 0])
