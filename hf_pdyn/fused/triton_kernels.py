"""The kernels of `gpu` in Triton: padam.cpp says what each stage means.

Every program takes one chunk of one tensor. Hyper-parameters are read from a table, so none is an argument that
another value would be compiled for. float32's log2 and exp2 keep x^q to 1e-5, relatively: log2(x) is below 128 and
rounds at 2^-24 of that.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(4096)
N_RUN_COLUMNS = tl.constexpr(9)
N_SETTINGS = tl.constexpr(14)
N_SUMS = tl.constexpr(7)


@triton.jit
def _power(x, q):
    # 0 * log2(0) is NaN, and x^0 is 1.
    return tl.where(q == 0, 1.0, tl.exp2(q * tl.log2(x)))


@triton.jit
def _elements(address, offsets, dtype: tl.constexpr, aligned: tl.constexpr):
    if aligned:  # without this an address out of a table is loaded element by element
        address = tl.multiple_of(address, 16)
    return address.to(tl.pointer_type(dtype)) + offsets


@triton.jit
def _scale_of_moment(time, log_beta):
    return (1 / (1 - tl.exp(time * log_beta.to(tl.float64)))).to(tl.float32)


@triton.jit
def step_chunk(
    runs,
    chunks,
    settings,
    scale,
    clip_factor,
    sums,
    theta_type: tl.constexpr,
    grad_type: tl.constexpr,
    amsgrad: tl.constexpr,
    published: tl.constexpr,
    times_on_device: tl.constexpr,
    moments: tl.constexpr,
    apply: tl.constexpr,
    gradient: tl.constexpr,
    direction: tl.constexpr,
    measure: tl.constexpr,
    parameter: tl.constexpr,
    aligned: tl.constexpr,
):
    chunk = tl.program_id(0)
    run = runs + tl.load(chunks + 2 * chunk) * N_RUN_COLUMNS
    start = tl.load(chunks + 2 * chunk + 1) * CHUNK
    theta_at = tl.load(run + 0)
    grad_at = tl.load(run + 1)
    exp_avg_at = tl.load(run + 2)
    exp_avg_sq_at = tl.load(run + 3)
    time_at = tl.load(run + 5)
    lr_at = tl.load(run + 6)
    numel = tl.load(run + 7)
    row = settings + tl.load(run + 8) * N_SETTINGS

    one_minus_beta1 = tl.load(row + 0)
    beta2 = tl.load(row + 1)
    one_minus_beta2 = tl.load(row + 2)
    m_scale = tl.load(row + 3)
    v_scale = tl.load(row + 4)
    p = tl.load(row + 5)
    eps = tl.load(row + 6)
    root_eps = tl.load(row + 7)
    lr = tl.load(row + 8)
    weight_decay = tl.load(row + 9)
    l2 = tl.load(row + 10)
    sign = tl.load(row + 11)
    if times_on_device:
        time = tl.load(time_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
        m_scale = _scale_of_moment(time, tl.load(row + 12))
        v_scale = _scale_of_moment(time, tl.load(row + 13))
        if published:
            m_scale /= tl.sqrt(v_scale)
    lr = tl.load(lr_at.to(tl.pointer_type(tl.float32)), mask=lr_at != 0, other=lr)

    offsets = tl.multiple_of(start, CHUNK) + tl.arange(0, CHUNK)
    held = offsets < numel
    sums += chunk * N_SUMS

    exp_avg_ptr = _elements(exp_avg_at, offsets, tl.float32, aligned)
    exp_avg_sq_ptr = _elements(exp_avg_sq_at, offsets, tl.float32, aligned)
    m = tl.load(exp_avg_ptr, mask=held, other=0.0)
    v = tl.load(exp_avg_sq_ptr, mask=held, other=0.0)
    theta_ptr = _elements(theta_at, offsets, theta_type, aligned)
    theta = tl.load(theta_ptr, mask=held, other=0.0).to(tl.float32)

    if moments or gradient or measure:
        g = tl.load(_elements(grad_at, offsets, grad_type, aligned), mask=held, other=0.0).to(tl.float32)
        if gradient:
            tl.store(sums + 0, tl.sum(g * g, axis=0))
        if measure:
            unclipped = g
            if clip_factor is not None:
                unclipped = g / tl.load(clip_factor)
            perturbed = unclipped * unclipped + eps
            tl.store(sums + 5, tl.sum(tl.where(held, tl.sqrt(perturbed), 0.0), axis=0))
            penalty = tl.where(p == 1, tl.log(perturbed), _power(perturbed, 1 - p))
            tl.store(sums + 6, tl.sum(tl.where(held, penalty, 0.0), axis=0))
        if moments:
            g = sign * g + l2 * theta
            m += one_minus_beta1 * (g - m)
            v = beta2 * v + one_minus_beta2 * (g * g)
            tl.store(exp_avg_ptr, m, mask=held)
            tl.store(exp_avg_sq_ptr, v, mask=held)

    if amsgrad:
        maximum_ptr = _elements(tl.load(run + 4), offsets, tl.float32, aligned)
        maximum = tl.load(maximum_ptr, mask=held, other=0.0)
        if moments:
            maximum = tl.maximum(maximum, v, propagate_nan=tl.PropagateNan.ALL)
            tl.store(maximum_ptr, maximum, mask=held)
        v = maximum
    if measure:
        tl.store(sums + 4, tl.sum(v, axis=0))

    if apply or direction or measure:
        if published:
            root = tl.sqrt(v) + root_eps
            x = root * root
        else:
            x = v * v_scale + eps
        m_hat = tl.where(held, m * m_scale, 0.0)
        d = tl.where(held, m_hat * _power(x, -p), 0.0)
        if direction or measure:
            tl.store(sums + 1, tl.sum(d * d, axis=0))
        if direction:
            tl.store(sums + 2, tl.sum(tl.where(held, m_hat * m_hat / x, 0.0), axis=0))
        if apply:
            rate = lr
            if scale is not None:
                rate = lr * tl.load(scale)
            theta = (theta - (rate * d + (lr * weight_decay) * theta)).to(theta_type)
            tl.store(theta_ptr, theta, mask=held)
            if parameter:
                stored = theta.to(tl.float32)
                tl.store(sums + 3, tl.sum(stored * stored, axis=0))


@triton.jit
def add_chunks(chunk_sums, first_chunks, sums, tile: tl.constexpr):
    """One column of one tensor a program, in an order that does not depend on the launch."""
    run = tl.program_id(0)
    column = tl.program_id(1)
    first = tl.load(first_chunks + run)
    stop = tl.load(first_chunks + run + 1)
    total = tl.zeros([tile], dtype=tl.float64)
    for begin in range(first, stop, tile):
        chunk = begin + tl.arange(0, tile)
        total += tl.load(chunk_sums + chunk * N_SUMS + column, mask=chunk < stop, other=0.0).to(tl.float64)
    tl.store(sums + run * N_SUMS + column, tl.sum(total, axis=0))
