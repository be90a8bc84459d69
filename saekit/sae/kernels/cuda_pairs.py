"""Triton programs of `cuda.Cuda` over pairs: what one block of threads does.

Matrices are float32, row-major, one row per feature, and D = `d` rounded up to a power of two.
Every sum has a fixed order, so runs repeat bit by bit.  `no_type_check` keeps Triton's language
from being read as Python.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def forward_backward(
    inputs, target, W_enc, b_enc, W_dec, features, starts, ends, scales,
    values, slopes, errors, upstream, squared, tokens, d,
    RECTIFY: tl.constexpr, PREFIXES: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One token, its pairs P at a time; see `Reference.forward_backward`."""
    token = tl.program_id(0).to(tl.int64)
    first = tl.load(starts + token)
    last = tl.load(starts + token + 1)
    pair = tl.arange(0, P)
    column = tl.arange(0, D)
    wide = column < d
    x = tl.load(inputs + token * d + column, mask=wide, other=0.0)
    error = tl.load(target + token * d + column, mask=wide, other=0.0)

    low = first
    for prefix in tl.static_range(PREFIXES):
        high = last
        if PREFIXES > 1:  # features ascend: those of this prefix are a run
            end = tl.load(ends + prefix)
            high = low
            for start in range(low, last, P):
                at = start + pair
                feature = tl.load(features + at, mask=at < last, other=2147483647)
                high += tl.sum((feature < end).to(tl.int32))
        for start in range(low, high, P):
            at = start + pair
            here = at < high
            feature = tl.load(features + at, mask=here, other=0).to(tl.int64)
            place = feature[:, None] * d + column[None, :]
            mask = here[:, None] & wide[None, :]
            rows = tl.load(W_enc + place, mask=mask, other=0.0)
            value = tl.sum(rows * x[None, :], 1) + tl.load(b_enc + feature, mask=here, other=0.0)
            if RECTIFY:
                value = tl.maximum(value, 0.0)
            tl.store(values + at, value, mask=here)
            rows = tl.load(W_dec + place, mask=mask, other=0.0)
            error -= tl.sum(rows * value[:, None], 0)
        row = prefix * tokens + token
        tl.store(errors + row * d + column, error, mask=wide)
        tl.store(squared + row, tl.sum(error * error, 0))
        low = high

    tl.debug_barrier()  # what one thread has written another one reads from here on
    # the gradient of what a feature writes holds its own prefix and all later ones
    up = tl.zeros([D], dtype=tl.float32)
    high = last
    for back in tl.static_range(PREFIXES):
        prefix = PREFIXES - 1 - back
        row = prefix * tokens + token
        if PREFIXES > 1:
            error = tl.load(errors + row * d + column, mask=wide, other=0.0)
        up += tl.load(scales + prefix) * error
        tl.store(upstream + row * d + column, up, mask=wide)
        low = first
        if prefix > 0:
            begin = tl.load(ends + prefix - 1)
            for start in range(first, high, P):
                at = start + pair
                feature = tl.load(features + at, mask=at < high, other=2147483647)
                low += tl.sum((feature < begin).to(tl.int32))
        for start in range(low, high, P):
            at = start + pair
            here = at < high
            feature = tl.load(features + at, mask=here, other=0).to(tl.int64)
            mask = here[:, None] & wide[None, :]
            rows = tl.load(W_dec + feature[:, None] * d + column[None, :], mask=mask, other=0.0)
            slope = tl.sum(rows * up[None, :], 1)
            if RECTIFY:
                value = tl.load(values + at, mask=here, other=0.0)
                slope = tl.where(value > 0, slope, 0.0)
            tl.store(slopes + at, slope, mask=here)
        high = low


@triton.jit
@no_type_check
def run_sums(
    inputs, up, values, slopes, order, owners, low, high, d, P: tl.constexpr, D: tl.constexpr
):
    """Of the sorted pairs low to high: sums of slope * inputs, value * upstream, slope; fired."""
    column = tl.arange(0, D)
    wide = column < d
    enc = tl.zeros([D], dtype=tl.float32)
    dec = tl.zeros([D], dtype=tl.float32)
    bias = tl.zeros([P], dtype=tl.float32)
    fired = tl.zeros([P], dtype=tl.int32)
    for start in range(low, high, P):
        at = start + tl.arange(0, P)
        here = at < high
        pair = tl.load(order + at, mask=here, other=0)
        token = tl.load(owners + pair, mask=here, other=0).to(tl.int64)
        value = tl.load(values + pair, mask=here, other=0.0)
        slope = tl.load(slopes + pair, mask=here, other=0.0)
        place = token[:, None] * d + column[None, :]
        mask = here[:, None] & wide[None, :]
        rows = tl.load(inputs + place, mask=mask, other=0.0)
        enc += tl.sum(rows * slope[:, None], 0)
        rows = tl.load(up + place, mask=mask, other=0.0)
        dec += tl.sum(rows * value[:, None], 0)
        bias += slope
        fired += (value > 0).to(tl.int32)
    return enc, dec, tl.sum(bias, 0), tl.sum(fired, 0)


