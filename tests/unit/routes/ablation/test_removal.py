"""Drops by ablation: against single runs, and random sets of the right form.

Mutations tried by hand, each of which fails here: 0 and 1 of the mask exchanged; every set of a
batch removed in every row; the restart at the highest edited layer instead of the lowest.
"""

import pytest
import torch

from saekit.model.exact import Edits, ExactModel
from saekit.routes.ablation.removal import EdgeDrops, drops, random_sets, removed
from saekit.routes.targets import Target, token_target


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


def test_edge_drops(setting):
    exact, clean, target = setting
    heads = [(0, 1), (2, 3)]
    everything = [(m, h) for m in range(3) for h in range(4)]
    found = EdgeDrops(exact, clean, target, 5, heads, range(1, 8))
    single = drops(exact, clean, target, [[(0, 1)], [(2, 3)]], [5])
    assert list(found.single.values()) == pytest.approx(single)
    assert found.joint(heads) == pytest.approx(drops(exact, clean, target, [heads], [5])[0])
    assert found.key_edges == pytest.approx(drops(exact, clean, target, [everything], [5])[0])
    whole = drops(exact, clean, target, [everything], list(range(1, 8)))[0]
    assert found.all_edges == pytest.approx(whole)
    baseline = found.random(heads, 20, seed=0)
    assert len(baseline) == 20
    assert baseline == sorted(baseline)


def test_random_sets_have_the_same_form():
    heads = [(0, 1), (0, 3), (2, 2)]
    sets = random_sets(heads, n_layers=3, n_heads=6, count=50, seed=1)
    assert len(sets) == 50
    for chosen in sets:
        assert sorted(m for m, _ in chosen) == [0, 0, 2]
        assert len(set(chosen)) == 3
        assert set(chosen) != set(heads)
    assert sets == random_sets(heads, 3, 6, 50, seed=1) != random_sets(heads, 3, 6, 50, seed=2)


def test_random_sets_where_layers_are_full():
    whole_layer = [(0, h) for h in range(4)]
    assert all(len(s) == 4 and set(s) != set(whole_layer)
               for s in random_sets(whole_layer, 3, 4, 20))  # fmt: skip
    everything = [(m, h) for m in range(3) for h in range(4)]
    assert random_sets(everything, 3, 4, 20) == []
    assert random_sets([], 3, 4, 20) == []
