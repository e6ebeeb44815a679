"""The kernel in C++, against float64 and against the tensor step."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.measure import implicit_bias
from hf_pdyn.measure.windows import QUANTITIES
from hf_pdyn.optim import tensor_step
from hf_pdyn.optim.fused import cpu
from hf_pdyn.optim.hyperparameters import TENSOR_STEP_ONLY
from hf_pdyn.optim.state_format import V_STORAGE, codes_of, decode_v
from hf_pdyn.optim.step_work import STEP_SUMS, SUMS, StepSums, Task, Update, squares_to_match
from hf_pdyn.tensors.sharding import Piece
from tests.optim.fused.comparison import (
    DEFAULTS,
    FORMATS,
    SETTINGS,
    assert_corrected_as_in_the_tensor_step,
    assert_not_numbers_as_in_the_tensor_step,
    assert_rounded_as_in_the_tensor_step,
    assert_two_passes_are_one,
    copy_of,
    in_format,
    update_of,
)

# One step from float32 moments: theta, m and v round at 6e-8, x^-p is off by at most 4e-7, and p itself rounds at up to
# 6e-8, which v_hat^-p multiplies by its logarithm, here up to 37.
STEP_TOLERANCE = 3e-6
# The same twice, in squares. Their float32 sums within 512 elements, 16 of which are added at a time, lose less.
SUM_TOLERANCE = 6e-6

# At 1.5 and without eps, squares of directions (1e40) are no float32: the sums of such a tensor are infinite.
EXPONENTS = [-0.4, 0.0, 0.25, 0.37, 0.5, 0.97, 1.0, 1.3]
ALL = Task.MOMENTS | Task.APPLY | Task.GRADIENT | Task.DIRECTION | Task.MEASURE | Task.PARAMETER


def group(**options: Any) -> dict[str, Any]:
    return {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-16,
        "p": 0.37,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "maximize": False,
        **TENSOR_STEP_ONLY,
        **options,
    }


def update(numel: int, options: dict[str, Any], *, amsgrad: bool = False, seed: int = 0) -> Update:
    """In the middle of a run: moments of gradients over eight orders of magnitude.

    What the step adds up has one sign, so that relative errors stay those of the operations.
    """
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (8 * torch.rand(numel, generator=generator) - 8)
    theta, grad, exp_avg = (torch.randn(numel, generator=generator).abs() for _ in range(3))
    if options["maximize"]:
        grad = -grad
    exp_avg_sq = (size * torch.rand(numel, generator=generator)).square()
    maximum = 1.5 * exp_avg_sq if amsgrad else None
    return Update(options, theta, theta, grad * size, exp_avg * size, exp_avg_sq, maximum, 7.0)


def doubled(original: Update) -> Update:
    names = ("theta", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    tensors = {name: getattr(original, name) for name in names}
    copies = {name: None if value is None else value.double() for name, value in tensors.items()}
    return Update(original.group, original.holder, t=original.t, **copies)


def assert_equal_moves(ours: Update, exact: Update) -> None:
    """theta by the size of its update, which is what the step has to get right."""
    torch.testing.assert_close(ours.exp_avg.double(), exact.exp_avg, rtol=STEP_TOLERANCE, atol=1e-12)
    torch.testing.assert_close(ours.exp_avg_sq.double(), exact.exp_avg_sq, rtol=STEP_TOLERANCE, atol=1e-30)
    torch.testing.assert_close(ours.second_moment.double(), exact.second_moment, rtol=STEP_TOLERANCE, atol=1e-30)
    largest = exact.theta.abs().max().item() if exact.theta.numel() else 0.0
    torch.testing.assert_close(ours.theta.double(), exact.theta, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE * largest)


OPTIONS: dict[str, dict[str, Any]] = {
    "decoupled": {},
    "coupled": {"decoupled_weight_decay": False},
    "maximize": {"maximize": True, "decoupled_weight_decay": False},
    "without eps": {"eps": 0.0},
    "large eps": {"eps": 1e-3},
    "tensor lr": {"lr": torch.tensor([1e-2])},
}


@pytest.mark.parametrize("numel", [1, 7, 511, 512, 513, 16_384, 16_385, 100_003])
@pytest.mark.parametrize("p", EXPONENTS)
def test_sizes_around_blocks_and_chunks(numel: int, p: float) -> None:
    ours = update(numel, group(p=p, lr=1e-3))
    exact = doubled(ours)
    cpu.advance([ours], Task.MOMENTS | Task.APPLY)
    tensor_step.advance([exact], Task.MOMENTS | Task.APPLY)
    assert_equal_moves(ours, exact)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there, compilers vectorise loops")
@pytest.mark.parametrize("passes", ["one pass", "two passes"])
@pytest.mark.parametrize("state_dtype", ["fp32", *FORMATS])
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("name", ["decoupled", "coupled", "maximize", "amsgrad", "short moments"])
def test_where_a_tensor_is_cut_does_not_show(name: str, p: float, state_dtype: str, passes: str) -> None:
    """Bit for bit, by cuts that leave less than a register: so shards of a tensor step as the whole does."""
    options = {"amsgrad": {"amsgrad": True}, "short moments": {"betas": (0.3, 0.5)}, **OPTIONS}[name]
    whole = update(3_000, group(p=p, **options), amsgrad=name == "amsgrad")
    if state_dtype != "fp32":
        whole = in_format(whole, state_dtype)
    parts = [whole._cut(start, stop - start, None) for start, stop in pairwise([0, 1, 6, 15, 40, 553, 1_600, 3_000])]
    parts = [copy_of(part) for part in parts]
    sums = []
    for updates in ([whole], parts):
        if passes == "one pass":
            sums.append(cpu.advance(updates, Task.MOMENTS | Task.APPLY | Task.GRADIENT).sum(0))
        else:
            sums.append(cpu.advance(updates, Task.MOMENTS | Task.GRADIENT | Task.DIRECTION).sum(0))
            cpu.advance(updates, Task.APPLY, scale=torch.full((), 1.25, dtype=torch.float64))
    torch.testing.assert_close(*sums, rtol=SUM_TOLERANCE, atol=0)
    for own in ("theta", "exp_avg", "exp_avg_sq"):
        assert torch.equal(codes_of(torch.cat([getattr(part, own) for part in parts])), codes_of(getattr(whole, own)))


@pytest.mark.parametrize("numel", [1, 5, 8, 21])
@pytest.mark.parametrize("state_dtype", ["fp32", *FORMATS])
@pytest.mark.parametrize("p", EXPONENTS)
def test_sums_are_of_real_elements_alone(p: float, state_dtype: str, numel: int) -> None:
    """Also where eps is 0 and v keeps nothing of what it was: an element of zeros would make them NaN."""
    ours = [update(numel, group(p=p, eps=0.0, betas=(0.6, 0.0)), seed=seed) for seed in range(40)]
    if state_dtype != "fp32":
        ours = [in_format(one, state_dtype) for one in ours]
    sums = cpu.advance(ours, Task.MOMENTS | Task.DIRECTION | Task.GRADIENT)
    exact = tensor_step.advance(ours, Task.DIRECTION | Task.GRADIENT)
    columns = [STEP_SUMS.index(name) for name in ("grad_sq", "direction_sq", "adam_sq")]
    torch.testing.assert_close(sums[:, columns], exact[:, columns].double(), rtol=SUM_TOLERANCE, atol=0)


@pytest.mark.parametrize(("p", "size"), [(2.0, 1e-5), (1.5, 1e-6), (-1.0, 1e-6)])
def test_sums_of_a_first_step_fit_float32(p: float, size: float) -> None:
    """Bias correction takes a factor of 1e5 and more from the squares, or gives it to them."""
    gradients = [torch.full((numel,), size) for numel in (64, 600)]
    ours = [Update(group(p=p), *[torch.zeros_like(g)] * 2, g, *torch.zeros(2, g.numel()), None, 1.0) for g in gradients]
    sums = cpu.advance(ours, Task.MOMENTS | Task.DIRECTION)
    exact = tensor_step.advance([doubled(one) for one in ours], Task.DIRECTION)
    columns = [STEP_SUMS.index(name) for name in ("direction_sq", "adam_sq")]
    torch.testing.assert_close(sums[:, columns], exact[:, columns], rtol=2 * SUM_TOLERANCE, atol=0)


def test_ten_million_elements() -> None:
    ours = update(10_000_019, group())
    exact = doubled(ours)
    cpu.advance([ours], Task.MOMENTS | Task.APPLY)
    tensor_step.advance([exact], Task.MOMENTS | Task.APPLY)
    assert_equal_moves(ours, exact)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_sum_equals_float64(name: str, amsgrad: bool, p: float) -> None:
    options = group(p=p, **{"lr": 1e-4, **OPTIONS[name]})
    ours = update(20_011, options, amsgrad=amsgrad)
    exact = doubled(ours)
    grad = exact.grad.clone() / 0.25
    sums = dict(zip(STEP_SUMS, cpu.advance([ours], ALL, clip_factor=torch.tensor(0.25))[0], strict=True))
    squares = tensor_step.advance([exact], Task.MOMENTS | Task.DIRECTION)
    tensor_step.advance([exact], Task.APPLY)
    assert_equal_moves(ours, exact)
    v_eps = options["eps"] * (1 - 0.999**exact.t)
    expected = {
        "grad_sq": (0.25 * grad).square().sum(),
        "direction_sq": squares_to_match(squares)[0, 0],
        "update_sq": squares_to_match(squares)[0, 0] * float(options["lr"]) ** 2,
        "param_sq": exact.theta.square().sum(),
        "v_hat_sum": exact.second_moment.sum() / (1 - 0.999**exact.t),
        "ruled_by_eps": (v_eps / (exact.second_moment + v_eps)).sum(),
        "moved": torch.tensor(float((exact.second_moment > 0).sum()), dtype=torch.float64),
        "one_norm": implicit_bias.perturbed_one_norm(grad, eps=options["eps"]),
        "N_p": implicit_bias.power_norm(grad, p=p, eps=options["eps"]),
        "numel": torch.tensor(20_011.0, dtype=torch.float64),
    }
    for column, value in expected.items():
        torch.testing.assert_close(sums[column], value, rtol=SUM_TOLERANCE, atol=0, msg=lambda m, c=column: f"{c}: {m}")


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_two_passes_are_one_with_c_between(name: str, amsgrad: bool, p: float) -> None:
    """To one rounding: the second pass computes what the one pass would have."""
    options = group(p=p, **{"lr": 1e-4, **OPTIONS[name]})
    once, twice = (update(3_001, options, amsgrad=amsgrad) for _ in range(2))
    exact = doubled(once)
    scale = torch.tensor(1.75)
    cpu.advance([once], Task.MOMENTS | Task.APPLY, scale=scale)
    sums = cpu.advance([twice], Task.MOMENTS | Task.DIRECTION)
    cpu.advance([twice], Task.APPLY, scale=scale)
    torch.testing.assert_close(twice.theta, once.theta, rtol=1e-7, atol=1e-7)
    assert torch.equal(twice.exp_avg, once.exp_avg)
    squares = tensor_step.advance([exact], Task.MOMENTS | Task.DIRECTION)
    torch.testing.assert_close(squares_to_match(sums), squares_to_match(squares), rtol=SUM_TOLERANCE, atol=0)


@pytest.mark.parametrize("theta_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_is_rounded_once_and_as_torch_rounds(theta_dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """Ties to even in all 2^16 bf16 numbers but NaN, and half an update between two of them."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = values[values.isfinite() & (values.abs() < 1e30)].float()
    pairs = []
    for path in (cpu.advance, tensor_step.advance):
        one = update(values.numel(), group(p=0.0, lr=1.0, weight_decay=2.0**-8))
        one.theta, one.grad = values.to(theta_dtype), one.grad.to(grad_dtype)
        path([one], Task.MOMENTS | Task.APPLY)
        pairs.append(one)
    ours, theirs = (one.theta.float() for one in pairs)
    unit = 2.0**-7 if theta_dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(ours, theirs, rtol=unit, atol=0)
    if theta_dtype == torch.bfloat16:  # where a product fused with a sum falls on the other side of a tie
        assert (ours != theirs).float().mean() < 1e-3


