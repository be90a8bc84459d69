"""The recovery benchmark: what is planted, how it is scored, and one short run."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import recovery


def planted(setting: str) -> recovery.Planted:
    return recovery.Planted(setting, recovery.SIZES["smoke"], 0, torch.device("cpu"))


@pytest.mark.parametrize("setting", recovery.SETTINGS)
def test_as_many_features_are_active_as_the_size_says(setting):
    size, active = recovery.SIZES["smoke"], planted(setting)._active(100_000)
    assert active.shape == (100_000, size.features)
    assert abs(active.float().sum(1).mean() - size.active) < 0.02 * size.active


def test_pairs_are_active_together():
    active = planted("correlated")._active(200_000).unflatten(1, (-1, 2))
    first, second = active[..., 0], active[..., 1]
    assert abs((first & second).sum() / first.sum() - recovery.TOGETHER) < 0.01
    assert abs((first & second).sum() / second.sum() - recovery.TOGETHER) < 0.01


def test_a_child_is_active_only_with_its_parent():
    active = planted("hierarchy")._active(100_000).unflatten(1, (-1, 1 + recovery.CHILDREN))
    parent, children = active[..., 0], active[..., 1:].sum(2)
    assert not children[~parent].any()
    assert children.max() == 1
    assert abs((children[parent] == 0).float().mean() - recovery.PARENT_ALONE) < 0.01


def test_samples_have_unit_variance_per_dimension():
    x = planted("easy").sample(50_000)
    assert abs((x - x.mean(0)).square().mean() - 1) < 0.02


@pytest.mark.parametrize("seed", [0, 1])
def test_training_does_not_start_at_what_is_planted(seed):
    """Equal seeds of both did that once: every score was then too good."""
    from saekit.sae.training.config import TrainConfig
    from saekit.sae.training.layer import LayerTraining

    size, device = recovery.SIZES["full"], torch.device("cpu")
    config = TrainConfig(d_sae=size.features, k=size.active, seed=seed)
    start = LayerTraining(0, size.d_in, config, device).parameters["W_dec"]
    directions = recovery.Planted("easy", size, seed, device).directions
    assert recovery.scores(start, directions)["mean_max_cosine"] < 0.5


def test_scores_by_hand():
    # 0.8 of the second axis: the same row is nearest to both, so only one of them can have it
    W_dec = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, -2.0]])
    found = recovery.scores(W_dec, torch.eye(3)[:2])
    assert found["mean_max_cosine"] == pytest.approx(0.7)
    assert found["recovered"] == 0
    assert found["matched_cosine"] == pytest.approx(0.4)
    assert recovery.scores(torch.eye(3), 5 * torch.eye(3)[:2])["recovered"] == 1


def test_matched_cosine_is_that_of_saelens():
    synthetic = pytest.importorskip("sae_lens.synthetic")
    torch.manual_seed(0)
    W_dec, directions = torch.randn(12, 6), torch.randn(9, 6)
    expected = synthetic.mean_correlation_coefficient(W_dec, directions)
    found = recovery.scores(W_dec, directions)["matched_cosine"]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_document_of_a_short_run():
    command = [
        sys.executable, recovery.__file__, "--size", "smoke", "--setting", "easy",
        "--architecture", "topk,jumprelu", "--peer", "saelens", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = json.loads(done.stdout)["easy"]
    # moments of training: on the way to what is planted, not there
    for side in ("saekit", "saelens"):
        assert 0.6 < table["topk"][side]["mean_max_cosine"] < 1
        assert table["topk"][side]["l0"] == pytest.approx(2, abs=0.1)
    for architecture in ("topk", "jumprelu"):
        row = table[architecture]
        assert set(row) == {"saekit", "saelens", "difference"}
        assert len(row["saekit"]["runs"][0]) == len(row["saelens"]["runs"][0])
