"""Whole runs on a CUDA device against the same on the CPU (`benchmarks/GPU.md` names this file).

Single steps and kernels are in tests/gpu.
"""

from pathlib import Path

import pytest
import torch

from saekit.sae.training.config import ARCHITECTURES, TrainConfig
from saekit.sae.training.layer import LayerTraining

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_float32_training_follows_the_cpu(architecture):
    """40 steps, the error of each within 1%."""
    config = TrainConfig(
        architecture=architecture, d_sae=256, k=8, bf16=False, tokens=8000, batch_tokens=200
    )
    cuda, cpu = (LayerTraining(0, 32, config, torch.device(name)) for name in ("cuda", "cpu"))
    cuda.fit_input(normal(2000, 32, seed=0).cuda())
    cpu.fit_input(normal(2000, 32, seed=0))
    for step in range(config.steps):
        x = normal(200, 32, seed=100 + step)
        factors = config.schedule(step), config.sparsity_schedule(step)
        found = float(cuda.step(x.cuda(), *factors).squared_error)
        assert found == pytest.approx(float(cpu.step(x, *factors).squared_error), rel=0.01), step


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_bf16_training_ends_where_the_cpu_does(tmp_path: Path, architecture):
    """gpt2-mini, all layers, saekit's defaults: FVU within 2% at each layer."""
    from saekit.model.loading import load_model
    from saekit.sae.training.trainer import train
    from saekit.text.sources import open_text

    config = TrainConfig(
        architecture=architecture, d_sae=1024, k=16, tokens=60_000, buffer_tokens=16_384
    )
    fvu = {}
    for name in ("cpu", "cuda"):
        model = load_model("gpt2-mini", name)
        found = train(model, open_text, config, tmp_path / name).manifest["metrics"]
        fvu[name] = {layer: row["fvu"] for layer, row in found.items()}
    for layer, value in fvu["cpu"].items():
        assert fvu["cuda"][layer] == pytest.approx(value, rel=0.02), layer