SPECIAL = (0.0, 1e-45, 1e-40, 1e-30, 1e-19, 1.0, 1e19, 1e38, math.inf, -math.inf, math.nan)


@pytest.mark.parametrize("eps", [0.0, 1e-40, 1e-16])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("p", EXPONENTS)
def test_nan_and_infinity_appear_where_the_tensor_step_has_them(p: float, amsgrad: bool, eps: float) -> None:
    """Gradients whose squares underflow or overflow, zero, infinity and NaN, among numbers; and again after a step."""
    grads = torch.tensor(SPECIAL).repeat(60)
    pairs = []
    for path in (cpu.advance, tensor_step.advance):
        options = group(p=p, eps=eps, weight_decay=0.0, lr=1e-3)
        zeros = [torch.zeros_like(grads) for _ in range(3)]
        one = Update(
            options, zeros[0], torch.ones_like(grads), grads.clone(), *zeros[:2], zeros[2] if amsgrad else None, 1
        )
        path([one], Task.MOMENTS | Task.APPLY)
        after_one = one.theta.clone()
        one.grad, one.t = torch.full_like(grads, 0.5), 2
        path([one], Task.MOMENTS | Task.APPLY)
        pairs.append((after_one, one.exp_avg, one.exp_avg_sq, one.theta))
    for ours, theirs in zip(*pairs, strict=True):
        # Subnormal squares are rounded otherwise where the product is fused with the sum.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("p", [-1.0, -0.97, -0.4, -0.1, 0.1, 0.2, 0.25, 0.33, 0.37, 0.45, 0.5, 0.6, 0.9, 0.97])
