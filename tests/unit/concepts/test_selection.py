import numpy as np
import pytest
from scipy.sparse import csc_array

from saekit.concepts.selection import (
    LayerView,
    f1_by_threshold,
    measure,
    percentiles,
    score_layer,
    shifted,
)


def test_measures_by_hand():
    # 3 positives; at 0.5: predicted 0, 1, 3 -> TP 2, FP 1, FN 1: precision = recall = F1 = 2/3.
    # AUROC: of the 3 x 3 pairs (positive, negative) the positive is above in
    # 0.9: 3; 0.6: 2 (0.8 is above it); 0.0: ties with 0.0 (half) and 0.0 (half) -> 1; 6/9.
    # Mutation tried: recall in the place of precision fails test_precision_is_not_recall.
    strength = np.array([0.9, 0.6, 0.0, 0.8, 0.0, 0.0])
    labels = np.array([True, True, True, False, False, False])
    f1, precision, recall, auroc = measure(strength, labels, 0.5, np.ones(len(labels)))
    assert (f1, precision, recall) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert auroc == pytest.approx(6 / 9)


def test_precision_is_not_recall():
    strength, labels = np.array([1.0, 1.0, 1.0, 0.0]), np.array([True, False, False, False])
    f1, precision, recall, auroc = measure(strength, labels, 0.5, np.ones(len(labels)))
    assert (f1, precision, recall) == pytest.approx((0.5, 1 / 3, 1.0))
    assert auroc == pytest.approx(2 / 3)  # two ties count half, one win


def test_weights_count_like_repetitions():
    rng = np.random.default_rng(0)
    strength, labels = rng.random(60).round(1), rng.random(60) < 0.4
    weights = rng.integers(1, 4, 60)
    again = measure(
        np.repeat(strength, weights), np.repeat(labels, weights), 0.5, np.ones(weights.sum())
    )
    assert measure(strength, labels, 0.5, weights.astype(float)) == pytest.approx(again)


def test_no_positives_have_no_auroc():
    assert measure(np.zeros(4), np.zeros(4, bool), 0.5, np.ones(4)) == (0.0, 0.0, 0.0, None)


def test_f1_by_threshold_by_hand():
    # bins of 4 positions: hits in bins 1 and 3, a miss in bin 2; one more positive is nowhere
    hits, active = np.array([0.0, 1, 0, 1]), np.array([5.0, 1, 1, 1])
    # bin >= 1: TP 2 of 3 predicted, 3 positives: 4/6; >= 2: TP 1 of 2: 2/5; >= 3: 1 of 1: 2/4
    assert f1_by_threshold(hits, active, 3) == pytest.approx([0, 4 / 6, 2 / 5, 2 / 4])


def test_percentile_reads_positive_activations_of_the_first_half():
    dense = np.zeros((400, 3), dtype=np.float32)
    dense[:200, 0] = np.arange(1, 201)  # 1% of 200 = 2 values above
    dense[:5, 1] = [3, 1, 2, 5, 4]
    dense[200:, 1] = 100  # the second half is not read
    assert percentiles(csc_array(dense), 200).tolist() == [198, 5, 0]


N = 4000
ONES = np.ones(N)


def planted(rng, noise=0.01):
    """Feature 3 fires on half of the positives, feature 5 on the others; 0-2 at random."""
    labels = rng.random(N) < 0.05
    dense = np.zeros((N, 8), dtype=np.float32)
    which = rng.random(N) < 0.5
    for feature, where in ((3, labels & which), (5, labels & ~which)):
        dense[where, feature] = rng.uniform(4, 8, where.sum()) * (1 if feature == 3 else 10)
        weak = rng.random(N) < 0.2
        dense[weak & ~labels, feature] = 0.5 * (1 if feature == 3 else 10)  # below the threshold
    for feature in range(3):
        dense[rng.random(N) < 0.1, feature] = 1
    dense[rng.random(N) < noise, 3] = 8
    return csc_array(dense), labels


