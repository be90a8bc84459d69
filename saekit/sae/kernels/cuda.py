"""The sparse arithmetic on CUDA by Triton: no [token, d_sae] gradient, no atomics, no waiting.

Nothing here makes the host wait for the device but `largest_of_batch`, once.  The weight gradients
follow openai/sparse_autoencoder (Gao et al. 2024, 2406.04093, appendix D): pairs are sorted by
feature and summed in runs.  There, runs meet in atomic additions; here each feature has a program
of its own and long features an extra program per RUN pairs, so that runs repeat bit by bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.sae.kernels import cuda_pairs, cuda_rows
from saekit.sae.kernels.reference import Pairs, Reference, SparsePass

RUN = 128  # pairs of one feature that one program sums
_TILE = 8192  # numbers of gathered rows that one program holds
_WIDEST = 1 << 15  # row that `largest` keeps in registers; its counters have 16 bits
_FLAT = 1024  # numbers per program where Adam needs no rows
_SHIFT = {torch.bfloat16: 16, torch.float32: 0}  # low bits that are 0 in float32


def _power_of_2(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _launch(program: Any, programs: int, *args: Any, **settings: Any) -> None:
    """Start a Triton program so many times, on the device of its first argument."""
    with torch.cuda.device_of(args[0]):
        program[(programs,)](*args, **settings)


def _shape_of(d: int) -> dict[str, int]:
    """Launch settings for rows of length d: D columns, P pairs at a time."""
    wide = max(16, _power_of_2(d))
    return {"D": wide, "P": max(1, min(16, _TILE // wide)), "num_warps": 8 if wide > 512 else 4}


def _f32(*tensors: Tensor) -> None:
    """Programs read float32 row after row."""
    for tensor in tensors:
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), tensor.dtype


class Cuda(Reference):
    """`Reference` with Triton programs; float32 weights."""

    def __init__(self, run: int = RUN):
        """
        Args:
            run: pairs of one feature that one program sums.
        """
        self.run = run
        self._bounds: dict[tuple[torch.device, tuple[float, ...]], Tensor] = {}

    def _constant(self, numbers: Sequence[float | Tensor], like: Tensor) -> Tensor:
        """Numbers on the device, copied there once: a copy makes the host wait."""
        tensors = [number for number in numbers if isinstance(number, Tensor)]
        if tensors:
            return torch.stack(tensors).to(like.dtype)
        key = (like.device, tuple(float(number) for number in numbers))
        if key not in self._bounds:
            self._bounds[key] = torch.tensor(numbers, dtype=like.dtype, device=like.device)
        return self._bounds[key]

    def _ends(self, ends: list[int], like: Tensor) -> Tensor:
        """Prefixes on the device; a single one, which changes with dead features, is not read."""
        return like if len(ends) == 1 else self._constant(ends, like)

    def largest(self, pre: Float[Tensor, "token d_sae"], k: int) -> Pairs:
        """See `Reference.largest`; of equal preactivations the first features are taken."""
        tokens, d_sae = pre.shape
        if pre.dtype not in _SHIFT or d_sae > _WIDEST or not pre.is_contiguous():
            return super().largest(pre, k)
        features = torch.empty(tokens * k, dtype=torch.int32, device=pre.device)
        block = max(128, _power_of_2(d_sae))
        _launch(cuda_rows.largest, tokens, 
            pre, features, d_sae, k,
            SHIFT=_SHIFT[pre.dtype], BLOCK=block, num_warps=min(32, max(4, block // 1024)),
        )  # fmt: skip
        return Pairs(features, torch.arange(0, tokens * k + 1, k, device=pre.device))

    def forward_backward(
        self,
        inputs: Float[Tensor, "token d_in"],
        target: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        pairs: Pairs,
        ends: list[int],
        scales: Sequence[float | Tensor],
        rectify: bool = True,
    ) -> SparsePass:
        """See `Reference.forward_backward`."""
        _f32(inputs, target, W_enc, b_enc, W_dec)
        tokens, d_in = inputs.shape
        values = inputs.new_empty(len(pairs.features))
        slopes = torch.empty_like(values)
        errors = inputs.new_empty(len(ends), tokens, d_in)
        upstream, squared = torch.empty_like(errors), inputs.new_empty(len(ends), tokens)
        _launch(cuda_pairs.forward_backward, tokens, 
            inputs, target, W_enc, b_enc, W_dec, pairs.features, pairs.starts,
            self._ends(ends, pairs.features), self._constant(scales, inputs),
            values, slopes, errors, upstream, squared, tokens, d_in,
            RECTIFY=rectify, PREFIXES=len(ends), **_shape_of(d_in),
        )  # fmt: skip
        return SparsePass(values, slopes, errors, upstream, squared)

    def weight_gradients(
        self,
        inputs: Float[Tensor, "token d_in"],
        result: SparsePass,
        pairs: Pairs,
        ends: list[int],
        gradients: dict[str, Tensor],
        add: bool = False,
    ) -> Int[Tensor, " d_sae"]:
        """See `Reference.weight_gradients`."""
        W_enc, b_enc, W_dec = (gradients[name] for name in ("W_enc", "b_enc", "W_dec"))
        _f32(inputs, result.upstream, W_enc, b_enc, W_dec)
        (tokens, d_in), d_sae, device = inputs.shape, len(b_enc), inputs.device
        found, order = pairs.features.sort(stable=True)
        ids = torch.arange(d_sae + 1, dtype=torch.int32, device=device)
        firsts = torch.searchsorted(found, ids, out_int32=True)  # where each feature's pairs begin
        extra_ends = ((firsts.diff() - 1).clamp_min(0) // self.run).cumsum(0, dtype=torch.int32)
        longest = len(found) // self.run  # there cannot be more later runs
        parts = inputs.new_empty(2, max(longest, 1), d_in)
        part_bias = inputs.new_empty(max(longest, 1))
        part_fired = torch.empty_like(part_bias, dtype=torch.int32)
        fired = torch.empty(d_sae, dtype=torch.int64, device=device)
        read = (
            inputs, result.upstream, result.values, result.slopes, order, pairs.owners(),
            firsts, extra_ends, self._ends(ends, pairs.features), *parts, part_bias, part_fired,
        )  # fmt: skip
        shape = {"RUN": self.run, "PREFIXES": len(ends), **_shape_of(d_in)}
        if longest:
            _launch(cuda_pairs.later_runs, longest, *read, d_sae, tokens, d_in, **shape)
        _launch(
            cuda_pairs.feature_sums,
            d_sae,
            *read,
            W_enc,
            b_enc,
            W_dec,
            fired,
            tokens,
            d_in,
            ADD=add,
            **shape,
        )
        return fired

    def adam_rows(
        self,
        weights: Float[Tensor, "row d"],
        gradient: Float[Tensor, "row d"],
        mean: Float[Tensor, "row d"],
        square: Float[Tensor, "row d"],
        lr: float,
        step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit: bool = False,
        shadow: Float[Tensor, "row d"] | None = None,
    ) -> None:
        """See `Reference.adam_rows`."""
        _f32(weights, gradient, mean, square)
        narrow = weights if shadow is None else shadow.view(torch.int16)
        size, width = weights.numel(), weights.shape[1] if unit else _FLAT
        rate, root = lr / (1 - betas[0] ** step), (1 - betas[1] ** step) ** -0.5
        _launch(cuda_rows.adam_rows, -(-size // width), 
            weights, gradient, mean, square, narrow,
            size, width, *betas, rate, root, eps,
            UNIT=unit, SHADOW=shadow is not None, BLOCK=_power_of_2(width),
        )  # fmt: skip
