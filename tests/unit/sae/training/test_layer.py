"""One layer's training: units, dead features, thresholds, states."""

from dataclasses import replace

import pytest
import torch

from saekit.sae.training.config import ARCHITECTURES, TrainConfig
from saekit.sae.training.layer import LayerTraining, geometric_median

CONFIG = TrainConfig(d_sae=64, k=8, tokens=4000, batch_tokens=100, dead_tokens=1500, bf16=False)
CPU = torch.device("cpu")


def test_folding_the_scale():
    """Activations and reconstructions in model units are those of training, over the scale.

    Mutation tried: b_enc left in training units.
    """
    generator = torch.Generator().manual_seed(0)
    x = 1000 * torch.randn(500, 16, generator=generator) + 500
    training = LayerTraining(0, 16, CONFIG, torch.device("cpu"))
    training.fit_input(x)
    scale, p = training.scale, training.parameters
    assert ((x - x.mean(0)) * scale).square().sum(1).mean() == pytest.approx(16, rel=1e-4)
    p["b_enc"].copy_(torch.randn(64, generator=generator))
    pre = (x * scale - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    top = pre.topk(CONFIG.k, dim=1)
    features = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    rebuilt = features @ p["W_dec"] + p["b_dec"]
    dictionary = training.dictionary({})
    assert torch.allclose(dictionary.encode(x) * scale, features, atol=1e-4)
    assert torch.allclose(dictionary.decode(dictionary.encode(x)) * scale, rebuilt, atol=1e-4)


def test_dead_features_come_back():
    """AuxK: features that cannot fire are dead after `dead_tokens`, then pushed until they do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    shares = []
    for coefficient in (0.0, 1 / 32):
        config = replace(CONFIG, k=4, dead_tokens=1024, aux_k=8, aux_coefficient=coefficient)
        training = LayerTraining(0, 16, config, torch.device("cpu"))
        training.fit_input(x)
        training.parameters["b_enc"][:32] = -6.0
        for _ in range(150):
            training.step(torch.randn(256, 16, generator=generator), 2.0)
        shares.append(training.dead_share.item())
    assert shares[0] > 0.4
    assert shares[1] < 0.1


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_dead_features_are_resampled(architecture):
    """They take the directions of tokens that are reconstructed badly, and Adam forgets them."""
    generator = torch.Generator().manual_seed(0)
    config = replace(CONFIG, architecture=architecture, dead_tokens=200)
    training = LayerTraining(0, 16, config, CPU)
    x = torch.randn(256, 16, generator=generator)
    x[7] *= 100  # nearly all of the squared error
    training.fit_input(x)
    training.step(x.clone())
    training.since_fired[:] = 0
    training.since_fired[[3, 5]] = 1000
    before = {name: value.clone() for name, value in training.parameters.items()}
    assert training.resample(x, seed=1) == 2
    p = training.parameters
    direction = torch.nn.functional.normalize(x[7] * training.scale - p["b_dec"], dim=0)
    alive = before["W_enc"][[f for f in range(64) if f not in (3, 5)]]
    for feature in (3, 5):
        assert torch.allclose(p["W_dec"][feature], direction, atol=1e-5)
        expected = direction * 0.2 * alive.norm(dim=1).mean()
        assert torch.allclose(p["W_enc"][feature], expected, atol=1e-5)
        assert not training.means["W_enc"][feature].any()
        assert not training.squares["W_dec"][feature].any()
    others = [f for f in range(64) if f not in (3, 5)]
    assert torch.equal(p["W_enc"][others], before["W_enc"][others])
    assert training.resample(x, seed=1) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_is_used_as_it_was_trained(architecture):
    """The stored form reconstructs what the training reconstructed, in the model's units."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)

    def batch(n=512):
        active = torch.rand(n, 24, generator=generator) < 0.08
        return 30 * (active * torch.rand(n, 24, generator=generator)) @ atoms + 5

    config = replace(CONFIG, architecture=architecture, k=3, sparsity=0.5, lr=1e-2)
    training = LayerTraining(0, 16, config, CPU)
    training.fit_input(batch(4096))
    first = training.step(batch()).squared_error / 512
    for _ in range(400):
        training.step(batch())
    x = batch()
    last = training.step(x.clone(), factor=0.0).squared_error / 512  # measures, changes nothing
    assert last < 0.4 * first
    dictionary = training.dictionary({"hook_name": "blocks.0.hook_resid_pre"})
    features = dictionary.encode(x)
    error = (x - dictionary.decode(features)).square().sum() * training.scale**2 / 512
    # mutation tried: the threshold of batchtopk left in training units
    assert error == pytest.approx(
        float(last), rel=0.3 if architecture in ("batchtopk", "matryoshka") else 0.01
    )
    assert 0 < (features > 0).float().sum(1).mean() < 16
    trained_as = dictionary.training_architecture
    assert trained_as == architecture


def test_the_threshold_of_batchtopk_is_the_mean_of_smallest_activations():
    config = replace(CONFIG, architecture="batchtopk", lr=1e-9)
    training = LayerTraining(0, 16, config, CPU)
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    training.fit_input(x)
    smallest = [float(training.step(part.clone()).smallest) for part in x.split(100)]
    expected = smallest[0]
    for value in smallest[1:]:
        expected += 0.01 * (value - expected)
    assert float(training.batch_threshold) == pytest.approx(expected, rel=1e-5)


def test_a_state_continues_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(100, 16, generator=generator) for _ in range(6)]
    # mutation tried: the bfloat16 copy of W_dec not brought up to date
    for architecture, bf16 in (("topk", False), ("topk", True), ("gated", False)):
        config = replace(CONFIG, architecture=architecture, bf16=bf16)
        one, two = (LayerTraining(0, 16, config, CPU) for _ in range(2))
        one.fit_input(batches[0])
        for batch in batches[:3]:
            one.step(batch.clone(), count=True)
        two.load_state({name: value.clone() for name, value in one.state().items()})
        for batch in batches[3:]:
            one.step(batch.clone(), count=True)
            two.step(batch.clone(), count=True)
        for name, value in one.state().items():
            assert torch.equal(value, two.state()[name]), name