def test_a_pair_of_features_is_found_and_random_ones_are_not():
    matrix, labels = planted(np.random.default_rng(0))
    view = LayerView(matrix, N // 2, ONES)
    score = score_layer(view, 2, labels, np.random.default_rng(1))
    assert sorted(score.features) == [3, 5]
    assert score.found
    assert score.f1 > 0.85
    assert score.auroc > 0.98
    assert score.baseline_f1 < 0.25
    assert score.threshold > 0.05  # the weak activations are cut off
    assert score.positives == labels[N // 2 :].sum()
    assert score.p99 == pytest.approx([view.p99[f] for f in score.features], rel=1e-5)

    # the same features, but labels that have nothing to do with them
    other = np.random.default_rng(2).random(N) < 0.05
    absent = score_layer(view, 2, other, np.random.default_rng(1))
    assert not absent.found
    assert absent.f1 < 0.3


def test_the_second_half_decides():
    """A feature that is right on the first half only is chosen, and reported as not found."""
    rng = np.random.default_rng(3)
    labels = rng.random(N) < 0.05
    dense = np.zeros((N, 4), dtype=np.float32)
    dense[: N // 2, 1] = labels[: N // 2]
    dense[N // 2 :, 1] = rng.random(N // 2) < 0.05
    score = score_layer(LayerView(csc_array(dense), N // 2, ONES), 0, labels, rng)
    assert score.features == [1]
    assert not score.found
    assert score.f1 < 0.2


def test_greedy_choice_equals_brute_force_on_the_grid():
    matrix, labels = planted(np.random.default_rng(5), noise=0.05)
    view = LayerView(matrix, N // 2, ONES)
    choice = view.choose(labels[: N // 2])
    strength = view.strength(choice.features)[: N // 2]
    by_hand = [measure(strength, labels[: N // 2], b / 20, ONES[: N // 2])[0] for b in range(1, 20)]
    assert choice.f1 == pytest.approx(by_hand[choice.bin - 1], abs=1e-9)
    assert choice.f1 >= max(by_hand) - 0.01


def test_weights_decide_the_choice():
    """Feature 0 has few false alarms but in heavy positions, feature 1 many in light ones."""
    labels = np.zeros(N, bool)
    labels[::20] = True
    dense = np.repeat(labels[:, None], 2, 1).astype(np.float32)
    dense[1::80, 0] = 1
    dense[2::20, 1] = 1
    for heavy, expected in ((1.0, [0]), (50.0, [1])):
        weights = np.ones(N)
        weights[1::80] = heavy
        view = LayerView(csc_array(dense), N // 2, weights)
        assert view.choose(labels[: N // 2]).features == expected


def test_the_threshold_is_in_the_middle_of_equally_good_ones():
    labels = np.zeros(N, bool)
    labels[::20] = True
    dense = np.where(labels, 1.0, 0.0)[:, None].astype(np.float32)
    dense[1::20] = 0.22  # thresholds 0.25 .. 0.95 are perfect, 0.60 is their middle
    choice = LayerView(csc_array(dense), N // 2, ONES).choose(labels[: N // 2])
    assert (choice.bin, choice.f1) == (12, 1.0)


def test_too_few_positives_are_not_a_finding():
    labels = np.zeros(N, bool)
    labels[[10, 500, 900, 2500, 3000, 3500]] = True
    matrix = csc_array(labels[:, None].astype(np.float32))
    score = score_layer(LayerView(matrix, N // 2, ONES), 0, labels, np.random.default_rng(0))
    assert (score.f1, score.positives, score.found) == (1.0, 3, False)


def test_nothing_to_choose_from():
    labels = np.zeros(N, bool)
    view = LayerView(csc_array((N, 5), dtype=np.float32), N // 2, ONES)
    score = score_layer(view, 0, labels, np.random.default_rng(0))
    assert (score.features, score.f1, score.auroc, score.found) == ([], 0.0, None, False)


def test_shifted_labels_keep_their_weight():
    # a word that is only in the part read ten times as often (weight 1), 60 of its 200 positions
    weights = np.repeat([1.0, 10.0], [200, 400])
    labels = np.zeros(600, bool)
    labels[20:80] = True
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = shifted(labels, weights, rng)
        # Mutation tried: rolled over both parts, as it was, the weight is up to 600.
        assert weights[moved].sum() == 60
        assert not np.array_equal(moved, labels)
    # without weights that differ, over the whole text
    assert shifted(labels, np.ones(600), np.random.default_rng(1))[200:].any()
