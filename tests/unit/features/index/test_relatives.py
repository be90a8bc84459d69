import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from saekit.features.index.relatives import MIN_CORRELATION, MIN_JOINT, KeptRows, correlated


def test_correlations_equal_numpys():
    # mutations tried: without "less the product of the means", or without MIN_JOINT, this fails
    rng = np.random.default_rng(0)
    left = rng.random((400, 30)) * (rng.random((400, 30)) < 0.2)
    right = rng.random((400, 40)) * (rng.random((400, 40)) < 0.2)
    right[:, 7] = 3 * left[:, 5] + 0.1 * right[:, 7]
    left[:, 9], right[:, 9] = 0, 0
    left[:3, 9] = right[:3, 9] = 5  # a perfect correlation of three positions
    found, value = correlated(csr_array(left), csr_array(right), limit=2)
    with np.errstate(invalid="ignore"):
        full = np.corrcoef(left.T, right.T)[:30, 30:]
    full[(left > 0).T.astype(int) @ (right > 0) < MIN_JOINT] = 0
    full[full < MIN_CORRELATION] = 0
    best = np.argsort(-full, -1, kind="stable")[:, :2]
    expected = np.maximum(np.take_along_axis(full, best, -1), 0)
    assert_allclose(value, expected, atol=1e-9)
    assert_array_equal(found[value > 0], best[value > 0])
    assert found[5, 0] == 7 and value[5, 0] > 0.9
    assert value[9].max() < 0.5


def test_a_feature_is_no_relative_of_itself():
    rng = np.random.default_rng(1)
    active = csr_array(rng.random((200, 6)) * (rng.random((200, 6)) < 0.5))
    found, value = correlated(active, active, limit=5, same=True)
    for feature in range(6):
        assert feature not in found[feature][value[feature] > 0]


def test_kept_rows_are_bounded_and_spread_over_the_text():
    # mutation tried: not doubling the stride keeps only the beginning of the text
    kept = KeptRows([5], positions=40)
    for first in range(0, 64, 4):
        features = np.full((4, 4, 1), (first // 4) % 5, np.int32)
        values = np.ones((4, 4, 1), np.float32)
        counted = np.ones((4, 4), bool)
        counted[:, 0] = False
        kept.offer(first, counted, [(values, features)])
    assert sum(kept.lengths) <= 40
    assert kept.numbers == list(range(0, 64, kept.stride))
    matrix = kept.matrix(0)
    assert matrix.shape == (sum(kept.lengths), 5)
    assert matrix.sum() == sum(kept.lengths)
    assert (matrix.toarray().argmax(-1)[::3] == [n // 4 % 5 for n in kept.numbers]).all()


def test_nothing_kept():
    assert KeptRows([3]).matrix(0).shape == (0, 3)
