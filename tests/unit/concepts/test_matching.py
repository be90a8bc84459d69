"""Planted streams: which feature of one layer is which of the next is known."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from benchmarks.planted_streams import NULLS as NULL_STREAMS
from benchmarks.planted_streams import Plan, plant, planted_dictionaries
from benchmarks.spans import score
from saekit.activations import sparse
from saekit.concepts import matching as matching_module
from saekit.concepts.matching import (
    NULLS,
    Link,
    chains,
    choose_thresholds,
    false_discovery_rate,
    match_layers,
)
from saekit.concepts.pairing import (
    MIN_JOINT,
    LayerPairs,
    candidate_pairs,
    correlations,
    mutual_best,
    rotate_components,
    shift_activations,
    swap_within_deciles,
)


@pytest.mark.parametrize("degrees", [0, 30])
def test_planted_features_are_linked_from_birth_to_death(degrees):
    streams = plant(Plan(degrees=degrees, seed=200))
    found = planted_dictionaries(streams)
    matching = match_layers(found.activations, found.decoders)
    # Mutation tried: a correlation of at least 0.7 loses the halves of split features and absorbed
    # parents (recall 0.84).
    scores = score(streams, found, matching.links)
    assert scores["links_precision"] >= 0.95
    assert scores["links_recall"] >= 0.95
    assert scores["boundaries_within_1"] >= 0.95
    assert scores["fragments"] <= 1.1
    assert matching.fdr <= 0.05


@pytest.mark.parametrize("null", NULL_STREAMS)
def test_unrelated_layers_have_no_links(null):
    streams = plant(Plan(layers=5, null=null, seed=200))
    found = planted_dictionaries(streams)
    matching = match_layers(found.activations, found.decoders)
    assert len(matching.links) <= 0.05 * matching.trials
    alive = [(sparse.counts(active) >= MIN_JOINT).sum() for active in found.activations.values()]
    assert matching.trials >= sum(alive[:-1])


def test_the_summary_tells_thresholds_nulls_and_lengths_by_chance():
    found = planted_dictionaries(plant(Plan(layers=4, features=100, seed=200)))
    matching = match_layers(found.activations, found.decoders)
    summary = matching.summary()
    assert set(summary["null_links"]) == set(summary["null_chains"]) == set(NULLS)
    assert sum(pair["links"] for pair in summary["pairs"]) == summary["links"] > 50
    assert sum((int(n) - 1) * times for n, times in summary["chain_lengths"].items()) <= 2 * 100
    worst = max(summary["null_links"].values())
    assert summary["fdr"] == pytest.approx(worst / summary["links"], abs=1e-5)
    for name, lengths in summary["null_chains"].items():  # every null link is in a null chain
        joined = sum((int(n) - 1) * times for n, times in lengths.items())
        assert joined <= summary["null_links"][name]


def test_a_missing_layer_is_bridged():
    streams = plant(Plan(layers=5, features=100, seed=200))
    found = planted_dictionaries(streams)
    whole = found.activations[2].toarray()
    crossing = [f for f in streams.alive(1) if streams.death[f] >= 3][:5]
    for f in crossing:
        whole[:, [u for u, of in enumerate(found.identity[2]) if f in of]] = 0
    found.activations[2] = csc_array(whole)
    matching = match_layers(found.activations, found.decoders)
    over = [k for k in matching.links if (k.layer, k.to_layer) == (1, 3)]
    ends = {found.identity[1][k.feature] for k in over}
    assert {(f,) for f in crossing} <= ends
    assert all(found.identity[1][k.feature] == found.identity[3][k.to_feature] for k in over)


def test_features_swap_with_others_of_about_their_frequency():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1000, 200)
    order = swap_within_deciles(counts, rng)
    assert sorted(order) == list(range(200))
    rank = np.argsort(np.argsort(counts, kind="stable"))
    # Mutations tried: a permutation of all features moves ranks by up to 190; a free permutation
    # within deciles keeps nine features at their place.
    assert np.abs(rank[order] - rank).max() < 20
    assert (order != np.arange(200)).all()
    assert swap_within_deciles(np.array([5, 1, 3]), rng).tolist() in ([1, 2, 0], [2, 0, 1])
    assert swap_within_deciles(np.array([5]), rng).tolist() == [0]


def test_correlation_is_pearson_over_all_positions():
    rng = np.random.default_rng(0)
    a = (rng.random((500, 3)) < 0.3) * rng.random((500, 3))
    b = (rng.random((500, 4)) < 0.3) * rng.random((500, 4))
    b[:, 1] = a[:, 2]
    i, j = np.array([0, 2, 1, 2]), np.array([3, 1, 0, 0])
    found, joint = correlations(csc_array(a), csc_array(b), i, j)
    expected = [np.corrcoef(a[:, x], b[:, y])[0, 1] for x, y in zip(i, j, strict=True)]
    # Mutation tried: without the subtraction of the means the first value is 0.3 off.
    assert found == pytest.approx(expected, abs=1e-6)
    assert joint.tolist() == ((a[:, i] > 0) & (b[:, j] > 0)).sum(0).tolist()


def test_mutual_best_by_hand():
    i, j = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 3])
    score = np.array([0.5, 0.9, 0.8, 0.7, 0.7])
    # 0 and 1 prefer each other (0.9); 1 prefers 1, who prefers 0; of the tie 2-2, 2-3 the first
    assert mutual_best(i, j, score).tolist() == [1, 3]
    assert mutual_best(i, j, np.zeros(5)).tolist() == []


def test_candidates_are_near_in_either_direction():
    left, right = torch.eye(3), torch.tensor([[2.0, 0, 0], [0, -1, 0], [0.8, 0, 0.6]])
    i, j, cosine = candidate_pairs(left, right)
    assert list(zip(i, j, strict=True)) == [(0, 0), (0, 2), (2, 2)]
    assert cosine == pytest.approx([1, 0.8, 0.6])


def test_the_shifted_null_keeps_each_feature_but_not_its_places():
    rng = np.random.default_rng(0)
    dense = (rng.random((1000, 20)) < 0.1) * rng.random((1000, 20))
    shifted = shift_activations(csc_array(dense), rng).toarray()
    for feature in range(20):
        rolls = [
            offset
            for offset in range(1000)
            if np.array_equal(np.roll(dense[:, feature], offset), shifted[:, feature])
        ]
        assert len(rolls) == 1
        assert 100 < rolls[0] < 900


def test_the_rotated_null_keeps_the_mean_and_variances():
    generator = torch.Generator().manual_seed(0)
    # two blocks of eight components; within a block the variance is the same
    scale = torch.tensor([2.0] * 8 + [0.3] * 8)
    decoder = torch.randn(4000, 16, generator=generator) * scale + 0.5
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    rotated = rotate_components(decoder, generator)
    assert torch.allclose(rotated.mean(0), unit.mean(0), atol=1e-5)
    size = unit.T.cov().norm()
    # Mutation tried: one rotation of all 16 components changes the covariance by 0.5 of its norm.
    assert (rotated.T.cov() - unit.T.cov()).norm() < 0.1 * size
    own = torch.nn.functional.cosine_similarity(rotated - unit.mean(0), unit - unit.mean(0))
    assert own.abs().mean() < 0.4  # a row is not like itself any more


def test_false_discovery_rate_by_hand():
    assert false_discovery_rate(200, {"a": 3, "b": 10}) == pytest.approx(0.05)
    assert false_discovery_rate(0, {"a": 0}) == 0
    assert false_discovery_rate(0, {"a": 1}) == 1
    assert false_discovery_rate(5, {"a": 9}) == 1


def test_thresholds_rise_until_the_nulls_are_few():
    def pairs(cosine):
        cosine = np.array(cosine)
        at = np.arange(len(cosine))
        return LayerPairs(0, 1, 100, at, at, cosine, cosine)

    real = [pairs([0.9] * 40 + [0.58] * 20)]
    assert choose_thresholds(real, {"x": [pairs([])]}, 0.05) == (0.5, 0.4)
    # 6 null links at 0.58 are 10% of 60 links; none is left at a threshold of 0.6
    assert choose_thresholds(real, {"x": [pairs([0.58] * 6)]}, 0.05) == (0.6, 0.5)
    assert choose_thresholds(real, {"x": [pairs([0.99] * 6)]}, 0.05) == (0.95, 0.85)


def test_bad_links_over_one_layer_do_not_cost_the_good_ones(monkeypatch):
    """40 good links between neighbours, of which nulls make none; 10 null links over one layer."""
    # Mutation tried: judged only together, as it was, all 80 links are dropped.
    calls = iter(range(100))

    def pairs(layers, *_):
        is_null = next(calls) % (1 + len(NULLS)) > 0
        over_one = layers[1] - layers[0] == 2
        at = np.arange(10 * is_null if over_one else 40 * (not is_null))
        return LayerPairs(*layers, 100, at, at, np.full(len(at), 0.99), np.full(len(at), 0.99))

    monkeypatch.setattr(matching_module, "match_pair", pairs)
    active = csc_array(np.random.default_rng(0).random((500, 50)))
    sides = {layer: active for layer in range(3)}
    matching = match_layers(sides, {layer: torch.randn(50, 8) for layer in range(3)})
    assert (len(matching.links), matching.fdr, matching.trials) == (80, 0, 200)
    assert set(matching.null_links.values()) == {0}


def test_chains_are_paths():
    links = [Link(0, 5, 1, 6, 1, 1), Link(1, 6, 3, 2, 1, 1), Link(1, 7, 2, 7, 1, 1)]
    assert chains(links) == [[(0, 5), (1, 6), (3, 2)], [(1, 7), (2, 7)]]
