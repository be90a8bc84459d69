"""The sparse arithmetic on the CPU by C++ (cpu.cpp, cpu_selection.cpp), compiled on first use."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.compiled import address
from saekit.sae.kernels.reference import Pairs, Reference, SparsePass

SOURCES = [Path(__file__).with_name(name) for name in ("cpu.cpp", "cpu_selection.cpp")]


def _f32(tensor: Tensor | None) -> ctypes.c_void_p:
    return address(tensor, torch.float32)


def _i32(tensor: Tensor | None) -> ctypes.c_void_p:
    return address(tensor, torch.int32)


def _i64(tensor: Tensor | None) -> ctypes.c_void_p:
    return address(tensor, torch.int64)


def _any(tensor: Tensor) -> ctypes.c_void_p:
    """Of float32 or bfloat16; see `_narrow`."""
    assert tensor.dtype in (torch.float32, torch.bfloat16), tensor.dtype
    return address(tensor, tensor.dtype)


def _narrow(tensor: Tensor) -> ctypes.c_int64:
    return _long(tensor.dtype == torch.bfloat16)


def _bits(tensor: Tensor | None) -> ctypes.c_void_p:
    return address(tensor, torch.bfloat16)


_long = ctypes.c_int64
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
            _bits(short), _f32(wide), _float(float(scale)), _f32(centre),
            _long(len(x)), _long(x.shape[1]), _f32(out), _bits(narrow),
        )  # fmt: skip

    def largest(self, pre: Float[Tensor, "token d_sae"], k: int) -> Pairs:
        """See `Reference.largest`; of equal preactivations the first features are taken."""
        if pre.dtype != torch.bfloat16:
            return super().largest(pre, k)
        tokens, d_sae = pre.shape
        features = torch.empty(tokens * k, dtype=torch.int32)
        self._selection.largest(_bits(pre), _long(tokens), _long(d_sae), _long(k), _i32(features))
        return Pairs(features, torch.arange(0, tokens * k + 1, k))

    def largest_of_batch(self, pre: Float[Tensor, "token d_sae"], count: int) -> Pairs:
        """See `Reference.largest_of_batch`."""
        if pre.dtype != torch.bfloat16:
            return super().largest_of_batch(pre, count)
        tokens, d_sae = pre.shape
        counts = torch.zeros(1 << 15, dtype=torch.int64)
        size, floor = _long(pre.numel()), ctypes.c_int16(_FIRST_POSITIVE)
        self._selection.count_bits(_bits(pre), size, floor, _i64(counts))
        at_least = counts.flip(0).cumsum(0).flip(0)  # numbers with these bits or more
        enough = (at_least >= count).nonzero()
        bound = int(enough[-1]) if len(enough) else _FIRST_POSITIVE
        floor = ctypes.c_int16(max(bound, _FIRST_POSITIVE))
        starts = torch.zeros(tokens + 1, dtype=torch.int64)
        shape = _long(tokens), _long(d_sae)
        self._selection.at_or_above(_bits(pre), *shape, floor, _i64(starts), _i32(None))
        starts = starts.cumsum(0)
        features = torch.empty(int(starts[-1]), dtype=torch.int32)
        self._selection.at_or_above(_bits(pre), *shape, floor, _i64(starts), _i32(features))
        return Pairs(features, starts)

    def products(
        self,
        inputs: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        pairs: Pairs,
    ) -> Float[Tensor, " pair"]:
        """See `Reference.products`."""
        values = torch.empty(len(pairs.features))
        self._c.products(
            _f32(inputs), _f32(W_enc), _f32(b_enc), _i32(pairs.features), _i64(pairs.starts),
            _long(len(inputs)), _long(inputs.shape[1]), _f32(values),
        )  # fmt: skip
        return values

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
            _f32(inputs), _f32(target), _any(W_enc), _f32(b_enc), address(W_dec, W_enc.dtype),
            _i32(pairs.features), _i64(pairs.starts), _long(tokens), _long(d_in),
            _i64(bounds), _f32(factors), _long(len(ends)), _long(rectify), _narrow(W_enc),
            _f32(values), _f32(slopes), _f32(errors), _any(upstream),
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
            address(inputs, result.upstream.dtype), _any(result.upstream),
            _i32(pairs.features), _i64(pairs.starts),
            _f32(result.values), _f32(result.slopes), _long(tokens), _long(d_in),
            _long(len(b_enc)), _i64(bounds), _long(add), _narrow(inputs),
            _f32(W_enc), _f32(b_enc), _f32(W_dec), _i64(fired),
        )  # fmt: skip
        return fired

    def combine_rows(
        self, matrix: Float[Tensor, "row d"], weights: Float[Tensor, " row"]
    ) -> Float[Tensor, " d"]:
        """See `Reference.combine_rows`."""
        rows, d = matrix.shape
        out = torch.empty(d)
        self._c.combine_rows(
            _any(matrix), _f32(weights), _long(rows), _long(d), _narrow(matrix), _f32(out)
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
            _f32(weights), _f32(gradient), _f32(mean), _f32(square), _long(rows), _long(d),
            _float(betas[0]), _float(betas[1]), _float(lr / (1 - betas[0] ** step)),
            _float((1 - betas[1] ** step) ** -0.5), _float(eps), _long(unit), _bits(shadow),
        )  # fmt: skip