@triton.jit
@no_type_check
def upstream_of(upstream, feature, ends, tokens, d, PREFIXES: tl.constexpr):
    """Where the upstream gradients of the prefix that a feature starts in begin."""
    prefix = tl.full((), 0, tl.int64)
    for i in tl.static_range(PREFIXES - 1):
        prefix += (feature >= tl.load(ends + i)).to(tl.int64)
    return upstream + prefix * tokens * d


@triton.jit
@no_type_check
def later_runs(
    inputs, upstream, values, slopes, order, owners, firsts, extra_ends, ends,
    part_enc, part_dec, part_bias, part_fired, d_sae, tokens, d,
    RUN: tl.constexpr, PREFIXES: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One run of RUN pairs of a feature that has more than RUN: its sums, into row `run`.

    `extra_ends` [d_sae] counts such runs, all but each feature's first, up to and with a feature.
    """
    run = tl.program_id(0)
    if run < tl.load(extra_ends + d_sae - 1):
        low = tl.full((), 0, tl.int32)
        high = low + d_sae  # the first feature with extra_ends > run, by bisection
        while low < high:
            middle = (low + high) // 2
            beyond = tl.load(extra_ends + middle) > run
            high = tl.where(beyond, middle, high)
            low = tl.where(beyond, low, middle + 1)
        feature = low
        before = tl.load(extra_ends + feature - 1, mask=feature > 0, other=0)
        begin = tl.load(firsts + feature) + (run - before + 1) * RUN
        stop = tl.minimum(begin + RUN, tl.load(firsts + feature + 1))
        up = upstream_of(upstream, feature, ends, tokens, d, PREFIXES)
        enc, dec, bias, fired = run_sums(
            inputs, up, values, slopes, order, owners, begin, stop, d, P, D
        )
        column = tl.arange(0, D)
        place = run.to(tl.int64) * d + column
        tl.store(part_enc + place, enc, mask=column < d)
        tl.store(part_dec + place, dec, mask=column < d)
        tl.store(part_bias + run, bias)
        tl.store(part_fired + run, fired)


@triton.jit
@no_type_check
def feature_sums(
    inputs, upstream, values, slopes, order, owners, firsts, extra_ends, ends,
    part_enc, part_dec, part_bias, part_fired, g_enc, g_bias, g_dec, g_fired, tokens, d,
    ADD: tl.constexpr, RUN: tl.constexpr, PREFIXES: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One feature: its first run, then the sums of its later ones in order."""
    feature = tl.program_id(0)
    begin = tl.load(firsts + feature)
    stop = tl.minimum(begin + RUN, tl.load(firsts + feature + 1))
    up = upstream_of(upstream, feature, ends, tokens, d, PREFIXES)
    enc, dec, bias, fired = run_sums(
        inputs, up, values, slopes, order, owners, begin, stop, d, P, D
    )
    column = tl.arange(0, D)
    wide = column < d
    before = tl.load(extra_ends + feature - 1, mask=feature > 0, other=0)
    for run in range(before, tl.load(extra_ends + feature)):
        place = run * d + column
        enc += tl.load(part_enc + place, mask=wide, other=0.0)
        dec += tl.load(part_dec + place, mask=wide, other=0.0)
        bias += tl.load(part_bias + run)
        fired += tl.load(part_fired + run)
    place = feature.to(tl.int64) * d + column
    if ADD:
        enc += tl.load(g_enc + place, mask=wide, other=0.0)
        dec += tl.load(g_dec + place, mask=wide, other=0.0)
        bias += tl.load(g_bias + feature)
    tl.store(g_enc + place, enc, mask=wide)
    tl.store(g_dec + place, dec, mask=wide)
    tl.store(g_bias + feature, bias)
    tl.store(g_fired + feature, fired.to(tl.int64))
