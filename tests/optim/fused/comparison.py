"""Updates to step by one path and another, and how equal the results must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.measure import implicit_bias
from hf_pdyn.optim import equation, tensor_step, weight_correction
from hf_pdyn.optim.fused.tolerance import MOMENT, SUM, of_parameter
from hf_pdyn.optim.hyperparameters import TENSOR_STEP_ONLY
from hf_pdyn.optim.state_format import codes_of, convert_state, decode
from hf_pdyn.optim.step_work import STEP_SUMS, SUMS, Task, Update

STEP = Task.MOMENTS | Task.APPLY
EVERYTHING = STEP | Task.GRADIENT | Task.MEASURE | Task.PARAMETER

DEFAULTS: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-16,
    "p": 0.37,
    "weight_decay": 0.1,
    "amsgrad": False,
    "maximize": False,
    "decoupled_weight_decay": True,
    **TENSOR_STEP_ONLY,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "decoupled decay": {},
    "no decay": {"weight_decay": 0.0},
    "coupled decay": {"decoupled_weight_decay": False},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True, "decoupled_weight_decay": False},
    "no first moment": {"betas": (0.0, 0.6)},
    "short first moment": {"betas": (0.3, 0.0)},
    "large eps": {"eps": 1e-3},
}
EXPONENTS = [-0.4, 0.0, 0.25, 0.37, 0.5, 1.0]


MEASURED = list(SUMS)


def update_of(
    group: dict[str, Any],
    numel: int,
    *,
    seed: int = 0,
    theta_type: torch.dtype = torch.float32,
    grad_type: torch.dtype | None = None,
    t: float = 3.0,
    offset: int = 0,
    shape: tuple[int, ...] | None = None,
    device: str = "cpu",
) -> Update:
    """Moments as after some steps, over several orders of magnitude. offset: elements before the first one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(dtype: torch.dtype) -> Tensor:
        values = torch.randn(offset + numel, generator=generator).to(device, dtype)[offset:]
        return values if shape is None else values.view(shape)

    theta, grad, m = normal(theta_type), normal(grad_type or theta_type), normal(torch.float32)
    v = normal(torch.float32).square_() * 1e-2
    maximum = normal(torch.float32).square_() * 1e-2 if group["amsgrad"] else None
    return Update(group, theta, theta, grad, m, v, maximum, t)


def in_format(update: Update, state_dtype: str) -> Update:
    """The same with its moments stored in another format, of elements around the 2^32nd of a parameter."""
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    state = {name: value.clone() for name in names if (value := getattr(update, name)) is not None}
    convert_state(state, state_dtype, number=0)
    return replace(update, **state, number=5, start=2**32 - 1000)


def assert_same_codes(ours: Sequence[Update], expected: Sequence[Update]) -> None:
    """Codes apart by one at most, in some of a thousand elements; theta where they are alike."""
    for a, b in zip(ours, expected, strict=True):
        alike = torch.ones_like(a.theta, dtype=torch.bool)
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if getattr(a, name) is not None:
                apart = (codes_of(getattr(a, name)) - codes_of(getattr(b, name))).abs()
                assert apart.max() <= 1 and (apart > 0).float().mean() < 5e-3, name
                alike &= apart == 0
        assert_near(a.theta[alike], b.theta[alike], of_parameter(a.theta.dtype, a.group["p"]), "theta")


def corrected(update: Update) -> Update:
    """The same with a correction of its parameter, which is of 16 bits."""
    exact = torch.randn(update.theta.shape, generator=torch.Generator().manual_seed(9)).to(update.theta.device)
    theta, correction = update.theta.clone(), weight_correction.zeros(update.theta)
    weight_correction.split(exact, theta, correction)
    return replace(update, theta=theta, weight_correction=correction)


def exact_theta(update: Update) -> Tensor:
    assert update.weight_correction is not None
    return weight_correction.joined(update.theta, update.weight_correction)


