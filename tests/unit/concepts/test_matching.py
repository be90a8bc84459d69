"""Planted streams: which feature of one layer is which of the next is known."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from saekit.concepts.matching import (
    Link,
    chains,
    choose_thresholds,
    false_discovery_rate,
    match_layers,
)
from saekit.concepts.pairing import (
    Pairs,
    candidate_pairs,
    correlations,
    flip_signs,
    mutual_best,
    shift_activations,
)

LAYERS, TRUE, D_SAE, D_IN, N = 6, 150, 200, 64, 6000


def planted(degrees, seed=0, related=True):
    """Activations and decoders of 6 layers with 150 features of known birth and death layers.

    Directions turn by `degrees` per layer; every fifth feature shares most of its positions with
    its neighbour (co-occurrence); the rest of the dictionary is random features of the layer's
    own.  With `related` false every layer is drawn anew, so there is nothing to link.
    """
    rng = np.random.default_rng(seed)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def fires():
        on = rng.random((N, TRUE)) < 0.02
        on[:, ::5] |= on[:, 1::5] & (rng.random((N, TRUE // 5)) < 0.8)
        return on * rng.uniform(1, 3, (N, TRUE))

    birth = rng.integers(0, LAYERS - 1, TRUE)
    death = np.array([rng.integers(b + 1, LAYERS) for b in birth])  # last layer
    direction, strength = unit(rng.normal(size=(TRUE, D_IN))), fires()
    activations, decoders, place = {}, {}, []
    for layer in range(LAYERS):
        if not related:
            direction, strength = unit(rng.normal(size=(TRUE, D_IN))), fires()
        elif layer:
            turn = rng.normal(size=(TRUE, D_IN))
            turn = unit(turn - (turn * direction).sum(1, keepdims=True) * direction)
            angle = np.deg2rad(degrees)
            direction = np.cos(angle) * direction + np.sin(angle) * turn
        alive = np.flatnonzero((birth <= layer) & (layer <= death))
        slots = rng.permutation(D_SAE)
        dense = (rng.random((N, D_SAE)) < 0.02) * rng.uniform(1, 3, (N, D_SAE))
        decoder = rng.normal(size=(D_SAE, D_IN)) / np.sqrt(D_IN)
        dense[:, slots[: len(alive)]] = strength[:, alive] * rng.uniform(0.8, 1.2, (N, len(alive)))
        noise = 0.05 * rng.normal(size=(len(alive), D_IN)) / np.sqrt(D_IN)
        decoder[slots[: len(alive)]] = direction[alive] + noise
        activations[layer] = csc_array(dense.astype(np.float32))
        decoders[layer] = torch.tensor(decoder, dtype=torch.float32)
        place.append({int(feature): int(slots[at]) for at, feature in enumerate(alive)})
    return activations, decoders, place, birth, death


@pytest.mark.parametrize("degrees", [0, 10, 30])
def test_planted_features_are_linked_from_birth_to_death(degrees):
    activations, decoders, place, birth, death = planted(degrees)
    matching = match_layers(activations, decoders)
    truth = {
        (layer, place[layer][f], layer + 1, place[layer + 1][f])
        for f in range(TRUE)
        for layer in range(birth[f], death[f])
    }
    found = {(k.layer, k.feature, k.to_layer, k.to_feature) for k in matching.links}
    assert len(found & truth) >= 0.95 * len(found)  # precision
    assert len(found & truth) >= 0.95 * len(truth)  # recall
    assert matching.fdr <= 0.05
    paths = {path[0]: path for path in chains(matching.links)}
    exact = sum(
        (path := paths.get((birth[f], place[birth[f]][f]))) is not None
        and path[-1] == (death[f], place[death[f]][f])
        for f in range(TRUE)
    )
    assert exact >= 0.95 * TRUE
    assert len(paths) <= 1.1 * TRUE


def test_unrelated_layers_have_no_links():
    activations, decoders, *_ = planted(0, related=False)
    matching = match_layers(activations, decoders)
    assert len(matching.links) <= 0.05 * matching.trials
    assert matching.trials >= D_SAE * (LAYERS - 1)
    assert set(matching.summary()["null_links"]) == {"shifted", "flipped"}


def test_a_missing_layer_is_bridged():
    activations, decoders, place, birth, death = planted(0)
    silent = place[2]
    whole = activations[2].toarray()
    crossing = [f for f in range(TRUE) if birth[f] <= 1 and death[f] >= 3][:5]
    for f in crossing:
        whole[:, silent[f]] = 0
    activations[2] = csc_array(whole)
    matching = match_layers(activations, decoders)
    found = {(k.layer, k.feature, k.to_layer, k.to_feature) for k in matching.links}
    assert {(1, place[1][f], 3, place[3][f]) for f in crossing} <= found
    assert sum(pair["to"] - pair["from"] == 2 for pair in matching.summary()["pairs"]) >= 1


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


def test_the_flipped_null_keeps_mean_and_covariance():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(500, 16, generator=generator) * torch.linspace(0.2, 2, 16) + 0.5
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    flipped = flip_signs(decoder, generator)
    assert torch.allclose(flipped.mean(0), unit.mean(0), atol=1e-5)
    assert torch.allclose(flipped.T.cov(), unit.T.cov(), atol=1e-5)
    assert (flipped - unit).norm() > 0.5 * unit.norm()


def test_false_discovery_rate_by_hand():
    assert false_discovery_rate(200, {"a": 3, "b": 10}) == pytest.approx(0.05)
    assert false_discovery_rate(0, {"a": 0}) == 0
    assert false_discovery_rate(0, {"a": 1}) == 1
    assert false_discovery_rate(5, {"a": 9}) == 1


def test_thresholds_rise_until_the_nulls_are_few():
    def pairs(cosine):
        cosine = np.array(cosine)
        at = np.arange(len(cosine))
        return Pairs(0, 1, 100, at, at, cosine, cosine)

    real = [pairs([0.9] * 40 + [0.58] * 20)]
    assert choose_thresholds(real, {"x": [pairs([])]}, 0.05) == (0.5, 0.4)
    # 6 null links at 0.58 are 10% of 60 links; none is left at a threshold of 0.6
    assert choose_thresholds(real, {"x": [pairs([0.58] * 6)]}, 0.05) == (0.6, 0.5)
    assert choose_thresholds(real, {"x": [pairs([0.99] * 6)]}, 0.05) == (0.95, 0.85)


def test_chains_are_paths():
    links = [Link(0, 5, 1, 6, 1, 1), Link(1, 6, 3, 2, 1, 1), Link(1, 7, 2, 7, 1, 1)]
    assert chains(links) == [[(0, 5), (1, 6), (3, 2)], [(1, 7), (2, 7)]]
