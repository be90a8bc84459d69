"""Triton programs of `cuda.Cuda` over rows of a matrix: selection, and Adam.

Matrices are row-major.  `no_type_check`: see cuda_pairs.py.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def largest(pre, chosen, d_sae, k, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """One row of `pre`: its k largest columns, ascending; of equal ones the first.

    The bits of a float, with those of negative ones inverted but for the sign, order like integers.
    The k-th largest is found bit by bit from the top: the highest number that k entries reach.
    Bits below SHIFT are 0 (16 for bfloat16).
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d_sae
    numbers = tl.load(pre + row * d_sae + columns, mask=inside, other=0.0).to(tl.float32)
    bits = numbers.to(tl.int32, bitcast=True)
    keys = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    lowest = tl.full((), -2147483648, tl.int32)
    one = tl.full((), 1, tl.int32)
    bound = lowest
    for step in range(32 - SHIFT):
        trial = bound ^ (one << (31 - step))
        enough = tl.sum(((keys >= trial) & inside).to(tl.int32)) >= k
        bound = tl.where(enough, trial, bound)
    # below SHIFT the keys of negative numbers are ones, not zeros
    keys = (keys >> SHIFT) << SHIFT
    above = (keys > bound) & inside
    equal = (keys == bound) & inside
    # both counts in one scan: the low 16 bits have those above (at most k), the high those equal
    counts = tl.cumsum(above.to(tl.int32) + equal.to(tl.int32) * 65536, 0)
    higher = counts & 0xFFFF
    ties = (counts >> 16) & 0xFFFF
    wanted = k - tl.sum(above.to(tl.int32))
    take = above | (equal & (ties <= wanted))
    place = higher + tl.minimum(ties, wanted) - 1
    tl.store(chosen + row * k + place, columns, mask=take)


@triton.jit
@no_type_check
def adam_rows(
    weights, gradient, mean, square, shadow, size, width,
    beta1, beta2, rate, root_correction, eps,
    UNIT: tl.constexpr, SHADOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`width` numbers of a matrix of `size`: a row if UNIT; see `Reference.adam_rows`."""
    column = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * width + column
    mask = (column < width) & (place < size)
    w = tl.load(weights + place, mask=mask, other=0.0)
    g = tl.load(gradient + place, mask=mask, other=0.0)
    if UNIT:
        g -= tl.sum(g * w, 0) * w
    m = tl.load(mean + place, mask=mask, other=0.0)
    v = tl.load(square + place, mask=mask, other=0.0)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w -= rate * m / (tl.sqrt(v) * root_correction + eps)
    if UNIT:
        w /= tl.maximum(tl.sqrt(tl.sum(w * w, 0)), 1e-30)
    tl.store(mean + place, m, mask=mask)
    tl.store(square + place, v, mask=mask)
    tl.store(weights + place, w, mask=mask)
    if SHADOW:
        bits = w.to(
            tl.int32, bitcast=True
        )  # to the nearest, ties to even; the interpreter cuts off
        tl.store(
            shadow + place, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16), mask=mask
        )
