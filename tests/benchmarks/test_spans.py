"""The benchmark of spans: what is planted, how it is scored, and one short run."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import spans
from benchmarks.planted_streams import CHILD, TOGETHER, Dictionaries, Plan, Streams, plant
from saekit.concepts.matching import Link

SMALL = Plan(layers=4, features=80, d_in=24, positions=6000, seed=200)


def test_features_turn_by_the_angle_and_live_where_they_should():
    streams = plant(replace(SMALL, degrees=30))
    cosine = (streams.directions[:-1] * streams.directions[1:]).sum(2)
    assert cosine == pytest.approx(np.full(cosine.shape, np.cos(np.pi / 6)))
    for layer, active in enumerate(streams.active):
        fires = np.flatnonzero(active.any(0))
        assert set(fires) == set(streams.alive(layer))
    assert max(len(streams.alive(layer)) for layer in range(4)) > SMALL.d_in


def test_confounders_are_active_together():
    streams = plant(replace(SMALL, whole=1.0, positions=100_000, features=20))
    on = streams.active[0][:, 10:] > 0
    assert (on[:, 0] & on[:, 1]).sum() / on[:, 0].sum() == pytest.approx(TOGETHER, abs=0.03)
    assert streams.parent[10:].tolist() == [-1, -1, -1, 12, 12, -1, -1, -1, -1, -1]
    assert not (on[:, 3:5].any(1) & ~on[:, 2]).any()
    assert (on[:, 3] & on[:, 2]).sum() / on[:, 2].sum() == pytest.approx(CHILD, abs=0.03)


def test_scores_by_hand():
    # feature 0 lives at layers 0-2, feature 1 at 1-2, feature 2 at 0; unit = feature everywhere
    # but unit 5 of layer 2, which is nothing
    empty = np.zeros((1, 3))
    streams = Streams(
        Plan(layers=3, features=3), np.array([0, 1, 0]), np.array([2, 2, 0]), np.full(3, -1),
        np.zeros((3, 3, 1)), [empty] * 3,
    )  # fmt: skip
    of = {0: [(0,), (), (2,)], 1: [(0,), (1,)], 2: [(0,), (1,), (), (), (), ()]}
    found = Dictionaries(identity=of)
    links = [Link(0, 0, 1, 0, 1, 1), Link(1, 0, 2, 0, 1, 1), Link(1, 1, 2, 5, 1, 1)]
    # links: 2 of 3 true; wanted (0, 0), (0, 1), (1, 1): 2 of 3.  Spans: feature 0 exact; feature 1
    # has the chain of layers 1-2 (its second end is no unit of it) and a single unit: 2 pieces;
    # feature 2 exact.  One of two chains is merged.
    assert spans.score(streams, found, links) == pytest.approx({
        "links_precision": 2 / 3, "links_recall": 2 / 3, "links_f1": 2 / 3, "span_iou": 1,
        "boundaries_exact": 1, "boundaries_within_1": 1, "boundaries_within_1_of_learned": 1,
        "learned_throughout": 1, "fragments": 4 / 3, "merged": 1 / 2,
    })  # fmt: skip
    # Mutation tried: counting links over any distance for recall gives 3 / 3 here.
    over = [Link(0, 0, 2, 0, 1, 1)]
    scores = spans.score(streams, found, over)
    assert (scores["links_precision"], scores["links_recall"]) == (1, 0)
    assert scores["fragments"] == pytest.approx((2 + 2 + 1) / 3)


def test_training_finds_what_is_planted():
    torch.manual_seed(0)
    plan = replace(SMALL, layers=1, features=40, positions=8000, rates=(0.01, 0.04), whole=1.0)
    streams = plant(plan)
    found, learned = spans.trained_dictionaries(streams, tokens=60_000)
    assert learned > 0.6
    assert found.activations[0].shape == (8000, spans.WIDTH * 40)
    assert {of[0] for of in found.identity[0] if of} <= set(range(40))


def test_one_short_run_prints_json():
    run = [sys.executable, spans.__file__, "--mode", "planted,nulls", "--degrees", "30"]
    result = subprocess.run([*run, "--seeds", "200"], capture_output=True, text=True, check=True)
    report = json.loads(result.stdout)
    assert report["planted"]["30"]["links_recall"] >= 0.95
    for null in spans.NULLS:
        assert report["nulls"][null]["null_links"] <= 0.05
