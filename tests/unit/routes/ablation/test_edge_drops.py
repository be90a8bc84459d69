"""What a trace measures by ablation: single heads, sets, random sets, Shapley values, shares.

Mutations tried by hand, each of which fails here: the weight 1 / 2^(n-1) of the Banzhaf index; a
causal share cut to [0, 1] in place of refused; BOS among the positions of all edges.
"""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.routes.ablation.edge_drops import (
    EdgeDrops,
    ablations,
    random_sets,
    shapley_values,
    share_of_drop,
    subsets,
)
from saekit.routes.ablation.removal import drops, removed
from saekit.routes.ablation.replacements import resampled
from saekit.routes.attribution.head_set import Attribution
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import Target

PROMPT = 'The opposite of "large" is "'


@pytest.fixture(scope="module")
def run(tiny_model, random_dictionaries):
    return PromptRun.of(tiny_model, random_dictionaries, PROMPT, dtype=torch.float64)


@pytest.fixture(scope="module")
def target():
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    return Target("random", "feature", 3, 8, direction, 0.3, feature=0)


@pytest.fixture(scope="module")
def found(run, target):
    return Attribution(run, target, 5, 3)


@pytest.mark.parametrize("way", ["zero", "resample", "direct"])
def test_edge_drops(run, target, found, way, tiny_model):
    ids = run.clean.ids.clone()
    ids[5] = tiny_model.single_token("small")
    instead = [resampled(run.clean, run.exact.run(ids))] if way == "resample" else []
    direct = way == "direct"
    edge = EdgeDrops(run, found, *instead, direct=direct, n_random=20, shapley=True)

    def drop(sets, keys):
        return drops(run.exact, run.clean, target, sets, keys, *instead, direct=direct)

    heads = found.chosen.heads
    assert len(heads) > 1
    assert set(edge.single) == {*heads, *found.listed.heads}
    assert list(edge.single.values()) == pytest.approx(drop([[h] for h in edge.single], [5]))
    everything = [(m, h) for m in range(3) for h in range(4)]
    assert edge.key_edges == pytest.approx(drop([everything], [5])[0])
    assert edge.all_edges == pytest.approx(drop([everything], list(range(1, 8)))[0])
    assert edge.chosen.joint == pytest.approx(drop([heads], [5])[0])
    assert edge.chosen.singles == pytest.approx(sum(edge.single[head] for head in heads))
    assert edge.chosen.share == share_of_drop(edge.chosen.joint, edge.all_edges, found.p)
    assert edge.chosen.share_of_key == share_of_drop(edge.chosen.joint, edge.key_edges, found.p)
    assert sum(edge.chosen.shapley) == pytest.approx(edge.chosen.joint, rel=1e-9)
    if direct:  # linear: no head changes what another does
        assert edge.chosen.shapley == pytest.approx([edge.single[head] for head in heads])
    assert edge.random == pytest.approx(sorted(drop(random_sets(heads, 3, 4, 20), [5])))
    assert edge.of(found.listed.heads).shapley is None


def test_the_next_token_without_a_set(run, found):
    """A head above the target changes the output."""
    low = Attribution(run, Target("low", "feature", 1, 8, found.target.direction, 0.3, 0), 5, 3)
    for direct in (False, True):
        edge = EdgeDrops(run, low, direct=direct)
        edge.single[2, 3] = 0.0
        one = edge.of([(2, 3)])
        top = run.top_token(8)
        resid = removed(run.exact, run.clean, 8, [[(2, 3)]], [5], direct=direct)
        logits = run.exact.unembed(resid)[0][0]
        assert one.joint == pytest.approx(0, abs=1e-12)
        assert one.probability == pytest.approx(float(logits.softmax(-1)[top]))
        before = run.clean.logits[8, top] - run.clean.logits[8].mean()
        assert one.logit == pytest.approx(float(before - logits[top] + logits.mean()))
        assert abs(one.logit) > 1e-6


def test_every_way_of_a_set_and_the_first_of_none(run, found):
    ways = ablations(run, found, [], 5, seed=1)
    assert [(way.instead.name, way.direct) for way in ways] == [
        ("zero", False), ("renormalise", False), ("zero", True),
    ]  # fmt: skip
    assert [way.chosen.shapley is None for way in ways] == [False, True, True]
    assert all(len(way.random) == 5 and way.random == sorted(way.random) for way in ways)
    nothing = Target("none", "feature", 3, 8, torch.zeros(32).double(), 1.0, feature=0)
    (way,) = ablations(run, Attribution(run, nothing, 5, 3), [], 5, seed=1)
    assert (way.random, way.chosen.joint) == ([], 0)


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(3, 4, 0.75), (0, 4, 0), (4.0001, 4, 1), (17.9, 13, None), (-1, 4, None), (1, -4, None),
     (-1, -4, None)],
)  # fmt: skip
def test_a_causal_share_is_a_part_or_nothing(part, whole, expected):
    """Mutation tried: cut to [0, 1] in place of refused."""
    assert share_of_drop(part, whole, 10) == expected


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


def test_subsets_in_the_order_of_their_bits():
    assert subsets("ab") == [[], ["a"], ["b"], ["a", "b"]]
    assert len(subsets(range(8))) == 256


def test_two_redundant_and_one_independent_player_by_hand():
    """a or b alone gives 6, both 6; c adds 1 to anything."""
    worth = [6.0 * bool({"a", "b"} & set(s)) + ("c" in s) for s in subsets("abc")]
    assert shapley_values(worth) == pytest.approx([3, 3, 1])


def test_two_players_that_only_work_together():
    assert shapley_values([0, 0, 0, 10.0]) == pytest.approx([5, 5])
    assert shapley_values([2.0]) == []


@given(st.lists(st.floats(-5, 5), min_size=16, max_size=16))
def test_the_average_over_all_orders_and_efficiency(worth):
    expected = [0.0] * 4
    for order in permutations(range(4)):
        index = 0
        for player in order:
            expected[player] += (worth[index | 1 << player] - worth[index]) / 24
            index |= 1 << player
    found = shapley_values(worth)
    assert found == pytest.approx(expected, abs=1e-9)
    assert sum(found) == pytest.approx(worth[-1] - worth[0], abs=1e-9)
