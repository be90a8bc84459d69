"""Scores against plain loops and hand-computed answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array
from sklearn.metrics import roc_auc_score

from saekit.features.held_out import HeldOut
from saekit.features.names.lexicons import Words
from saekit.features.names.name_file import LayerNames
from saekit.features.names.predicates import Predicates
from saekit.features.names.scoring import LayerScorer, auroc, balanced, partners, score_layer

VOCABULARY = ["bos", " a", " b", "A", " c", "(", " d"]
PASSAGE = 8


def text_of(rows, active, predicted=None):
    """Held-out text of one layer from token ids and dense activations [position, feature]."""
    rows = np.asarray(rows)
    tokens = np.where(rows.ravel() == 0, -1, rows.ravel())
    following = np.roll(rows.ravel(), -1) if predicted is None else predicted
    return HeldOut(rows, tokens, following, {0: csc_array(np.asarray(active))}, PASSAGE)


@pytest.fixture(scope="module")
def planted():
    """Feature 0 fires on every " a", 1 on half of them, 2 before " a", 3 at random, 4 on "("."""
    rng = np.random.default_rng(0)
    rows = rng.choice([2, 4, 6], (200, 2 * PASSAGE))
    rows[rng.random(rows.shape) < 0.06] = 1
    rows[rng.random(rows.shape) < 0.03] = 5
    rows[:, 0] = 0
    flat = rows.ravel()
    active = np.zeros((flat.size, 5))
    active[flat == 1, 0] = rng.uniform(1, 2, (flat == 1).sum())
    half = rng.random(flat.size) < 0.5
    active[:, 1] = active[:, 0] * half
    active[:, 2] = np.roll(flat == 1, -1)
    active[:, 3] = rng.random(flat.size) < 0.05
    active[:, 4] = flat == 5
    active[flat == 0] = 0
    return text_of(rows, active)


def names_of(kinds):
    names = LayerNames.empty(len(kinds))
    for feature, (text, kind) in enumerate(kinds):
        if kind:
            names.set(feature, text, kind, "current word", 1.0, 10.0)
    return names


def test_names_of_known_truth(planted):
    # mutations tried: no hard negatives gives feature 1 a detection of 1 and a fuzzing of 0.98;
    # judging the null with the own name gives 1 instead of 0.5
    predicates = Predicates(planted, Words(VOCABULARY))
    kinds = [("a", "input"), ("a", "input"), ("a", "output"), ("d", "input"), ("(", "input")]
    names = names_of(kinds)
    score_layer(names, 0, (planted, predicates), (planted, predicates))
    scores = {name: column.round(3) for name, column in names.scores.items()}
    assert scores["detection"][0] == scores["fuzzing"][0] == scores["f1"][0] == 1
    assert scores["auroc"][0] == 1
    assert scores["recall"][1] == 1 and 0.4 < scores["precision"][1] < 0.6
    # 50 random negatives and about 25 hard ones, on which the name is wrong
    assert 0.75 < scores["detection"][1] < 0.9
    assert 0.6 < scores["fuzzing"][1] < 0.9
    assert scores["detection"][2] == scores["f1"][2] == 1
    assert names.kind[3] == 0 or abs(scores["detection"][3] - 0.5) < 0.15
    assert abs(scores["null_detection"][0] - 0.5) < 0.2
    assert scores["chosen_detection"][0] == 1


def test_a_name_that_tells_nothing_is_withdrawn_for_the_next(planted):
    predicates = Predicates(planted, Words(VOCABULARY))
    names = names_of([("d", "input"), ("d", "input"), *[("", "")] * 3])
    names.others = {0: [("a", "input", "current word", 0.9, 20.0)]}
    score_layer(names, 0, (planted, predicates), (planted, predicates))
    assert names.text[:2] == ["a", ""]
    assert names.scores["detection"][0] == 1
    assert np.isnan(names.scores["detection"][1])


def test_too_few_passages_give_no_score(planted):
    few = planted.layers[0].toarray()
    few[np.flatnonzero(few[:, 0])[9:], 0] = 0  # nine activations
    text = text_of(planted.rows, few, planted.predicted)
    predicates = Predicates(text, Words(VOCABULARY))
    names = names_of([("a", "input"), *[("", "")] * 4])
    score_layer(names, 0, (text, predicates), (text, predicates))
    assert np.isnan(names.scores["detection"][0]) and not np.isnan(names.scores["f1"][0])


def test_contexts_are_what_they_are_said_to_be(planted):
    scorer = LayerScorer(planted, planted.layers[0])
    holds = np.flatnonzero(planted.tokens == 1)
    contexts = scorer.contexts(1, holds)
    active = planted.layers[0].toarray()[:, 1] > 0
    per_passage = active.reshape(-1, PASSAGE).any(-1)
    assert per_passage[contexts.positives].all() and len(contexts.positives) == 50
    assert not per_passage[contexts.negatives].any()
    for item, is_active in enumerate(contexts.active):
        marks = contexts.marks[contexts.mark_of == item]
        assert len(marks) and (active[marks] == is_active).all()
        assert (planted.tokens[marks] >= 0).all()
        assert len(set(marks // PASSAGE)) == 1
    n = len(contexts.positives)
    of_positives, of_negatives = (
        [int((contexts.mark_of == item).sum()) for item in range(start, start + n)]
        for start in (0, n)
    )
    assert of_positives == of_negatives  # as many random marks as real ones
    again = scorer.contexts(1, holds)
    assert (again.marks == contexts.marks).all() and (again.negatives == contexts.negatives).all()


def test_positives_are_spread_over_the_quantiles():
    rows = np.full((200, PASSAGE), 2)
    active = np.zeros((rows.size, 1))
    active[::PASSAGE, 0] = np.arange(1, 201)
    contexts = LayerScorer(text_of(rows, active), csc_array(active)).contexts(0, np.zeros(0, int))
    strengths = np.sort(contexts.positives + 1)
    assert strengths[0] == 1 and strengths[-1] == 200
    assert np.diff(strengths).max() <= 5


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40))
def test_auroc_of_a_sparse_score(pairs):
    # mutation tried: ties at 0 counted whole instead of half
    value, here = (np.array(column) for column in zip(*pairs, strict=True))
    active = value > 0
    found = auroc(value[active].astype(float), here[active], int(here.sum()), int((~here).sum()))
    if here.all() or not here.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(here, value))


def test_balanced_accuracy():
    said, true = np.array([1, 1, 0, 1], bool), np.array([1, 1, 0, 0], bool)
    assert balanced(said, true) == 0.75
    assert np.isnan(balanced(said, np.ones(4, bool)))


def test_partners_are_near_in_frequency_and_of_another_name():
    names = names_of([("x", "input"), ("y", "input"), ("x", "input"), ("", ""), ("x", "input")])
    found = partners(names, np.array([5, 90, 6, 7, 100]))
    assert found.tolist() == [1, 4, 1, -1, 1]
    assert partners(names_of([("x", "input")] * 2), np.array([1, 2])).tolist() == [-1, -1]
    # mutation tried: a free text as a partner holds nowhere, a null of 0.5 that says nothing
    mixed = names_of([("x", "input"), ("free text", "text"), ("y", "input")])
    assert partners(mixed, np.array([5, 6, 90])).tolist() == [2, -1, 0]


def test_predicates():
    rows = [[0, 1, 2, 3, 5, 0, 4, 6], [0, 2, 2, 2, 2, 2, 2, 4]]
    text = text_of(rows, np.zeros((16, 1)))
    holds = Predicates(text, Words(VOCABULARY)).positions
    assert holds("input", "a").tolist() == [1, 3]  # " a" and "A"
    assert holds("class", "brackets").tolist() == [4]
    assert holds("output", "a").tolist() == [2]  # position 0 is BOS
    assert holds("context", "a").tolist() == [2, 3, 4]  # up to the end of the document
    assert holds("context", "a, c").tolist() == [2, 3, 4, 7]
    assert holds("input", "z").tolist() == holds("class", "nothing").tolist() == []