def test_the_geometric_median_is_not_moved_by_outliers():
    """Three points at 0 and one far away: the mean moves, the point of least distances does not."""
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1000.0, 0.0]])
    assert geometric_median(x, 200).norm() < 1e-3
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert geometric_median(corners + 3).sub(3).norm() < 1e-5


@pytest.mark.parametrize(
    ("architecture", "d_in"), [("topk", 16), ("topk", 64), ("jumprelu", 64), ("gated", 64)]
)
def test_one_step_turns_decoder_rows_equally_far_in_any_width(architecture, d_in):
    """Adam's first step moves each entry by lr * 80 / sqrt(d_in): a tangent of norm 80 lr.

    Mutations tried: the decoder at the others' rate; the rate not divided by sqrt(d_in).
    """
    config = replace(CONFIG, architecture=architecture, lr=1e-4)
    training = LayerTraining(0, d_in, config, CPU)
    x = torch.randn(256, d_in, generator=torch.Generator().manual_seed(0))
    training.fit_input(x)
    before = {name: value.clone() for name, value in training.parameters.items()}
    result = training.step(x)
    fired = result.fired > 0
    W_dec, W_enc = (training.parameters[name][fired] for name in ("W_dec", "W_enc"))
    angles = (W_dec * before["W_dec"][fired]).sum(1).acos()
    assert angles.median() == pytest.approx(80 * 1e-4, rel=0.1)
    assert (W_enc - before["W_enc"][fired]).abs().median() == pytest.approx(1e-4, rel=0.05)
    assert torch.allclose(W_dec.norm(dim=1), torch.ones(len(W_dec)), atol=1e-5)
