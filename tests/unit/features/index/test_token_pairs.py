import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saekit.features.index import token_pairs as module
from saekit.features.index.token_pairs import CountedPairs, PairTable


@pytest.fixture(params=["C++", "NumPy"])
def implementation(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(module, "library", lambda source: None)


def drawn(rng, n, tokens, features):
    """(token, feature, value) of which few are frequent, as in text; some tokens do not count."""
    token = rng.zipf(1.3, n) % tokens - 1
    return token, rng.zipf(1.3, n) % features, rng.random(n, dtype=np.float32) + 0.1


def test_pairs_equal_a_plain_count(implementation):
    # mutations tried: probing that does not wrap around at the end of the table writes beyond it;
    # a slot taken without comparing keys joins pairs
    rng = np.random.default_rng(1)
    pairs, plain = CountedPairs(7, per_feature=13), {}
    for _ in range(20):
        token, feature, value = drawn(rng, 60, 12, 7)
        pairs.add(token, feature, value)
        for t, f, v in zip(token.tolist(), feature.tolist(), value.tolist(), strict=True):
            if t >= 0:
                plain.setdefault((t, f), []).append(v)
    table = pairs.table()
    found = list(zip(table.token.tolist(), table.feature.tolist(), strict=True))
    assert found == sorted(plain)
    assert pairs.used == len(plain)
    assert_array_equal(table.count, [len(plain[pair]) for pair in found])
    assert_allclose(table.total, [sum(plain[pair]) for pair in found], rtol=1e-6)
    assert_allclose(table.largest, [max(plain[pair]) for pair in found])


@pytest.mark.parametrize("shares", [False, True])
def test_both_implementations_hold_and_forget_the_same(monkeypatch, shares):
    rng = np.random.default_rng(2)
    hashed = CountedPairs(50, 4, shares)
    size = hashed._entries.nbytes
    if hashed._functions is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(module, "library", lambda source: None)
    plain = CountedPairs(50, 4, shares)
    for _ in range(30):
        new = drawn(rng, 100, 80, 50)
        hashed.add(*new)
        plain.add(*new)
        one, other = hashed.table(), plain.table()
        assert len(one.entries) == hashed.used == plain.used <= 2 * 200
        for name in ("key", "count", "largest"):
            assert_array_equal(one.entries[name], other.entries[name])
        assert_allclose(one.total, other.total, rtol=1e-12)
    assert hashed._entries.nbytes == size  # however much was counted
    assert one.entries["count"].sum() < 30 * 100 - 400  # something was forgotten


def test_pairs_forget_the_rarest_first(implementation):
    # mutation tried: of equal counts the weakest are kept
    pairs = CountedPairs(3, per_feature=1)  # room for six pairs; three are kept
    for times, token in ((3, 0), (1, 1), (2, 2), (1, 3), (1, 5), (1, 4), (1, 6)):
        strength = np.full(times, 1.0 + token, np.float32)
        pairs.add(np.full(times, token), np.zeros(times, np.int64), strength)
    assert_array_equal(pairs.table().token, [0, 2, 5, 6])
    assert_array_equal(pairs.table().count, [3, 2, 1, 1])


def test_pairs_of_rare_features_outlast_those_of_frequent_ones(implementation):
    # mutation tried: by count, the only token of feature 1 is forgotten
    pairs = CountedPairs(2, per_feature=1, shares=True)
    for times, token, feature in ((8, 0, 0), (2, 1, 0), (1, 2, 1), (1, 3, 0), (1, 4, 0)):
        pairs.add(*(np.full(times, x) for x in (token, feature, np.float32(1))))
    table = pairs.table()
    assert list(zip(table.token, table.feature, strict=True)) == [(0, 0), (2, 1), (4, 0)]


def test_a_table_goes_on_where_another_stopped(implementation):
    rng = np.random.default_rng(3)
    whole, first, second = (CountedPairs(20) for _ in range(3))
    batches = [drawn(rng, 200, 30, 20) for _ in range(2)]
    first.add(*batches[0])
    second.restore(first.table().entries)
    second.add(*batches[1])
    for batch in batches:
        whole.add(*batch)
    assert_array_equal(second.table().entries, whole.table().entries)
    assert_array_equal(second.finish().entries, whole.table().entries)


def test_tokens_become_words():
    # mutation tried: the larger of two totals instead of their sum
    pairs = CountedPairs(10)
    pairs.add(np.array([0, 1, 2, 2]), np.array([5, 5, 5, 6]), np.array([1, 2, 4, 8], np.float32))
    words = pairs.table()
    words = words.under(np.array([1, 0, 1])[words.token])
    assert isinstance(words, PairTable)
    columns = (words.token, words.feature, words.count, words.total, words.largest)
    assert [*zip(*columns, strict=True)] == [(0, 5, 1, 2, 2), (1, 5, 2, 5, 4), (1, 6, 1, 8, 8)]


def test_counting_sorts_stably():
    # mutations tried: NumPy's default argsort; equal numbers in descending order of place
    column = np.random.default_rng(0).integers(0, 5, 1000).astype(np.int32)
    assert_array_equal(module._ascending(column), np.argsort(column, kind="stable"))
    assert len(module._ascending(column[:0])) == 0


def test_nothing_seen_is_an_empty_table(implementation):
    table = CountedPairs(3).table()
    assert len(table.token) == len(table.under(table.token).entries) == 0
