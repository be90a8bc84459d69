"""The sparse arithmetic on the CPU by C++, compiled on first use (sparse_step, selection)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.native.library import Functions
from saekit.sae.kernels.reference import Pairs, Reference, SparsePass

SOURCES = ("sparse_step", "selection")
_FIRST_POSITIVE = 1  # the bits of the smallest number above zero


class Cpu(Reference):
    """`Reference` with C++ for what matters; weights and preactivations may be bfloat16."""

    def __init__(self, functions: Functions, selection: Functions):
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
        self._c.centre_rows(short, wide, float(scale), centre, len(x), x.shape[1], out, narrow)

    def largest(self, pre: Float[Tensor, "token d_sae"], k: int) -> Pairs:
        """See `Reference.largest`; of equal preactivations the first features are taken."""
        if pre.dtype != torch.bfloat16:
            return super().largest(pre, k)
        tokens, d_sae = pre.shape
        features = torch.empty(tokens * k, dtype=torch.int32)
        self._selection.largest(pre, tokens, d_sae, k, features)
        return Pairs(features, torch.arange(0, tokens * k + 1, k))

    def largest_of_batch(self, pre: Float[Tensor, "token d_sae"], count: int) -> Pairs:
        """See `Reference.largest_of_batch`."""
        if pre.dtype != torch.bfloat16:
            return super().largest_of_batch(pre, count)
        tokens, d_sae = pre.shape
        counts = torch.zeros(1 << 15, dtype=torch.int64)
        self._selection.count_bits(pre, pre.numel(), _FIRST_POSITIVE, counts)
        at_least = counts.flip(0).cumsum(0).flip(0)  # numbers with these bits or more
        enough = (at_least >= count).nonzero()
        bound = int(enough[-1]) if len(enough) else _FIRST_POSITIVE
        floor = max(bound, _FIRST_POSITIVE)
        starts = torch.zeros(tokens + 1, dtype=torch.int64)
        self._selection.at_or_above(pre, tokens, d_sae, floor, starts, None)
        starts = starts.cumsum(0)
        features = torch.empty(int(starts[-1]), dtype=torch.int32)
        self._selection.at_or_above(pre, tokens, d_sae, floor, starts, features)
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
        bounds, factors = torch.tensor(ends), torch.tensor(scales)
        self._c.forward_backward(
            inputs, target, W_enc, b_enc, W_dec, pairs.features, pairs.starts, tokens, d_in,
            bounds, factors, len(ends), rectify, W_enc.dtype == torch.bfloat16,
            values, slopes, errors, upstream, squared,
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
        self._c.weight_gradients(
            inputs, result.upstream, pairs.features, pairs.starts, result.values, result.slopes,
            tokens, d_in, len(b_enc), torch.tensor(ends), add, inputs.dtype == torch.bfloat16,
            W_enc, b_enc, W_dec, fired,
        )  # fmt: skip
        return fired

    def combine_rows(
        self, matrix: Float[Tensor, "row d"], weights: Float[Tensor, " row"]
    ) -> Float[Tensor, " d"]:
        """See `Reference.combine_rows`."""
        rows, d = matrix.shape
        out = torch.empty(d)
        self._c.combine_rows(matrix, weights, rows, d, matrix.dtype == torch.bfloat16, out)
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
            weights, gradient, mean, square, rows, d, *betas, lr / (1 - betas[0] ** step),
            (1 - betas[1] ** step) ** -0.5, eps, unit, shadow,
        )  # fmt: skip
