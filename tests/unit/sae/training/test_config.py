"""Schedules, settings per layer, and what is refused."""

from dataclasses import replace

import pytest

from saekit.errors import InputError
from saekit.sae.training.config import TrainConfig


def test_learning_rate():
    config = TrainConfig(tokens=10_000, batch_tokens=100, lr=1.0, warmup=0.1, decay=0.5)
    assert config.steps == 100
    assert config.schedule(0) == pytest.approx(0.1)
    assert config.schedule(9) == config.schedule(50) == 1
    assert config.schedule(75) == pytest.approx(0.5)
    assert config.schedule(99) == pytest.approx(0.02)


def test_the_sparsity_penalty_rises():
    config = TrainConfig(tokens=10_000, batch_tokens=100, sparsity_warmup=0.2)
    assert config.sparsity_schedule(0) == pytest.approx(0.05)
    assert config.sparsity_schedule(19) == config.sparsity_schedule(99) == 1
    assert replace(config, sparsity_warmup=0.0).sparsity_schedule(0) == 1


def test_layers_may_differ():
    config = TrainConfig(d_sae=64, k=8, per_layer={3: {"d_sae": 128, "architecture": "gated"}})
    assert (config.at(0).d_sae, config.at(0).architecture) == (64, "topk")
    assert (config.at(3).d_sae, config.at(3).k, config.at(3).architecture) == (128, 8, "gated")
    stored = config.to_dict()
    assert stored["per_layer"] == {"3": {"d_sae": 128, "architecture": "gated"}}
    assert config.differences(stored) == []
    changed = replace(config, per_layer={3: {"d_sae": 96}}, checkpoint_tokens=7)
    assert [line.split()[0] for line in changed.differences(stored)] == ["per_layer"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "relu"}, 'no architecture "relu"'),
        ({"prefixes": (0.5, 1.5)}, "shares between 0 and 1"),
        ({"sparsity": -1.0}, "sparsity is -1.0"),
        ({"sparsity_warmup": 1.5}, "sparsity_warmup is 1.5"),
        ({"b_dec_init": "median"}, "geometric_median"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"per_layer": {2: {"width": 3}}}, 'Layer 2 has the unknown setting "width"'),
        ({"per_layer": {2: {"k": 5000}}}, "only 4096 features"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings).check()


@pytest.mark.parametrize("name", ["decay", "warmup", "lr", "aux_coefficient", "bandwidth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} is (nan|inf); it must be a finite number"):
        TrainConfig(**{name: value}).check()
    with pytest.raises(InputError, match="prefixes is .* finite"):
        TrainConfig(prefixes=(0.5, value)).check()


@pytest.mark.parametrize("seed", [-1, 2**63, 10**20])
def test_a_seed_that_generators_do_not_take_is_refused(seed):
    with pytest.raises(InputError, match=f"seed is {seed}"):
        TrainConfig(seed=seed).check()
