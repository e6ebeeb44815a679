"""The kernels of `gpu` in Triton: padam.cpp says what each stage means.

Every program takes one chunk of one tensor. Hyper-parameters are read from a table, so none is an argument that
another value would be compiled for.

x^q is taken apart as in powers.h, so that its relative error does not grow with the exponent of x: 5e-7 for |q| <= 1,
half of which is that of exp2 (NVIDIA's ex2.approx: 2 units in the last place). 2^(q log2(x)) in float32 would be up to
8e-6 off at x = 1e-30. Triton's exp2 and sqrt take subnormal numbers for zeros; neither is given any.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hf_pdyn.optim.fused.layout import COLUMNS, FORMATS
from hf_pdyn.optim.state_format import M_LARGEST, M_NAN, M_SHIFT, V_LARGEST, V_SHIFT, V_ZERO
from hf_pdyn.optim.step_work import STEP_SUMS

CHUNK = tl.constexpr(2048)  # of 256 threads or 128: few enough elements each for four programs at a time
SMALLEST_NORMAL = tl.constexpr(1.1754943508222875e-38)

RUN_COLUMNS = (
    "theta_at",
    "grad_at",
    "exp_avg_at",
    "exp_avg_sq_at",
    "maximum_at",
    "correction_at",
    "time_at",
    "lr_at",
    "numel",
    "settings",
    "number",
    "start",
)
SETTINGS = (*COLUMNS, "log_beta1", "log_beta2")
N_RUN_COLUMNS = tl.constexpr(len(RUN_COLUMNS))
N_SETTINGS = tl.constexpr(len(SETTINGS))
N_SUMS = tl.constexpr(len(STEP_SUMS))
GRAD_SQ = tl.constexpr(STEP_SUMS.index("grad_sq"))
UPDATE_SQ = tl.constexpr(STEP_SUMS.index("update_sq"))
PARAM_SQ = tl.constexpr(STEP_SUMS.index("param_sq"))
V_HAT_SUM = tl.constexpr(STEP_SUMS.index("v_hat_sum"))
ONE_NORM = tl.constexpr(STEP_SUMS.index("one_norm"))
N_P = tl.constexpr(STEP_SUMS.index("N_p"))
NUMEL = tl.constexpr(STEP_SUMS.index("numel"))
RULED_BY_EPS = tl.constexpr(STEP_SUMS.index("ruled_by_eps"))
MOVED = tl.constexpr(STEP_SUMS.index("moved"))
DIRECTION_SQ = tl.constexpr(STEP_SUMS.index("direction_sq"))
ADAM_SQ = tl.constexpr(STEP_SUMS.index("adam_sq"))

FP32 = tl.constexpr(FORMATS.index("fp32"))
BITS_16 = tl.constexpr(FORMATS.index("16bit"))
BITS_8_16 = tl.constexpr(FORMATS.index("8_16bit"))
_V_SHIFT, _V_ZERO = tl.constexpr(V_SHIFT), tl.constexpr(V_ZERO)
_M_SHIFT, _M_NAN = tl.constexpr(M_SHIFT), tl.constexpr(M_NAN)
_V_RANDOM_SHIFT, _M_DROPPED = tl.constexpr(32 - V_SHIFT), tl.constexpr((1 << M_SHIFT) - 1)
_V_SMALLEST, _HALF_BIAS_MINUS_4 = tl.constexpr(2.0**-88), tl.constexpr((127 << 22) - (4 << 23))
_V_TOP, _M_TOP = tl.constexpr((V_LARGEST + V_ZERO) << V_SHIFT), tl.constexpr(M_LARGEST << M_SHIFT)


@triton.jit
def _log2(x, normal: tl.constexpr):
    # The exponent of x and log2 of the rest, which lies in [sqrt(1/2), sqrt(2)), to 2e-8; for a finite x > 0.
    # normal: no x is subnormal.
    subnormal = x < SMALLEST_NORMAL
    scaled = x if normal else tl.where(subnormal, x * 16777216.0, x)
    bits = scaled.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    t = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    log = t * 0.12926393747329712 - 0.20893365144729614
    log = log * t + 0.21521231532096863
    log = log * t - 0.23867571353912354
    log = log * t + 0.2879391014575958
    log = log * t - 0.3607162535190582
    log = log * t + 0.4809102714061737
    log = log * t - 0.7213472127914429
    log = log * t + 1.4426950216293335
    if not normal:
        exponent -= tl.where(subnormal, 24, 0)
    return exponent.to(tl.float32), log * t


@triton.jit
def _sqrt(x):
    subnormal = x < SMALLEST_NORMAL
    return tl.sqrt(tl.where(subnormal, x * 16777216.0, x)) * tl.where(subnormal, 0.000244140625, 1.0)


@triton.jit
def _power_of_two(n):
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _power(x, q, normal: tl.constexpr):
    # x^q of x >= 0 or NaN. x^0 is 1, of NaN too. normal: every x is finite, and 0 or no subnormal number.
    exponent, log2_fraction = _log2(x, normal)
    n = tl.floor(q * (exponent + log2_fraction) + 0.5)
    n = tl.minimum(tl.maximum(n, -252.0), 254.0)
    # In one rounding: q * exponent alone would lose what the exponent has in digits.
    remainder = tl.fma(q, exponent, -n) + q * log2_fraction
    whole = n.to(tl.int32)
    half = whole >> 1
    power = tl.exp2(remainder) * _power_of_two(half) * _power_of_two(whole - half)
    power = tl.where(x == 0.0, tl.where(q < 0, float("inf"), tl.where(q > 0, 0.0, 1.0)), power)
    if not normal:
        power = tl.where(x == float("inf"), tl.where(q < 0, 0.0, float("inf")), power)
        power = tl.where(x == x, power, x)
        power = tl.where(q == 0, 1.0, power)
    return power


@triton.jit
def _log(x):
    exponent, log2_fraction = _log2(x, False)
    log = (exponent + log2_fraction) * 0.6931471805599453
    log = tl.where(x == 0.0, -float("inf"), log)
    return tl.where(x < float("inf"), log, x)  # infinity or NaN


@triton.jit
def _one_minus_power(log_beta, time):
    # 1 - beta^t to 1e-6: by a series where the difference would cancel. float64 is slow on most GPUs.
    y = time * log_beta
    series = 1.0 + y * (1.0 / 6) * (1.0 + y * (1.0 / 7) * (1.0 + y * (1.0 / 8)))
    series = 1.0 + y * (1.0 / 3) * (1.0 + y * (1.0 / 4) * (1.0 + y * (1.0 / 5) * series))
    return tl.where(y > -0.5, -y * (1.0 + y * 0.5 * series), 1.0 - tl.exp(y))


@triton.jit
def _mixed(x):
    # As `state_format` has it; x is uint32.
    x = _half_mixed(x)
    return x ^ (x >> 16)


@triton.jit
def _half_mixed(x):
    x = x * 0x7FEB352D
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def _random_bits(number, time, first, offsets):
    # As `state_format.random_bits`. first: the index of the chunk's first element, int64; offsets: from there, int32.
    key = _mixed(_mixed(number.to(tl.uint32)) + time.to(tl.int32).to(tl.uint32))
    high = first >> 32
    here = first.to(tl.uint32) + (key ^ _mixed(high.to(tl.uint32)))
    beyond = first.to(tl.uint32) + (key ^ _mixed((high + 1).to(tl.uint32)))
    wraps_at = tl.minimum(((high + 1) << 32) - first, 0x7FFFFFFF).to(tl.int32)
    return _half_mixed(offsets.to(tl.uint32) + tl.where(offsets < wraps_at, here, beyond))


@triton.jit
def _v_of(shifted):
    # shifted: the bits of v + 2^-88, of which a code has all that are not 0.
    return shifted.to(tl.float32, bitcast=True) - _V_SMALLEST


@triton.jit
def _round_v(shifted_v, random):
    # Of v + 2^-88. What is larger than the largest code stands for, infinity and NaN of either sign become that.
    bits = tl.minimum(shifted_v.to(tl.uint32, bitcast=True), _V_TOP) + (random >> _V_RANDOM_SHIFT)
    return (bits & 0xFFFFC000).to(tl.int32, bitcast=True)


@triton.jit
def _unit_of_m(shifted):
    # The bits of 2^(k - 4). Those of |m| + 2^(k - 4) count up from there, and the upper ones are the code. k is half of
    # v's exponent: half its bits, and half the bias.
    return ((shifted >> 1) + _HALF_BIAS_MINUS_4) & 0x7F800000


@triton.jit
def _m_of(code, shifted, m_format: tl.constexpr):
    # code: int32, of 16 bits without a sign's extension, or of 8 with it. shifted: of the v beside it.
    if m_format == BITS_16:
        m = (code << 16).to(tl.float32, bitcast=True)
    else:
        m = _joined_m(tl.abs(code) << _M_SHIFT, _unit_of_m(shifted), code)
        m = tl.where(code == _M_NAN, float("nan"), m)
    return m


@triton.jit
def _joined_m(steps, unit, sign):
    # steps: the bits above `unit`, of a code. sign: of an integer or of a float's bits.
    size = (steps + unit).to(tl.float32, bitcast=True) - unit.to(tl.float32, bitcast=True)
    return (size.to(tl.int32, bitcast=True) | (sign & -2147483648)).to(tl.float32, bitcast=True)


@triton.jit
def _round_m(m, shifted, random, m_format: tl.constexpr):
    # The code, and what it stands for.
    bits = m.to(tl.int32, bitcast=True)
    finite = tl.abs(m) < float("inf")
    if m_format == BITS_16:
        bits = bits + tl.where(finite, random & 0xFFFF, 0).to(tl.int32, bitcast=True)
        code = (bits >> 16) & 0xFFFF
        stored = (bits & -65536).to(tl.float32, bitcast=True)
    else:
        unit = _unit_of_m(shifted)
        steps = (tl.abs(m) + unit.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True) - unit
        steps = tl.minimum(steps, _M_TOP) + (random & _M_DROPPED).to(tl.int32, bitcast=True)
        code = steps >> _M_SHIFT
        code = tl.where(finite, tl.where(m < 0, -code, code), _M_NAN)
        stored = tl.where(finite, _joined_m(steps & -524288, unit, bits), float("nan"))
    return code, stored


@triton.jit
def _exponent(w):
    # Of fp16 numbers in float32; -14 of smaller ones.
    exponent = ((w.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    return tl.minimum(tl.maximum(exponent, -14), 15)


@triton.jit
def _joined(w, correction, theta_type: tl.constexpr):
    # weight_correction.py: of w in float32 and its correction in int32.
    if theta_type == tl.bfloat16:
        bits = w.to(tl.int32, bitcast=True)
        x = (bits + tl.where((bits & 0x7FFFFFFF) == 0, 0, correction)).to(tl.float32, bitcast=True)
    else:
        x = w + correction.to(tl.float32) * _power_of_two(_exponent(w) - 24)
    return x


@triton.jit
def _rounded(x, theta_type: tl.constexpr):
    if theta_type == tl.bfloat16:  # ties away from zero, as its correction has it
        bits = (x.to(tl.int32, bitcast=True) + 0x8000) & -65536
        w = tl.where(x == x, bits.to(tl.float32, bitcast=True), x).to(theta_type)
    else:
        w = x.to(theta_type)
    return w


@triton.jit
def _correction(x, w, theta_type: tl.constexpr):
    if theta_type == tl.bfloat16:
        left = x.to(tl.int32, bitcast=True) - w.to(tl.int32, bitcast=True)
        correction = tl.where(x == x, left, 0)
    else:
        left = (x - w) * _power_of_two(24 - _exponent(w))
        finite = tl.abs(w) < float("inf")
        correction = tl.floor(tl.where(finite, left, 0.0) + 0.5).to(tl.int32)
    return correction


@triton.jit
def _elements(address, start, offsets, dtype: tl.constexpr, m_format: tl.constexpr, aligned: tl.constexpr):
    # The hint is kept on what makes the pointer, not on an argument of this function. Only with it are loads and stores
    # vectors: of 128 bits, but of four elements beside codes of 8 bits, or 16 of those would have to change threads on
    # their way (of 1 B parameters 3 % quicker; 6 % slower where codes have 16 bits).
    base = address.to(tl.pointer_type(dtype))
    if aligned:
        # Of the pointer: Triton before 3.4 gives a constant no attributes.
        bits: tl.constexpr = base.dtype.element_ty.primitive_bitwidth
        base = tl.multiple_of(base, bits // 2 if m_format == BITS_8_16 else 16)
    return base + start + offsets


@triton.jit
def _constants_at(time, log_beta1, log_beta2, p, eps):
    # scale, adam_scale, v_eps and v_hat_scale of `layout.row`, at a step count that stands on the device.
    of_m = _one_minus_power(log_beta1, time)
    of_v = _one_minus_power(log_beta2, time)
    v_eps = tl.where(eps > 0, tl.maximum(eps * of_v, SMALLEST_NORMAL), 0.0)
    return _power(of_v, p, False) / of_m, tl.sqrt(of_v) / of_m, v_eps, 1.0 / of_v


@triton.jit
def _lerp(m, g, weight):
    # In the two forms of torch's: at beta1 = 0, m is g.
    towards_g = weight < 0.5
    return tl.where(towards_g, m, g) + tl.where(towards_g, weight, weight - 1) * (g - m)


@triton.jit
def _running_maximum(pointer, v, held, m_format: tl.constexpr, moments: tl.constexpr):
    # What stands under the power with amsgrad. v: what the maximum takes in where moments did; of codes, shifted bits.
    if m_format == FP32:
        maximum = tl.load(pointer, mask=held, other=0.0)
        if moments:
            maximum = tl.maximum(maximum, v, propagate_nan=tl.PropagateNan.ALL)
            tl.store(pointer, maximum, mask=held)
    else:
        shifted = (tl.load(pointer, mask=held, other=0).to(tl.int32) + _V_ZERO) << _V_SHIFT
        if moments:
            shifted = tl.maximum(shifted, v)
            tl.store(pointer, ((shifted >> _V_SHIFT) - _V_ZERO).to(tl.uint16), mask=held)
        maximum = _v_of(shifted)
    return maximum


@triton.jit
def _sum_norms(sums, g, held, p, eps, power_scale):
    # The perturbed one-norm, and N_p.
    perturbed = g * g + eps
    one_norm = tl.where(held, _sqrt(perturbed), 0.0)
    tl.store(sums + ONE_NORM, tl.sum(one_norm, axis=0))
    powers = tl.where(p == 1, _log(perturbed), _power(perturbed, 1 - p, False))
    tl.store(sums + N_P, power_scale * tl.sum(tl.where(held, powers, 0.0), axis=0))


@triton.jit
def _sum_second_moment(sums, v, numel, v_eps, v_hat_scale):
    tl.store(sums + V_HAT_SUM, v_hat_scale * tl.sum(v, axis=0))
    tl.store(sums + NUMEL, numel.to(tl.float32))
    tl.store(sums + RULED_BY_EPS, tl.sum(tl.where(v > 0.0, v_eps / (v + v_eps), 0.0), axis=0))
    tl.store(sums + MOVED, tl.sum(tl.where(v > 0.0, 1.0, 0.0), axis=0))


@triton.jit
def step_chunk(
    runs,
    chunks,
    settings,
    c_t,
    clip_factor,
    skip,
    sums,
    theta_type: tl.constexpr,
    grad_type: tl.constexpr,
    m_format: tl.constexpr,
    amsgrad: tl.constexpr,
    corrected: tl.constexpr,
    times_on_device: tl.constexpr,
    aligned: tl.constexpr,
    moments: tl.constexpr,
    apply: tl.constexpr,
    gradient: tl.constexpr,
    direction: tl.constexpr,
    measure: tl.constexpr,
    parameter: tl.constexpr,
):
    """One chunk's part of a step, as `step_block` of padam.cpp.

    runs: (tensors, RUN_COLUMNS) int64: addresses (0 where there is none), elements, and the row of settings. chunks:
    (chunks, 2) int32: the tensor, and the number within it. settings: (rows, SETTINGS) float32. c_t, clip_factor, skip:
    a float32 each, or None. sums: (chunks, STEP_SUMS) float32, zeros.
    """
    chunk = tl.program_id(0).to(tl.int64)
    run = runs + tl.load(chunks + 2 * chunk) * N_RUN_COLUMNS
    start = tl.load(chunks + 2 * chunk + 1).to(tl.int64) * CHUNK
    theta_at = tl.load(run + 0)
    grad_at = tl.load(run + 1)
    exp_avg_at = tl.load(run + 2)
    exp_avg_sq_at = tl.load(run + 3)
    lr_at = tl.load(run + 7)
    numel = tl.load(run + 8)
    row = settings + tl.load(run + 9) * N_SETTINGS

    one_minus_beta1 = tl.load(row + 0)
    beta2 = tl.load(row + 1)
    one_minus_beta2 = tl.load(row + 2)
    scale = tl.load(row + 3)
    adam_scale = tl.load(row + 4)
    v_eps = tl.load(row + 5)
    v_hat_scale = tl.load(row + 6)
    power_scale = tl.load(row + 7)
    p = tl.load(row + 8)
    eps = tl.load(row + 9)
    l2 = tl.load(row + 10)
    sign = tl.load(row + 11)
    time = tl.load(row + 12)
    lr = tl.load(row + 13)
    weight_decay = tl.load(row + 14)
    if times_on_device:
        time = tl.load(tl.load(run + 6).to(tl.pointer_type(tl.float32)))
        scale, adam_scale, v_eps, v_hat_scale = _constants_at(time, tl.load(row + 15), tl.load(row + 16), p, eps)
    lr = tl.load(lr_at.to(tl.pointer_type(tl.float32)), mask=lr_at != 0, other=lr)

    left = tl.minimum(numel - start, CHUNK).to(tl.int32)
    if skip is not None:
        left = tl.where(tl.load(skip) == 0, left, 0)
    if aligned:  # as the addresses are: a mask is then the same for all elements of a vector
        left = tl.multiple_of(left, 16)
    offsets = tl.arange(0, CHUNK)  # in 32 bits: 64 would be two instructions for each element
    held = offsets < left
    sums += chunk * N_SUMS

    if m_format == FP32:
        exp_avg_ptr = _elements(exp_avg_at, start, offsets, tl.float32, m_format, aligned)
        exp_avg_sq_ptr = _elements(exp_avg_sq_at, start, offsets, tl.float32, m_format, aligned)
        m = tl.load(exp_avg_ptr, mask=held, other=0.0)
        v = tl.load(exp_avg_sq_ptr, mask=held, other=0.0)
    else:
        m_type: tl.constexpr = tl.uint16 if m_format == BITS_16 else tl.int8
        exp_avg_ptr = _elements(exp_avg_at, start, offsets, m_type, m_format, aligned)
        exp_avg_sq_ptr = _elements(exp_avg_sq_at, start, offsets, tl.uint16, m_format, aligned)
        shifted = (tl.load(exp_avg_sq_ptr, mask=held, other=0).to(tl.int32) + _V_ZERO) << _V_SHIFT
        m = _m_of(tl.load(exp_avg_ptr, mask=held, other=0).to(tl.int32), shifted, m_format)
        v = _v_of(shifted)
    theta_ptr = _elements(theta_at, start, offsets, theta_type, m_format, aligned)
    if apply or moments:
        needed = held
        if not apply:
            needed = offsets < tl.where(l2 != 0, left, 0)
        theta = tl.load(theta_ptr, mask=needed, other=0.0).to(tl.float32)
        if corrected:
            correction_ptr = _elements(tl.load(run + 5), start, offsets, tl.int16, m_format, aligned)
            theta = _joined(theta, tl.load(correction_ptr, mask=needed, other=0).to(tl.int32), theta_type)

    if (moments or gradient) or measure:  # Triton before 3.3 knows no longer chains
        g = tl.load(_elements(grad_at, start, offsets, grad_type, m_format, aligned), mask=held, other=0.0).to(
            tl.float32
        )
        if gradient:
            tl.store(sums + GRAD_SQ, tl.sum(g * g, axis=0))
        if measure:
            unclipped = g
            if clip_factor is not None:
                unclipped = g * (1.0 / tl.load(clip_factor))
            _sum_norms(sums, unclipped, held, p, eps, power_scale)
        if moments:
            # 0 times an infinite parameter would be NaN.
            g = sign * g + tl.where(l2 != 0, l2 * theta, 0.0)
            m = _lerp(m, g, one_minus_beta1)
            weighted = one_minus_beta2 * g  # times g: g * g alone would overflow earlier than v
            if m_format != FP32:
                # What is stored is what the rest of the step sees, in this pass as in another.
                v = beta2 * v + weighted * g + _V_SMALLEST
                random = _random_bits(tl.load(run + 10), time, tl.load(run + 11) + start, offsets)
                shifted = _round_v(v, random)
                v = _v_of(shifted)
                m_code, m = _round_m(m, shifted, random, m_format)
                tl.store(exp_avg_ptr, m_code.to(m_type), mask=held)
                tl.store(exp_avg_sq_ptr, ((shifted >> _V_SHIFT) - _V_ZERO).to(tl.uint16), mask=held)
            else:
                v = weighted * g + beta2 * v
                tl.store(exp_avg_ptr, m, mask=held)
                tl.store(exp_avg_sq_ptr, v, mask=held)

    if amsgrad:
        v_type: tl.constexpr = tl.float32 if m_format == FP32 else tl.uint16
        maximum_ptr = _elements(tl.load(run + 4), start, offsets, v_type, m_format, aligned)
        v = _running_maximum(maximum_ptr, v if m_format == FP32 else shifted, held, m_format, moments)
    if measure:
        _sum_second_moment(sums, v, left, v_eps, v_hat_scale)

    if apply or direction:
        x = v + v_eps  # which stored codes make no subnormal number: v is 0 or 2^-97 at least
        d = m * scale * _power(x, -p, m_format != FP32)
        if direction or parameter:
            d = tl.where(held, d, 0.0)
        if direction:
            tl.store(sums + DIRECTION_SQ, tl.sum(d * d, axis=0))
            adam = m * adam_scale
            tl.store(sums + ADAM_SQ, tl.sum(tl.where(held, adam * (adam / x), 0.0), axis=0))
        if apply:
            rate = lr
            if c_t is not None:
                rate = lr * tl.load(c_t)
            decay = tl.where(weight_decay != 0, (lr * weight_decay) * theta, 0.0)
            exact = theta - (rate * d + decay)
            theta = exact.to(theta_type)
            if corrected:
                theta = _rounded(exact, theta_type)
                correction = _correction(exact, theta.to(tl.float32), theta_type)
                tl.store(correction_ptr, correction.to(tl.int16), mask=held)
            tl.store(theta_ptr, theta, mask=held)
            if parameter:
                stored = tl.where(held, theta.to(tl.float32), 0.0)
                tl.store(sums + PARAM_SQ, tl.sum(stored * stored, axis=0))
                tl.store(sums + UPDATE_SQ, tl.sum(d * d, axis=0) * rate * rate)


@triton.jit
def add_chunks(chunk_sums, ends, sums, tile: tl.constexpr):
    """One column of one tensor a program, in an order that does not depend on the launch.

    ends: of every tensor, its first chunk, the one after its last, and its row of `sums`.
    """
    run = tl.program_id(0)
    column = tl.program_id(1)
    first = tl.load(ends + 3 * run)
    stop = tl.load(ends + 3 * run + 1)
    row = tl.load(ends + 3 * run + 2)
    total = tl.zeros([tile], dtype=tl.float64)
    for begin in range(first, stop, tile):
        chunk = begin + tl.arange(0, tile)
        total += tl.load(chunk_sums + chunk * N_SUMS + column, mask=chunk < stop, other=0.0).to(tl.float64)
    tl.store(sums + row * N_SUMS + column, tl.sum(total, axis=0))