def test_a_power_is_good_to_a_millionth_at_every_size(p: float) -> None:
    """v over all of float32's normal numbers, m = 1: what is left of theta = 0 is -v^-p. torch's own is off by 5e-7."""
    v = torch.logspace(-37.9, 38.5, 200_001)
    zeros = [torch.zeros_like(v) for _ in range(2)]
    options = group(p=p, eps=1.2e-38, lr=1.0, weight_decay=0.0)
    one = Update(options, *zeros[:1], zeros[0], zeros[1], torch.ones_like(v), v, None, 1e9)
    cpu.advance([one], Task.APPLY)
    exact = (v.double() + 1.2e-38) ** -torch.tensor(p).double()  # p as float32 has it
    normal = (exact > torch.finfo(torch.float32).tiny) & (exact < torch.finfo(torch.float32).max)
    assert normal.sum() > 150_000
    error = (one.theta.double() / -exact - 1).abs()[normal].max().item()
    assert error < 1e-6


@pytest.mark.parametrize("p", [-0.4, 0.25, 0.37, 0.5, 1.0])
def test_a_power_of_every_code_is_good_to_a_millionth(p: float) -> None:
    codes = torch.arange(2**16).to(torch.int16).view(V_STORAGE)
    one = update(codes.numel(), group(p=p, eps=1e-16, lr=1.0, weight_decay=0.0))
    one = replace(one, theta=torch.zeros(2**16), exp_avg=torch.ones(2**16, dtype=torch.bfloat16), exp_avg_sq=codes)
    one.t = 1e9
    cpu.advance([one], Task.APPLY)
    exact = (decode_v(codes).double() + torch.tensor(1e-16).double()) ** -torch.tensor(p).double()
    assert (one.theta.double() / -exact - 1).abs().max().item() < 1e-6


