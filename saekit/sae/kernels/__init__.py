"""The sparse arithmetic of a training step: PyTorch for any device, C++ on CPU, Triton on CUDA."""

import logging

import torch

from saekit.native.library import library
from saekit.sae.kernels.reference import Pairs, Reference, SparsePass

logger = logging.getLogger(__name__)
__all__ = ["Pairs", "Reference", "SparsePass", "kernels_for"]


def kernels_for(device: torch.device) -> Reference:
    """The fastest working implementation for a device."""
    if device.type == "cpu":
        from saekit.sae.kernels import cpu

        functions, selection = map(library, cpu.SOURCES)
        return cpu.Cpu(functions, selection) if functions and selection else Reference()
    if device.type == "cuda":
        try:
            from saekit.sae.kernels import cuda
        except ImportError:
            logger.warning("triton cannot be imported: training uses PyTorch alone, slower")
            return Reference()
        return cuda.Cuda()
    return Reference()
