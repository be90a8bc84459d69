"""The atlas of gpt2-mini: what the README says about it.  Nothing here is a claim about GPT-2."""

import pytest

from saekit.heads.atlas import build_atlas

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names():
    return build_atlas("gpt2-mini", "name_copying", dynamic=True)


def test_heads_that_copy_names_are_far_above_their_null(names):
    assert names.n_pairs == 200
    assert names.scores.max() >= 0.5 > 0.05 > names.null_scores.max()
    (first, _), *_ = names.top_heads(1)
    assert first == (9, 8)


def test_static_scores_agree_with_what_heads_write(names):
    assert names.dynamic.correlation["forced"] >= 0.9
    assert names.dynamic.correlation["natural"] >= 0.6
    assert names.dynamic.correlation["forced_suppression"] >= 0.9


def test_the_measured_classes_agree_with_the_static_scores(names):
    """Classes come from stories, scores from weights: name movers copy, negative heads suppress."""
    assert names.classes.measured and "Interp" not in names.classes.title
    movers, _, negative = (c.heads for c in names.classes.drawn)
    assert movers and negative
    assert min(names.scores[head] for head in movers) > names.null_scores.max()
    assert {head for head, _ in names.top_heads(4, suppression=True)} == set(negative)
    assert names.classes.baseline["passing_with_unrelated_names"] == 0