def assert_corrected_as_in_the_tensor_step(
    advance: Callable[..., Tensor], dtype: torch.dtype, *, numel: int, device: str = "cpu", **options: Any
) -> None:
    """Parameters with their corrections to the tolerance of float32; sums of parameters as they are stored."""
    for settings in SETTINGS.values():
        group = {**DEFAULTS, **settings}
        before = [
            corrected(update_of(group, numel, seed=seed, theta_type=dtype, device=device, **options))
            for seed in range(2)
        ]
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        sums = advance(ours, EVERYTHING)
        tensor_step.advance(expected, STEP)
        for a, b in zip(ours, expected, strict=True):
            found = exact_theta(a)
            assert_near(found, exact_theta(b), of_parameter(torch.float32, group["p"]), "theta")
            assert_near(a.theta.float(), found, of_parameter(dtype, 0.5), "theta as it is stored")
        assert_sums(sums, before, ours, MEASURED)


FORMATS = ["16bit", "8_16bit"]


def assert_rounded_as_in_the_tensor_step(
    advance: Callable[..., Tensor], state_dtype: str, settings: str, *, numel: int, device: str = "cpu"
) -> None:
    """Around the 2^32nd element of a parameter, measured and not; sums are those of what is stored then."""
    group = {**DEFAULTS, **SETTINGS[settings]}
    for tasks, columns in ((EVERYTHING, MEASURED), (STEP | Task.GRADIENT, ["grad_sq"])):
        before = [in_format(update_of(group, numel, seed=seed, device=device), state_dtype) for seed in range(2)]
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        sums = advance(ours, tasks)
        tensor_step.advance(expected, STEP)
        assert_same_codes(ours, expected)
        assert_sums(sums, before, ours, columns)


def assert_two_passes_are_one(
    advance: Callable[..., Tensor], state_dtype: str, *, numel: int, tolerance: float, p: float = DEFAULTS["p"]
) -> None:
    """Moments and direction first, then the update: the codes of one pass, theta to the tolerance."""
    groups = [{**DEFAULTS, "p": p, "amsgrad": seed == 1} for seed in range(2)]
    before = [in_format(update_of(group, numel, seed=seed), state_dtype) for seed, group in enumerate(groups)]
    twice, once = [list(map(copy_of, before)) for _ in range(2)]
    advance(twice, Task.MOMENTS | Task.DIRECTION)
    advance(twice, Task.APPLY, scale=torch.ones((), dtype=torch.float64))
    advance(once, STEP)
    for a, b in zip(twice, once, strict=True):
        assert torch.equal(codes_of(a.exp_avg), codes_of(b.exp_avg))
        assert torch.equal(codes_of(a.exp_avg_sq), codes_of(b.exp_avg_sq))
        assert_near(a.theta, b.theta, tolerance, "theta")


def assert_not_numbers_as_in_the_tensor_step(
    advance: Callable[..., Tensor], state_dtype: str, tasks: Sequence[Task], *, numel: int
) -> None:
    """Gradients and moments that are no numbers, beside ones that are: in this step, and still in the next.

    tasks: of the passes that make a step.
    """
    before = in_format(update_of(DEFAULTS, numel), state_dtype)
    before.exp_avg[[0, 100, 511, 900, numel - 1]] = -128 if state_dtype == "8_16bit" else torch.nan
    before.grad[[1, 510, 700]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    before.grad.view(torch.int32)[2:66] = 0x7FFFFFFF  # NaN too: with random bits added, one that carries into the sign
    ours, expected = copy_of(before), copy_of(before)
    for _ in range(2):
        sums = {task: advance([ours], task) for task in tasks}
        tensor_step.advance([expected], STEP)
        m, wanted = (decode(one.exp_avg, one.exp_avg_sq)[0] for one in (ours, expected))
        assert m.isnan().nonzero().flatten().tolist() == wanted.isnan().nonzero().flatten().tolist()
        assert torch.equal(m.isinf(), wanted.isinf())
        assert torch.equal(ours.theta.isnan(), expected.theta.isnan())
        numbers = m.isfinite()
        assert 64 < (~numbers).sum() < 80
        assert_near(ours.theta[numbers], expected.theta[numbers], 1e-3, "theta")  # codes may be one apart
        for task, of_task in sums.items():
            if task & Task.DIRECTION:
                assert of_task[0, STEP_SUMS.index("direction_sq")].isnan()
        ours.grad, expected.grad = torch.full_like(ours.grad, 0.1), torch.full_like(ours.grad, 0.1)


def copy_of(update: Update) -> Update:
    names = ("theta", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "weight_correction")
    copies = {name: value if (value := getattr(update, name)) is None else value.clone() for name in names}
    return replace(update, **copies)


# 1e-40 has 16 bits, and its product with beta2 may be rounded before something is added or with it.
SPECIAL = 1e-4


def assert_same(ours: Sequence[Update], expected: Sequence[Update], tolerance: float = 0.0) -> None:
    """tolerance: where it is more than that of the dtype."""
    for a, b in zip(ours, expected, strict=True):
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert_near(getattr(a, name), getattr(b, name), max(MOMENT, tolerance), name)
        assert_near(a.theta, b.theta, max(of_parameter(a.theta.dtype, a.group["p"]), tolerance), "theta")
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)


