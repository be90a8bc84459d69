"""The encoder product in 8 bits on the CPU, to choose features by; twice as fast as bfloat16.

    x . w  ~  s_x s_w  sum_i  round(x_i / (c_i s_x)) round(c_i w_i / s_w)

Every token and every feature has a scale of its own, which makes its largest entry 127.  The
factors c_i divide the range of wide columns of the stream between both sides, c_i = sqrt(rms x_i)
(Xiao et al. 2022, "SmoothQuant", 2211.10438, equation 4 with the batch for the calibration and the
weights left out).  Sums of products are exact.  The error is 1% of the preactivations' standard
deviation, the distance between neighbours among the k largest: the last of them may change places
with the next one.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.native.library import library

SOURCE = "int8"
GROUP, PANELS = 4, 32  # multiples of which d_in and d_sae must be
_SAMPLED = 256  # tokens that widths are taken from, at least
_NARROWEST = 1e-4  # columns below this share of the widest one are treated as this wide


def supported(d_in: int, d_sae: int) -> bool:
    """Whether this processor multiplies bytes fast, and matrices have a shape that fits."""
    functions = library(SOURCE)
    fast = functions is not None and bool(functions.supported())
    return fast and d_in % GROUP == 0 and d_sae % PANELS == 0


def column_factors(x: Float[Tensor, "token d_in"]) -> Float[Tensor, " d_in"]:
    """1 / c of the module's docstring, from some of the tokens."""
    width = x[:: max(1, len(x) // _SAMPLED)].square().mean(0).sqrt()
    return width.clamp_min(width.max().clamp_min(1e-30) * _NARROWEST).rsqrt()


def products(
    x: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    out: Float[Tensor, "token d_sae"],
    memory: Callable[..., Tensor],
) -> None:
    """Puts x W_enc^T + b_enc, about, into `out`; `supported` must hold.

    Args:
        x, b_enc: float32, contiguous.
        W_enc, out: bfloat16, contiguous.
        memory: gives a tensor by name, shape and dtype, as `saekit.sae.training.operands.Scratch`.
    """
    functions = library(SOURCE)
    if functions is None:
        raise RuntimeError("`supported` was not asked")
    (tokens, d_in), d_sae = x.shape, len(W_enc)
    padded = functions.padded_tokens(tokens)
    packed_x = memory("packed x", padded, d_in // GROUP, dtype=torch.int32)
    packed_W = memory("packed W_enc", d_sae, d_in // GROUP, dtype=torch.int32)
    scales, shifts = memory("scales", padded), memory("shifts", padded, dtype=torch.int32)
    feature_scales = memory("feature scales", d_sae)
    factors = column_factors(x)
    inverse = factors.reciprocal()
    functions.pack_tokens(x, factors, tokens, d_in, packed_x, scales, shifts)
    functions.pack_features(W_enc, inverse, d_sae, d_in, packed_W, feature_scales)
    functions.products(
        packed_x, scales, shifts, packed_W, feature_scales, b_enc, tokens, d_in, d_sae, out
    )
