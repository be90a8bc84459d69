"""One training step of one small layer by the kernels of a device, against plain PyTorch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saekit.sae.kernels import Pairs, Reference, kernels_for

TOLERANCE = 1e-4  # of the largest number; float32 sums of this size differ by 1e-6
_TOKENS, _D_IN, _D_SAE, _K = 512, 96, 1024, 16


@dataclass(frozen=True)
class Check:
    """What was compared, and the largest difference relative to the largest number."""

    name: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= TOLERANCE  # false for NaN


def check_kernels(device: torch.device) -> tuple[str, list[Check]]:
    """Compares every stage of a step.

    Returns:
        Which kernels the device has, and a check for each stage.
    """
    kernels = kernels_for(device)
    return type(kernels).__name__, compare(kernels, device)


@torch.no_grad()
def compare(kernels: Reference, device: torch.device) -> list[Check]:
    """The stages of a step by these kernels against `Reference`, on the same inputs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    x, W_enc, W_dec, b_enc = normal(_TOKENS, _D_IN), *_weights(normal), normal(_D_SAE)
    pre = (x @ W_enc.T + b_enc).bfloat16()
    pairs = Reference().largest(pre, _K)
    found, wanted = (
        _step(used, x, W_enc, W_dec, b_enc, pairs) | {"k largest": _values(used, pre)}
        for used in (kernels, Reference())
    )
    return [Check(name, _difference(found[name], wanted[name])) for name in wanted]


def _weights(normal) -> tuple[Tensor, Tensor]:
    W_enc, W_dec = normal(_D_SAE, _D_IN), normal(_D_SAE, _D_IN)
    return W_enc, W_dec / W_dec.norm(dim=1, keepdim=True)


def _values(kernels: Reference, pre: Tensor) -> Tensor:
    """Of the chosen preactivations, sorted: which of equal ones is taken may differ."""
    chosen = kernels.largest(pre, _K).features.long().view(len(pre), _K)
    return pre.gather(1, chosen).sort(dim=1).values


def _step(
    kernels: Reference, x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, pairs: Pairs
) -> dict[str, Tensor]:
    ends, scales = [_D_SAE // 4, _D_SAE], [-1 / x.numel(), -1 / x.numel()]
    result = kernels.forward_backward(x, x, W_enc, b_enc, W_dec, pairs, ends, scales)
    gradients = {
        "W_enc": torch.empty_like(W_enc),
        "b_enc": torch.empty_like(b_enc),
        "W_dec": torch.empty_like(W_dec),
    }
    fired = kernels.weight_gradients(x, result, pairs, ends, gradients)
    moments = torch.zeros_like(W_dec), torch.zeros_like(W_dec)
    updated = W_dec.clone()
    kernels.adam_rows(updated, gradients["W_dec"], *moments, lr=1e-3, step=1, eps=1e-5, unit=True)
    return {
        "activations": result.values,
        "reconstruction error": result.errors,
        "gradient of activations": result.slopes,
        **{f"gradient of {name}": value for name, value in gradients.items()},
        "how often features fired": fired,
        "Adam's step": updated,
    }


def _difference(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).abs().max() / wanted.abs().max())