def assert_near(ours: Tensor | None, expected: Tensor | None, tolerance: float, name: str) -> None:
    assert (ours is None) == (expected is None)
    if ours is not None and expected is not None:
        torch.testing.assert_close(
            ours, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )


def exact_sums(before: Update, after: Update, *, clip_factor: float = 1.0, scale: float = 1.0) -> dict[str, Tensor]:
    """All of STEP_SUMS in float64: of `before`'s gradient, and of `after`, with its moments and theta."""
    group = before.group
    options = {"times": [before.t], "beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"]}
    m, _, second = decode(after.exp_avg, after.exp_avg_sq, after.second_moment)
    moments = [m.double()], [second.double()]
    direction, adam = (equation.update_directions(*moments, p=p, **options)[0] for p in (group["p"], 0.5))
    grad, p = before.grad.double() / clip_factor, group["p"]
    v, v_eps = second.double(), group["eps"] * (1 - group["betas"][1] ** before.t)
    return {
        "grad_sq": before.grad.double().square().sum(),
        "update_sq": (group["lr"] * scale * direction).square().sum(),
        "param_sq": after.theta.double().square().sum(),
        "v_hat_sum": second.double().sum() / (1 - group["betas"][1] ** before.t),
        "one_norm": implicit_bias.perturbed_one_norm(grad, eps=group["eps"]),
        "N_p": implicit_bias.power_norm(grad, p=p, eps=group["eps"]),
        "numel": torch.tensor(float(grad.numel()), dtype=torch.float64, device=grad.device),
        "ruled_by_eps": (v_eps / (v[v > 0] + v_eps)).sum(),
        "moved": (v > 0).double().sum(),
        "direction_sq": direction.square().sum(),
        "adam_sq": adam.square().sum(),
    }


def assert_sums(
    sums: Tensor, before: Sequence[Update], after: Sequence[Update], columns: Sequence[str], **options: float
) -> None:
    """`columns` to SUM, and 0 in all others."""
    assert sums.shape == (len(before), len(STEP_SUMS)) and sums.dtype == torch.float64
    for row, a, b in zip(sums, before, after, strict=True):
        expected = exact_sums(a, b, **options)
        for value, name in zip(row, STEP_SUMS, strict=True):
            if name not in columns:
                assert value == 0, name
                continue
            # Logarithms of either sign cancel: their sum is good to SUM of as many ones.
            atol = SUM * a.theta.numel() if name == "N_p" and a.group["p"] == 1 else 0.0
            torch.testing.assert_close(
                value, expected[name], rtol=SUM, atol=atol, equal_nan=True, msg=lambda text, name=name: f"{name} {text}"
            )


def special_updates(*, eps: float, p: float, device: str = "cpu") -> list[Update]:
    """Every pair of such numbers as gradient and second moment, with a first moment of 0 and 1, and with amsgrad."""
    special = torch.tensor([0.0, 1e-40, 1e-30, 1e-20, 1.0, 1e10, math.inf, math.nan])
    pairs = torch.cartesian_prod(special, special, torch.tensor([0.0, 1.0])).to(device)
    updates = []
    for amsgrad in (False, True):
        options = {"eps": eps, "p": p, "amsgrad": amsgrad}
        group = {**DEFAULTS, **options, "lr": 1e-20, "weight_decay": 0.0}
        grad, v, m = (column.clone() for column in pairs.unbind(1))
        theta, maximum = torch.ones_like(grad), v.flip(0).clone() if amsgrad else None
        updates.append(Update(group, theta, theta, grad, m, v, maximum, 1.0))
    return updates