def test_sums_over_a_hundred_million_elements_lose_no_digits() -> None:
    """A float32 sum of these stops growing at a sixth of it."""
    tensor = torch.full((100_000_000,), 0.1)
    one = Update(group(), tensor, tensor, tensor, tensor, tensor, None, 1)
    grad_sq = cpu.advance([one], Task.GRADIENT)[0, 0].item()
    assert grad_sq == pytest.approx(tensor.numel() * float(tensor[0]) ** 2, rel=SUM_TOLERANCE)


def test_the_number_of_threads_does_not_show() -> None:
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        updates = [update(numel, group(), seed=numel) for numel in (100_000, 3, 0, 40_000, 16_384)]
        sums = cpu.advance(updates, ALL)
        results.append([sums, *(one.theta for one in updates)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_tensors_of_several_groups_dtypes_and_steps_in_one_call() -> None:
    settings = [group(p=0.1), group(p=0.6, maximize=True), group(eps=1e-8)]
    updates = [update(100 + i, settings[i % 3], seed=i) for i in range(9)]
    for i, one in enumerate(updates):
        one.t = float(1 + i // 3)
        if i % 2:
            one.theta, one.grad = one.theta.bfloat16(), one.grad.bfloat16()
    exact = [doubled(one) for one in updates]
    sums = cpu.advance(updates, Task.MOMENTS | Task.APPLY | Task.GRADIENT)
    tensor_step.advance(exact, Task.MOMENTS | Task.APPLY)
    for one, other in zip(updates, exact, strict=True):
        tolerance = 8e-3 if one.theta.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(one.theta.double(), other.theta, rtol=tolerance, atol=tolerance)
    expected = torch.stack([one.grad.double().square().sum() for one in updates])
    torch.testing.assert_close(sums[:, 0], expected, rtol=SUM_TOLERANCE, atol=0)


def test_pieces_of_a_flat_holder_are_summed_apart_and_its_padding_moves_too() -> None:
    """As under ZeRO: a flat tensor that holds two parameters, some padding between them and at the end."""
    flat, whole = (nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2))
    pieces = [Piece(flat, 600, 300), Piece(flat, 10, 500)]
    optimizers = [Padam([flat], p=0.3, fused=True), Padam([whole], p=0.3, fused=False)]
    flat.grad = torch.randn(1000)
    whole.grad = flat.grad.clone()
    request = StepSums(pieces, measure=True)
    optimizers[0].sum_next_step(request)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(flat, whole, rtol=1e-6, atol=1e-7)
    assert request.rows is not None and list(request.summed) == pieces
    for row, piece in zip(request.rows, pieces, strict=True):
        values = dict(zip(SUMS, row.tolist(), strict=True))
        assert values["grad_sq"] == pytest.approx(piece.of(flat.grad).double().square().sum().item(), rel=SUM_TOLERANCE)
        assert values["param_sq"] == pytest.approx(piece.of(flat.detach()).double().square().sum().item(), rel=1e-5)
        assert values["numel"] == piece.numel


@pytest.mark.parametrize("update_scale", ["raw", "adam"])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_reading_is_the_tensor_step_s(update_scale: str, clipped: bool) -> None:
    """Every quantity of every scope to 1e-5, with a layer that has no gradient and one that moves at lr_mult 0."""
    from hf_pdyn.optim.clipping import note_clip

    readings = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 50), nn.Linear(50, 3))
        groups = [{"params": [param], "p": 0.1 * i, "lr": 1e-3 * (i % 4)} for i, param in enumerate(model.parameters())]
        optimizer = Padam(groups, update_scale=update_scale, amsgrad=True, fused=fused)
        statistics = StepStatistics(optimizer, model)
        window = statistics.window()
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator)
            model[2].bias.grad = None
            if clipped:
                total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                note_clip(optimizer, total, 0.5)
            statistics.measure_next_step()
            optimizer.step()
        readings.append(window.read())
    ours, theirs = readings
    assert (ours.steps, ours.measured_steps) == (theirs.steps, theirs.measured_steps) == (4, 4)
    for name in ("grad_norm", "grad_norm_clipped"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-5)
    assert ours.quantities.keys() == theirs.quantities.keys() == set(QUANTITIES)
    for name, values in theirs.quantities.items():
        assert ours.quantities[name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_step_that_is_to_be_skipped_moves_nothing(skip: float) -> None:
    """And with 0 it is the step, bit for bit."""
    ours, expected = (update_of(DEFAULTS, 3000) for _ in range(2))
    cpu.advance([ours], ALL, skip=torch.tensor(skip))
    if not skip:
        cpu.advance([expected], ALL)
    for name in ("theta", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(ours, name), getattr(expected, name))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("state_dtype", ["fp32", *FORMATS])
def test_measuring_does_not_touch_the_step(state_dtype: Any, p: float) -> None:
    """Bit for bit: with all sums, and with none."""
    results = []
    for measured in (False, True):
        param = nn.Parameter(torch.linspace(-1, 1, 5000))
        optimizer = Padam([param], p=p, state_dtype=state_dtype, fused=True)
        for step in range(3):
            param.grad = torch.randn(5000, generator=torch.Generator().manual_seed(step))
            if measured:
                optimizer.sum_next_step(StepSums([Piece(param)], measure=True))
            optimizer.step()
        results.append(param.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_nan_and_infinity_of_v_reach_theta_beside_a_finite_m(p: float, amsgrad: bool) -> None:
    """As after a gradient of 1e30 at beta2 = 0."""
    v = torch.tensor([1.0, math.inf, math.nan, 0.5]).repeat(12)
    thetas = []
    for path in (cpu.advance, tensor_step.advance):
        moments = torch.ones_like(v), v.clone(), v.flip(0).clone() if amsgrad else None
        one = Update(group(p=p, weight_decay=0.0), v, torch.ones_like(v), torch.ones_like(v), *moments, 7.0)
        path([one], Task.APPLY)
        thetas.append(one.theta)
    torch.testing.assert_close(*thetas, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("state_dtype", ["fp32", *FORMATS])
def test_without_eps_what_has_not_moved_gives_what_the_tensor_step_has(state_dtype: str, p: float) -> None:
    v = torch.tensor([0.0, 0.0, 1e-24, 0.5]).repeat(12)
    m = torch.tensor([0.0, 1e-14, 1e-13, 0.2]).repeat(12)
    thetas = []
    for path in (cpu.advance, tensor_step.advance):
        one = Update(group(p=p, eps=0.0), v, torch.ones_like(v), torch.zeros_like(v), m, v, None, 7.0)
        one = in_format(one, state_dtype)
        path([one], Task.APPLY)
        thetas.append(one.theta)
    torch.testing.assert_close(*thetas, rtol=1e-5, atol=0, equal_nan=True)
    assert bool(thetas[0].isfinite().all()) == (p <= 0)


@pytest.mark.parametrize("p", [-11.5, -5.0, 5.0])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_measuring_does_not_touch_the_step_at_exponents_far_off(state_dtype: str, p: float) -> None:
    pairs = []
    for tasks in (Task.MOMENTS | Task.APPLY, ALL):
        one = update(200, group(p=p, lr=1e-3))
        one = in_format(replace(one, exp_avg=one.exp_avg * 0, exp_avg_sq=one.exp_avg_sq * 0, t=1.0), state_dtype)
        cpu.advance([one], tasks)
        pairs.append(one)
    assert torch.equal(pairs[0].theta, pairs[1].theta)
    assert p > 0 or pairs[0].theta.isfinite().all()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the other tests are of these vectors")
def test_the_same_with_shorter_vectors() -> None:
    """Without AVX-512, powers are computed otherwise."""
    chosen = "sizes or power or nan or two_passes or every_sum or fewer_bits or measuring or without_eps"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    result = subprocess.run(
        command, env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "skipped" not in result.stdout


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_moments_in_fewer_bits_are_rounded_as_in_the_tensor_step(state_dtype: str, settings: str) -> None:
    assert_rounded_as_in_the_tensor_step(cpu.advance, state_dtype, settings, numel=20_011)


@pytest.mark.parametrize(
    "tasks",
    [[Task.MOMENTS | Task.APPLY], [ALL], [Task.MOMENTS | Task.DIRECTION, Task.APPLY]],
    ids=["", "measured", "two"],
)
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_moments_in_fewer_bits_are_no_numbers_where_those_of_the_tensor_step_are_none(
    state_dtype: str, tasks: list[Task]
) -> None:
    assert_not_numbers_as_in_the_tensor_step(cpu.advance, state_dtype, tasks, numel=1100)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("state_dtype", ["fp32", *FORMATS])
def test_two_passes_over_moments_are_one(state_dtype: str, p: float) -> None:
    assert_two_passes_are_one(cpu.advance, state_dtype, numel=20_011, tolerance=0.0, p=p)


@pytest.mark.parametrize("grad_type", cpu.DTYPES)
def test_corrections_are_kept_as_in_the_tensor_step(grad_type: torch.dtype) -> None:
    assert_corrected_as_in_the_tensor_step(cpu.advance, torch.bfloat16, numel=20_011, grad_type=grad_type)
