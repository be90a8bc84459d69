"""Which pairs stay for a tokenizer, and the score of a constant head, by hand.

Mutations tried by hand, each of which fails here: no leading space; a pair kept when one end is
one token; the constant head counted over listed instead of kept pairs.
"""

import numpy as np
import pytest

from saekit.errors import InputError, ModelError
from saekit.heads.pairs import TokenPairs, open_for_pairs, token_pairs
from saekit.heads.relations import open_relation

LIST = [("large", "small"), ("small", "zebrafinches"), ("zebrafinches", "large"), ("big", "little")]


def test_both_ends_must_be_one_token_with_a_space(tiny_model):
    pairs = token_pairs(tiny_model, open_relation(LIST), min_pairs=1)
    assert pairs.words == (("large", "small"), ("big", "little"))
    assert pairs.listed == 4 and len(pairs) == 2
    assert tiny_model.token_strings(pairs.source.tolist()) == [" large", " big"]
    assert tiny_model.token_strings(pairs.target.tolist()) == [" small", " little"]


def test_too_few_are_refused_with_both_counts(tiny_model):
    with pytest.raises(InputError, match='2 of the 4 pairs of "pairs" are single tokens'):
        token_pairs(tiny_model, open_relation(LIST))
    with pytest.raises(InputError, match="0 of the 1 pairs"):
        token_pairs(tiny_model, open_relation([("zebrafinches", "zebrafinches")]))


def test_the_constant_head():
    targets = np.array([5, 5, 5, 6, 6, 7])
    pairs = TokenPairs(open_relation([(1, 5)]), (("a", "b"),) * 6, targets, targets, 100)
    assert [pairs.constant_score(k) for k in (1, 2, 3, 10)] == [3 / 6, 5 / 6, 1, 1]
    assert pairs.distinct_targets == 3


def test_token_ids_need_no_tokenizer(planted):
    by_ids = open_relation([(t, t) for t in range(40)])
    model = open_for_pairs(planted, by_ids)
    assert model.tokenizer is None
    assert token_pairs(model, by_ids).words[3] == ("#3", "#3")
    with pytest.raises(ModelError):
        open_for_pairs(planted, open_relation("name_copying"))
