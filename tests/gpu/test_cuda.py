"""Training on a real GPU: Triton against PyTorch, sparse against dense steps, no waiting.

`pytest -m gpu` runs these and the checks of tests/unit/sae/kernels on a CUDA device.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from saekit.sae.kernels import Reference, kernels_for
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.layer import LayerTraining
from saekit.sae.training.step import dense_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOKENS, D_IN, D_SAE, K = 1000, 768, 6144, 32
CUDA = torch.device("cuda")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def close(a, b, bound=1e-4):
    return (a - b).norm() <= bound * b.norm() + 1e-6


def config_of(architecture, **settings):
    return TrainConfig(
        architecture=architecture, d_sae=D_SAE, k=K, tokens=100_000, batch_tokens=TOKENS, **settings
    )


@pytest.mark.parametrize("d_sae", [D_SAE, 24576, 40000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_selection(d_sae, dtype):
    pre = normal(300, d_sae).to(dtype)
    chosen = kernels_for(CUDA).largest(pre, K).features.view(300, K).long()
    assert (chosen.diff(dim=1) > 0).all()
    found = pre.gather(1, chosen).sort(dim=1, descending=True).values
    assert torch.equal(found, pre.topk(K, dim=1).values)


@pytest.mark.parametrize("ends", [[D_SAE], [500, 2000, D_SAE]])
def test_passes_equal_pytorchs_and_repeat_to_the_bit(ends):
    """The last 20 features are active in nearly every token: sums of several runs."""
    kernels, plain = kernels_for(CUDA), Reference()
    assert type(kernels).__name__ == "Cuda"
    x = normal(TOKENS, D_IN, seed=1)
    W_enc, W_dec = (F.normalize(normal(D_SAE, D_IN, seed=seed)) for seed in (2, 3))
    b_enc = 0.1 * normal(D_SAE, seed=4)
    b_enc[-20:] += 4
    pairs = kernels.largest(x @ W_enc.T + b_enc, K)
    scales = [-0.3 * (place + 1) for place in range(len(ends))]
    results = []
    for used in (kernels, kernels, plain):
        found = used.forward_backward(x, x, W_enc, b_enc, W_dec, pairs, ends, scales)
        gradients = {
            name: torch.empty_like(value)
            for name, value in {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}.items()
        }
        fired = used.weight_gradients(x, found, pairs, ends, gradients)
        parts = [found.values, found.slopes, found.errors, found.upstream, fired.float()]
        results.append([*parts, *gradients.values()])
    first, again, expected = results
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(close(a, b) for a, b in zip(first, expected, strict=True))


@pytest.mark.parametrize("unit", [True, False])
def test_adam(unit):
    found = []
    for kernels in (kernels_for(CUDA), Reference()):
        weights = F.normalize(normal(D_SAE, D_IN), dim=1)
        mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
        shadow = weights.bfloat16()
        for step in range(1, 5):
            gradient = normal(D_SAE, D_IN, seed=step)
            kernels.adam_rows(weights, gradient, mean, square, 1e-3, step, unit=unit, shadow=shadow)
        assert torch.equal(shadow, weights.bfloat16())
        found.append(weights)
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_training_steps_equal_dense_ones(architecture):
    """Ten steps in float32, the last ones with dead features."""
    config = config_of(architecture, bf16=False, dead_tokens=5 * TOKENS)
    sparse, dense = (LayerTraining(0, D_IN, replace(config), CUDA) for _ in range(2))
    for training in (sparse, dense):
        training.fit_input(normal(4000, D_IN))
        training.parameters["b_enc"][:200] = -50
    extras = []
    for step in range(10):
        x = normal(TOKENS, D_IN, seed=100 + step)
        dead = sparse.dead
        first = sparse.step(x.clone())
        gradients, second = dense_step(x * dense.scale, dense.parameters, dense.kind, dead, 0.0)
        dense._adam(gradients, dense.config.lr)
        assert float(first.squared_error) == pytest.approx(float(second.squared_error), rel=1e-3)
        assert float(first.extra) == pytest.approx(float(second.extra), rel=1e-2)
        extras.append(float(first.extra))
    assert extras[0] == 0 < extras[-1]
    for name, value in sparse.parameters.items():
        assert close(value, dense.parameters[name], 1e-2), name


def test_a_step_does_not_wait_for_the_device():
    training = LayerTraining(0, D_IN, config_of("topk", dead_tokens=2 * TOKENS), CUDA)
    training.fit_input(normal(4000, D_IN))
    training.parameters["b_enc"][:200] = -50
    batches = [normal(TOKENS, D_IN, seed=seed) for seed in range(6)]
    for batch in batches[:3]:  # compiles, copies constants, counts dead features
        training.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[3:]:
            result = training.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.extra > 0
    assert torch.isfinite(result.squared_error)
