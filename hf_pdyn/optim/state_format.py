"""Formats of the moments that take fewer bytes than float32, as tensor functions: what the kernels are compared to.

==========  ====================================================  ==================================  ==================
format      first moment m                                        second moment v                     bytes a parameter
==========  ====================================================  ==================================  ==================
`fp32`      float32                                               float32                             8
`16bit`     bf16                                                  7 bits of exponent, 9 of mantissa   4
`8_16bit`   sign, 3 bits of exponent, 4 of mantissa, of m / 2^k   as in `16bit`                       3
==========  ====================================================  ==================================  ==================

v is never negative, so a bit of sign would be lost on it. Where its exponent is e, k is e/2 rounded down: |m| is at
most 7.3 times sqrt(v) at betas of 0.9 and 0.999, so m has the range it needs without scales of blocks, and m and v of
an element depend on no other; beyond 15.4 times 2^k, it is stored as that. Codes of v and of the 8-bit m count up
through floats from a smallest one, which stands for 0 and is subtracted again: there are no subnormal numbers to treat
apart, and 0 stays 0.

Rounding is stochastic: to nearest, beta2 = 0.999 would move v by less than half a unit in the last place, and v would
stand still. The random bits are a hash of the step count, the parameter's number and the element's index in the whole
parameter, so that a run repeats itself bit for bit, also resumed or sharded otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim.hyperparameters import StateDtype
from hf_pdyn.tensors.sharding import local, start_of

V_STORAGE = torch.float16
"""Holds the 16 bits of v, which are no float16: of 16-bit types, collectives know floats alone."""

M_STORAGE = {"16bit": torch.bfloat16, "8_16bit": torch.int8}

V_SHIFT, V_ZERO, V_LARGEST = 14, (127 - 88) << 9, 65535
"""How many of a float's bits are rounded away; what is left of 2^-88, which stands for 0; the code of the largest v,
1.1e12, which also stands for what is larger, infinity and NaN: m beside it is infinite or NaN then."""

M_SHIFT, M_ZERO, M_LARGEST, M_NAN = 19, (127 - 4) << 4, 127, -128
"""Bits that are rounded away, zero and the largest of |m| / 2^k: 2^-4 stands for 0, the largest is 15.4. -128 stands
for infinity and NaN."""

_V_SMALLEST, _M_SMALLEST = 2.0**-88, 2.0**-4


def format_of(exp_avg: Tensor) -> StateDtype:
    """The format of a stored first moment."""
    return "16bit" if exp_avg.dtype == torch.bfloat16 else "8_16bit" if exp_avg.dtype == torch.int8 else "fp32"


def decode(exp_avg: Tensor, *second_moments: Tensor) -> tuple[Tensor, ...]:
    """M and second moments of one element order as they are meant: float32, new tensors unless stored so.

    exp_avg: with the v beside which it was stored first among `second_moments`.
    """
    if format_of(exp_avg) == "fp32":
        return exp_avg, *second_moments
    m = exp_avg.float() if exp_avg.dtype == torch.bfloat16 else _decode_m8(exp_avg, second_moments[0])
    return m, *map(decode_v, second_moments)


def decode_v(stored: Tensor) -> Tensor:
    """A second moment in float32, from its codes or as it is."""
    if stored.dtype != V_STORAGE:
        return stored
    return ((_codes(stored) + V_ZERO) << V_SHIFT).view(torch.float32) - _V_SMALLEST


def codes_of(stored: Tensor) -> Tensor:
    """A moment's codes as int32, in the order of what they stand for; of floats, the numbers themselves."""
    if stored.dtype == torch.int8:
        return stored.int()
    if stored.dtype == torch.bfloat16:
        bits = stored.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)
    return _codes(stored) if stored.dtype == V_STORAGE else stored


def _codes(stored: Tensor) -> Tensor:
    return stored.view(torch.int16).int() & 0xFFFF


def _decode_m8(stored: Tensor, v_stored: Tensor) -> Tensor:
    code = stored.int()
    a = ((code.abs() + M_ZERO) << M_SHIFT).view(torch.float32) - _M_SMALLEST
    m = a * _two_to_k(_codes(v_stored)) * code.sign()
    return m.masked_fill_(code == M_NAN, torch.nan)


def _two_to_k(v_code: Tensor, sign: int = 1) -> Tensor:
    """2^k, or 2^-k, exactly."""
    k = ((v_code >> 9) - 88) >> 1
    return ((sign * k + 127) << 23).view(torch.float32)


