"""Classes by measurement: the rules on numbers made by hand.

Mutations tried by hand, each of which fails here: a name mover without attention; without its
drop; without the three standard errors; a negative head by S only or by IO only; a backup whose
drop does not grow; a name mover listed as a backup as well.
"""

import numpy as np
import pytest

from saekit.errors import InputError
from saekit.heads.prompts.measured import classify, measured_classes, passing_by_chance
from saekit.heads.prompts.stories import StoryMeasures

N = 40


def measures(**planted):
    """All zero but for (layer, head): value; the model's name logit is 10, so 2% are 0.2."""
    grids = {
        name: np.zeros((N, 2, 4))
        for name in StoryMeasures.__annotations__
        if name not in ("name_logit", "correct")
    }
    for name, values in planted.items():
        for head, value in values.items():
            grids[name][(slice(None), *head)] = value
    return StoryMeasures(name_logit=np.full(N, 10.0), correct=np.ones(N), **grids)


NOISE = np.where(np.arange(N) % 2 == 0, 8.0, -7.4)  # mean 0.3, three standard errors are 3.7


def test_name_movers_attend_raise_and_are_needed():
    m = measures(
        to_answer={(0, 0): 0.5, (0, 1): 0.5, (0, 2): 0.5, (1, 0): 0.05, (1, 1): 0.5, (1, 2): 0.11},
        raises_answer={
            (0, 0): 1.0, (0, 1): 0.19, (0, 2): 1.0, (1, 0): 1.0, (1, 1): NOISE, (1, 2): 2.0,
        },
        drop={(0, 0): 0.3, (0, 1): 0.3, (0, 2): -0.3, (1, 0): 0.3, (1, 1): 0.3, (1, 2): 0.3},
    )  # fmt: skip
    movers, backups, negative = classify(m)
    assert movers == [(1, 2), (0, 0)]  # the strongest first; the others lack one thing each
    assert backups == negative == []


def test_negative_heads_write_against_the_name_they_attend_to():
    m = measures(
        to_answer={(0, 0): 0.9, (1, 1): 0.05},
        to_other={(0, 1): 0.9, (1, 0): 0.9},
        raises_answer={(0, 0): -0.5, (1, 0): -0.5, (1, 1): -0.5},
        raises_other={(0, 1): -0.8, (0, 0): 0.3},
    )
    assert classify(m)[2] == [(0, 1), (0, 0)]  # (1, 0) attends to S but writes against IO


def test_backups_are_needed_more_once_the_name_movers_are_gone():
    heads = {(0, 0): 1.0, (0, 1): 0.1, (0, 2): 0.1, (0, 3): 0.1, (1, 0): -0.1}
    m = measures(
        to_answer=dict.fromkeys(heads, 0.5), raises_answer=heads, drop={(0, 0): 0.5, (0, 2): 0.3}
    )
    after = np.zeros((N, 2, 4))
    after[:, 0, 0], after[:, 0, 1], after[:, 0, 2] = 2.0, 0.25, 0.4
    after[:, 0, 3], after[:, 1, 0] = NOISE, 0.25
    movers, backups, _ = classify(m, after)
    assert movers == [(0, 0)]  # grows as well, and stays a name mover
    assert backups == [(0, 1)]  # (0, 2) grows by 0.1 only, (0, 3) not clearly, (1, 0) lowers IO


def test_the_baseline_counts_heads_that_pass_with_unrelated_names():
    m = measures(
        to_answer={(0, 0): 0.5, (0, 1): 0.5}, to_other={(1, 1): 0.5},
        raises_unrelated={(0, 0): 1.0, (0, 1): 0.1, (1, 1): -0.4, (1, 2): 3.0},
    )  # fmt: skip
    assert passing_by_chance(m) == 2
    assert passing_by_chance(measures()) == 0


def test_a_model_that_tells_no_such_stories_gets_no_classes(tiny_model):
    from saekit.model.exact import ExactModel

    with pytest.raises(InputError, match="two-name"):
        measured_classes(tiny_model, ExactModel(tiny_model), n=4)
