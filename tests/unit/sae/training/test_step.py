"""The sparse step against the dense losses with autograd, and by hand."""

import pytest
import torch
import torch.nn.functional as F

from saekit.sae.kernels import Reference, kernels_for
from saekit.sae.training.architectures import CLASS_OF
from saekit.sae.training.config import LayerConfig
from saekit.sae.training.operands import Float32, NarrowChoice, NarrowFactors, Scratch
from saekit.sae.training.step import dense_step, first_true, sparse_step

TOKENS, D_IN, D_SAE, K = 40, 12, 64, 5
CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kind_of(architecture="topk", **settings):
    config = LayerConfig(architecture=architecture, **{"d_sae": D_SAE, "k": K, **settings})
    return CLASS_OF[architecture](config)


def random_parameters(kind):
    p = kind.start(0.5 * normal(D_SAE, D_IN, seed=1), F.normalize(normal(D_SAE, D_IN, seed=2)))
    return {**p, "b_enc": 0.3 * normal(D_SAE, seed=3), "b_dec": 0.5 * normal(D_IN, seed=4)}


@pytest.mark.parametrize("kernels", [Reference(), kernels_for(CPU)], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("n_dead", [0, 3, 20])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_losses_and_gradients_equal_the_dense_form(architecture, n_dead, shift, kernels):
    """`shift` -3 makes most preactivations negative, so that relu cuts pairs off.

    Mutations tried: leaving out the encoder's part of b_dec's gradient (fails everywhere); b_dec's
    gradient from the last prefix only (fails for matryoshka); the auxiliary part not added to
    b_enc before b_dec's gradient is taken (fails with dead features).
    """
    kind = kind_of(architecture, aux_k=8, aux_coefficient=0.25)
    p = random_parameters(kind)
    p["b_enc"] += shift
    x = 2 * normal(TOKENS, D_IN, seed=5)
    dead = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))[:n_dead]
    gradients, found = sparse_step(x, p, kind, dead, kernels, Scratch(CPU))
    expected, dense = dense_step(x, p, kind, dead, sparsity=0.0)
    assert torch.allclose(found.squared_error.float(), dense.squared_error, rtol=1e-5)
    assert torch.allclose(found.extra, dense.extra, rtol=1e-5)
    assert (dense.extra > 0) == (n_dead > 0)
    assert torch.equal(found.fired, dense.fired)
    assert set(gradients) == set(expected) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    for name, value in expected.items():
        assert (gradients[name] - value).norm() / value.norm() < 1e-4, name


def test_training_curves_coincide():
    """Sparse and dense steps, 30 of them with Adam, end at the same weights."""
    from dataclasses import replace

    from saekit.sae.training.config import TrainConfig
    from saekit.sae.training.layer import LayerTraining

    config = TrainConfig(d_sae=D_SAE, k=K, bf16=False, tokens=3000, batch_tokens=TOKENS)
    sparse = LayerTraining(0, D_IN, config, CPU)
    dense = LayerTraining(0, D_IN, replace(config), CPU)
    sparse.fit_input(normal(500, D_IN))
    dense.fit_input(normal(500, D_IN))
    for step in range(30):
        x = normal(TOKENS, D_IN, seed=100 + step)
        first = sparse.step(x.clone())
        gradients, second = dense_step(
            x * dense.scale, dense.parameters, dense.kind, torch.arange(0), 0.0
        )
        dense._adam(gradients, dense.config.lr)
        assert float(first.squared_error) == pytest.approx(float(second.squared_error), rel=1e-4)
    for name, value in sparse.parameters.items():
        assert torch.allclose(value, dense.parameters[name], atol=1e-4), name