def encode(m: Tensor, v: Tensor, into: tuple[Tensor, Tensor], random: Tensor) -> None:
    """Store float32 moments; random: `random_bits` of the elements."""
    exp_avg, exp_avg_sq = into
    rounded = (v + _V_SMALLEST).view(torch.int32) + (random >> (32 - V_SHIFT)).int()
    code = ((rounded >> V_SHIFT) - V_ZERO).clamp_(max=V_LARGEST)
    code.masked_fill_(~v.isfinite(), V_LARGEST)
    exp_avg_sq.copy_(_as_int16(code).view(V_STORAGE))
    if exp_avg.dtype == torch.bfloat16:
        bits = m.view(torch.int32)
        rounded = (bits + torch.where(m.isfinite(), (random & 0xFFFF).int(), 0)) >> 16
        exp_avg.copy_(rounded.to(torch.int16).view(torch.bfloat16))
    else:
        a = m.abs() * _two_to_k(code, -1) + _M_SMALLEST
        rounded = a.clamp_(max=1e3).view(torch.int32) + (random & ((1 << M_SHIFT) - 1)).int()
        magnitude = ((rounded >> M_SHIFT) - M_ZERO).clamp_(max=M_LARGEST)
        signed = torch.where(m < 0, -magnitude, magnitude)
        exp_avg.copy_(signed.masked_fill_(~m.isfinite(), M_NAN).to(torch.int8))


def _as_int16(code: Tensor) -> Tensor:
    return torch.where(code > 0x7FFF, code - 0x10000, code).to(torch.int16)


_MASK = 0xFFFFFFFF


def random_bits(numel: int, *, step: Any, number: int, start: int, device: torch.device) -> Tensor:
    """32 random bits of each of `numel` elements as int64: of those from index `start` of parameter `number`.

    step: the count of steps, a number or a 0-d tensor.
    """
    key = _mixed(_mixed(torch.full((), number & _MASK, device=device, dtype=torch.int64)) + _count(step, device))
    index = torch.arange(start, start + numel, device=device)
    return _half_mixed((index & _MASK) + (key ^ _mixed(index >> 32)))


def _count(step: Any, device: torch.device) -> Any:
    return step.to(device=device, dtype=torch.int64) if isinstance(step, Tensor) else int(step)


def _mixed(x: Tensor) -> Tensor:
    """A permutation of 32 bits after which each depends on many: `lowbias32` of C. Wellons without its first line."""
    x = _half_mixed(x)
    return x ^ (x >> 16)


def _half_mixed(x: Tensor) -> Tensor:
    """Without the last line either: rounding needs numbers of an element that are independent from step to step.

    Those of two elements at one step nearly are, less so in lower bits and beyond 2^26 elements apart; v takes the
    upper ones, since what is rounded into it lasts longer than in m.
    """
    x = (x * 0x7FEB352D) & _MASK
    return ((x ^ (x >> 15)) * 0x846CA68B) & _MASK


def store(m: Tensor, v: Tensor, into: tuple[Tensor, Tensor], *, step: Any, number: int, start: int) -> None:
    """Round moments into `into`, as a step does. Indices count elements as they lie in memory, without gaps."""
    random = random_bits(m.numel(), step=step, number=number, start=start, device=m.device)
    exp_avg = into[0]
    contiguous = exp_avg.is_contiguous()
    encode(m, v, into, random.view(m.shape) if contiguous else random.as_strided(exp_avg.shape, exp_avg.stride()))


def keep_larger(maximum: Tensor, than: Tensor) -> None:
    """Let a stored running maximum of second moments take in another stored one, in place."""
    maximum.copy_(torch.where(_codes(than) > _codes(maximum), than, maximum))


def storage_of(state_dtype: StateDtype, param_dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes in which m and v of a parameter are stored."""
    if state_dtype == "fp32":
        dtype = torch.promote_types(param_dtype, torch.float32)
        return dtype, dtype
    return M_STORAGE[state_dtype], V_STORAGE


def convert_state(state: dict[str, Any], to: StateDtype, number: int) -> StateDtype:
    """Store the moments of an optimizer's state in another format, rounded as by a step 0; returns the format before.

    number: of the parameter.
    """
    if "exp_avg" not in state:
        return to
    before = format_of(state["exp_avg"])
    if before != to:
        own = {name: local(state[name]) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if name in state}
        m, v, *maximum = (moment.float() for moment in decode(*own.values()))
        of_m, of_v = storage_of(to, torch.float32)
        for name in own:
            state[name] = torch.zeros_like(state[name], dtype=of_m if name == "exp_avg" else of_v)
        into = [local(state[name]) for name in own]
        if to == "fp32":
            for stored, values in zip(into, (m, v, *maximum), strict=True):
                stored.copy_(values)
        else:
            start = start_of(state["exp_avg"])
            store(m, v, (into[0], into[1]), step=0, number=number, start=start)
            for values in maximum:  # beside an m that nobody needs
                store(m, values, (torch.empty_like(into[0]), into[2]), step=0, number=number, start=start)
    return before
