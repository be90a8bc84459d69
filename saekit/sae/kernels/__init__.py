"""The sparse arithmetic of a training step: PyTorch for any device, C++ on CPU, Triton on CUDA."""

import torch

from saekit.sae.kernels.reference import Pairs, Reference, SparsePass

__all__ = ["Pairs", "Reference", "SparsePass", "kernels_for"]


def kernels_for(device: torch.device) -> Reference:
    """The fastest working implementation for a device."""
    if device.type == "cpu":
        from saekit.sae.kernels import cpu

        functions = cpu.library()
        return cpu.Cpu(functions) if functions else Reference()
    return Reference()