@pytest.mark.parametrize("operands", [NarrowChoice, NarrowFactors])
def test_narrow_selection_gives_exact_values_of_what_it_selects(operands):
    kind = kind_of("batchtopk")
    p = random_parameters(kind)
    x = normal(TOKENS, D_IN, seed=5)
    own = operands(p)
    W_enc = p["W_enc"] if operands is NarrowChoice else own.copies["W_enc"].float()
    exact = (x - p["b_dec"]) @ W_enc.T + p["b_enc"]
    kernels = kernels_for(CPU)
    _, found = sparse_step(x, p, kind, torch.arange(0), kernels, Scratch(CPU), own)
    _, full = sparse_step(x, p, kind, torch.arange(0), kernels, Scratch(CPU))
    assert 0 <= found.fired.sum() - full.fired.sum() <= 3  # equal ones at the bound are all taken
    assert (found.fired - full.fired).abs().sum() < 0.05 * full.fired.sum()
    assert (exact - found.smallest).abs().min() < 2**-7 * found.smallest


@pytest.mark.parametrize("operands", [Float32, NarrowChoice, NarrowFactors])
def test_the_threshold_of_a_batch_lets_k_features_be_active(operands):
    """Mutation tried: the smallest exact value of what was chosen (L0 up to 17.2)."""
    kind = kind_of("batchtopk", d_sae=1024, k=16)
    generator = torch.Generator().manual_seed(0)
    p = {name: torch.randn(1024, 64, generator=generator) / 8 for name in ("W_enc", "W_dec")}
    p |= {"b_enc": torch.zeros(1024), "b_dec": torch.zeros(64)}
    x = torch.randn(1000, 64, generator=generator)
    own = Float32() if operands is Float32 else operands(p)
    _, found = sparse_step(x, p, kind, torch.arange(0), kernels_for(CPU), Scratch(CPU), own)
    l0 = float((x @ p["W_enc"].T > found.smallest).sum(1).float().mean())
    assert l0 == pytest.approx(16, rel=0.01)


class ChosenInFloat32(NarrowFactors):
    def __call__(self, *args):
        found = super().__call__(*args)
        found.pre = Float32()(*args).pre
        return found


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_gradients_of_bfloat16_factors_are_close_to_those_of_float32(name):
    """Where both choose the same; 2**-9 is the rounding of one factor."""
    kind = kind_of(name)
    p = {key: value.bfloat16().float() for key, value in random_parameters(kind).items()}
    x = normal(TOKENS, D_IN, seed=5).bfloat16()
    kernels = kernels_for(CPU)
    exact, _ = sparse_step(x, p, kind, torch.arange(0), kernels, Scratch(CPU))
    found, _ = sparse_step(x, p, kind, torch.arange(0), kernels, Scratch(CPU), ChosenInFloat32(p))
    for key, value in exact.items():
        assert (found[key] - value).norm() < 2**-8 * value.norm(), key


def test_a_step_computed_by_hand():
    """x = (3, 4), two features along the axes, k = 1: feature 1 gives 4, the error is (3, 0)."""
    eye = torch.eye(2)
    kind = kind_of("batchtopk", d_sae=2, k=1)
    p = {"W_enc": eye, "b_enc": torch.zeros(2), "W_dec": eye, "b_dec": torch.zeros(2)}
    x = torch.tensor([[3.0, 4.0]])
    gradients, found = sparse_step(x, p, kind, torch.arange(0), Reference(), Scratch(CPU))
    assert found.fired.tolist() == [0, 1]
    assert found.smallest == 4
    assert found.squared_error == 9
    # L = 9 / 2; dL/d(W_dec row 1) = -2 * error * value / 2 = (-12, 0)
    assert gradients["W_dec"].tolist() == [[0, 0], [-12, 0]]
    assert gradients["b_dec"].tolist() == [-3, 0]


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_dead_features_are_found_without_asking_for_their_number(share):
    mask = torch.rand(50, generator=torch.Generator().manual_seed(0)) < share
    count = int(mask.sum())
    assert torch.equal(first_true(mask, count), mask.nonzero().squeeze(1))
