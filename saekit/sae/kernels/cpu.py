"""The sparse arithmetic on the CPU by C++, compiled on first use (sparse_step, selection)."""

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.native.library import FOLDER, address
from saekit.native.pointers import bf16, either, f32, i32, i64, is_bf16, long
from saekit.sae.kernels.reference import Pairs, Reference, SparsePass

SOURCES = [FOLDER / name for name in ("sparse_step.cpp", "selection.cpp")]


_float = ctypes.c_float
_FIRST_POSITIVE = 1  # the bits of the smallest number above zero


class Cpu(Reference):
    """`Reference` with C++ for what matters; weights and preactivations may be bfloat16."""

    def __init__(self, functions: ctypes.CDLL, selection: ctypes.CDLL):
        """
        Args:
            functions, selection: what `SOURCES` are compiled to.
        """
        self._c, self._selection = functions, selection

    def centre_rows(
        self,
        x: Float[Tensor, "token d_in"],
        scale: Tensor,
        centre: Float[Tensor, " d_in"],
        out: Float[Tensor, "token d_in"],
        narrow: Float[Tensor, "token d_in"] | None = None,
    ) -> None:
        """See `Reference.centre_rows`."""
        short, wide = (x, None) if x.dtype == torch.bfloat16 else (None, x)
        self._c.centre_rows(
            bf16(short), f32(wide), _float(float(scale)), f32(centre),
            long(len(x)), long(x.shape[1]), f32(out), bf16(narrow),
        )  # fmt: skip

    def largest(self, pre: Float[Tensor, "token d_sae"], k: int) -> Pairs:
        """See `Reference.largest`; of equal preactivations the first features are taken."""
        if pre.dtype != torch.bfloat16:
            return super().largest(pre, k)
        tokens, d_sae = pre.shape
        features = torch.empty(tokens * k, dtype=torch.int32)
        self._selection.largest(bf16(pre), long(tokens), long(d_sae), long(k), i32(features))
        return Pairs(features, torch.arange(0, tokens * k + 1, k))

    def largest_of_batch(self, pre: Float[Tensor, "token d_sae"], count: int) -> Pairs:
        """See `Reference.largest_of_batch`."""
        if pre.dtype != torch.bfloat16:
            return super().largest_of_batch(pre, count)
        tokens, d_sae = pre.shape
        counts = torch.zeros(1 << 15, dtype=torch.int64)
        size, floor = long(pre.numel()), ctypes.c_int16(_FIRST_POSITIVE)
        self._selection.count_bits(bf16(pre), size, floor, i64(counts))
        at_least = counts.flip(0).cumsum(0).flip(0)  # numbers with these bits or more
        enough = (at_least >= count).nonzero()
        bound = int(enough[-1]) if len(enough) else _FIRST_POSITIVE
        floor = ctypes.c_int16(max(bound, _FIRST_POSITIVE))
        starts = torch.zeros(tokens + 1, dtype=torch.int64)
        shape = long(tokens), long(d_sae)
        self._selection.at_or_above(bf16(pre), *shape, floor, i64(starts), i32(None))
        starts = starts.cumsum(0)
        features = torch.empty(int(starts[-1]), dtype=torch.int32)
        self._selection.at_or_above(bf16(pre), *shape, floor, i64(starts), i32(features))
        return Pairs(features, starts)

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
        tokens, d_in = inputs.shape
        values = torch.empty(len(pairs.features))
        slopes = torch.empty_like(values)
        errors = torch.empty(len(ends), tokens, d_in)
        upstream = torch.empty_like(errors, dtype=W_enc.dtype)
        squared = torch.empty(len(ends), tokens, dtype=torch.float64)
        bounds, factors = torch.tensor(ends), torch.tensor(scales)  # alive during the call
        self._c.forward_backward(
            f32(inputs), f32(target), either(W_enc), f32(b_enc), address(W_dec, W_enc.dtype),
            i32(pairs.features), i64(pairs.starts), long(tokens), long(d_in),
            i64(bounds), f32(factors), long(len(ends)), long(rectify), is_bf16(W_enc),
            f32(values), f32(slopes), f32(errors), either(upstream),
            address(squared, torch.float64),
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
        tokens, d_in = inputs.shape
        W_enc, b_enc, W_dec = (gradients[name] for name in ("W_enc", "b_enc", "W_dec"))
        fired = torch.empty(len(b_enc), dtype=torch.int64)
        bounds = torch.tensor(ends)  # alive during the call
        self._c.weight_gradients(
            address(inputs, result.upstream.dtype), either(result.upstream),
            i32(pairs.features), i64(pairs.starts),
            f32(result.values), f32(result.slopes), long(tokens), long(d_in),
            long(len(b_enc)), i64(bounds), long(add), is_bf16(inputs),
            f32(W_enc), f32(b_enc), f32(W_dec), i64(fired),
        )  # fmt: skip
        return fired

    def combine_rows(
        self, matrix: Float[Tensor, "row d"], weights: Float[Tensor, " row"]
    ) -> Float[Tensor, " d"]:
        """See `Reference.combine_rows`."""
        rows, d = matrix.shape
        out = torch.empty(d)
        self._c.combine_rows(
            either(matrix), f32(weights), long(rows), long(d), is_bf16(matrix), f32(out)
        )
        return out

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
        rows, d = weights.shape
        self._c.adam_rows(
            f32(weights), f32(gradient), f32(mean), f32(square), long(rows), long(d),
            _float(betas[0]), _float(betas[1]), _float(lr / (1 - betas[0] ** step)),
            _float((1 - betas[1] ** step) ** -0.5), _float(eps), long(unit), bf16(shadow),
        )  # fmt: skip
