"""Steps with a gradient: what JumpReLU dictionaries learn their thresholds through.

Rajamanoharan et al. 2024 (2407.14435), equations 11 and 12, with the rectangle kernel
K(z) = 1 where |z| < 1/2: the derivative by the threshold t of a jump at pre = t is estimated from
the preactivations within bandwidth / 2 of it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        return None, -(slope * near).sum(0) / ctx.bandwidth, None


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold) * (pre > 0)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        to_threshold = -(slope * near).sum(0) * threshold / ctx.bandwidth
        return slope * (pre > threshold) * (pre > 0), to_threshold, None


def step_function(
    pre: Float[Tensor, "token d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "token d_sae"]:
    """1 where pre > threshold, else 0; by the threshold its derivative is -K / bandwidth."""
    return _Step.apply(pre, threshold, bandwidth)  # type: ignore[no-any-return]


def jump_relu(
    pre: Float[Tensor, "token d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "token d_sae"]:
    """pre where pre > threshold (and > 0), else 0; by the threshold -threshold K / bandwidth."""
    return _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[no-any-return]
