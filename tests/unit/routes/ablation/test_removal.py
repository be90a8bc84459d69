"""Drops by ablation: against single runs, and random sets of the right form.

Mutations tried by hand, each of which fails here: 0 and 1 of the mask exchanged; every set of a
batch removed in every row; the restart at the highest edited layer instead of the lowest.
"""

import pytest
import torch

from saekit.model.exact import Edits, ExactModel
from saekit.routes.ablation.removal import drops, removed
from saekit.routes.target import Target, token_target


@pytest.fixture(scope="module")
def setting(tiny_model):
    exact = ExactModel(tiny_model, torch.float64)
    clean = exact.run(tiny_model.prompt('The opposite of "large" is "'))
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    return exact, clean, Target("random", "feature", 3, 8, direction, 0.0, feature=0)


def drop_of_whole_run(exact, clean, target, heads, keys) -> float:
    """The whole prompt again from layer 0, one set, every position."""
    n = len(clean.ids)
    keep = torch.ones(exact.n_layers, 1, exact.n_heads, n, n, dtype=torch.float64)
    for m, h in heads:
        keep[m, 0, h, target.query, keys] = 0
    resid = exact.rerun(clean, Edits(keep=keep), (0, n - 1), until=target.layer)
    return target.value(clean) - float(target.measure(exact, resid[0, target.query]))


def test_batched_drops_equal_single_runs(setting):
    exact, clean, target = setting
    sets = [[(0, 1)], [(2, 3)], [(0, 0), (1, 2), (2, 1)], [], [(1, 1)]] * 15  # > one batch
    for keys in ([5], [1, 2, 7]):
        found = drops(exact, clean, target, sets, keys)
        expected = [drop_of_whole_run(exact, clean, target, heads, keys) for heads in sets[:5]]
        assert found == pytest.approx(expected * 15, rel=1e-9, abs=1e-11)
        assert found[3] == pytest.approx(0, abs=1e-12)


def test_heads_at_or_above_the_target_change_nothing(setting):
    exact, clean, target = setting
    low = Target("low", "feature", 1, 8, target.direction, 0.0, feature=0)
    above, below = drops(exact, clean, low, [[(1, 0), (2, 2)], [(0, 0), (2, 2)]], [5])
    assert above == pytest.approx(0, abs=1e-12)
    assert below == pytest.approx(drops(exact, clean, low, [[(0, 0)]], [5])[0])


def test_a_logit_is_measured_with_the_final_norm_live(setting):
    exact, clean, _ = setting
    target = token_target(exact, clean, 5, 8, "x")
    heads = [(m, h) for m in range(3) for h in range(4)]
    resid = removed(exact, clean, 8, [heads], [5])
    logits = exact.unembed(resid)[0][0]
    expected = target.value(clean) - float(logits[5] - logits.mean())
    assert drops(exact, clean, target, [heads], [5])[0] == pytest.approx(expected, rel=1e-9)
