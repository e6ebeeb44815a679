"""The fused step for GPUs, its kernels run by Triton's interpreter on the CPU, against the plain step and float64.

What the interpreter has of a device is the arithmetic: its exp2 and sqrt are numpy's. `tests/gpu` repeats this where
there is a device.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("there is a CUDA device, on which tests/gpu shows the same", allow_module_level=True)
pytest.importorskip("triton", reason="the fused step for GPUs is written in Triton")

from torch import Tensor, nn

from hf_pdyn import Padam, kernels, plain
from hf_pdyn.fused import choice, gpu
from hf_pdyn.fused.settings import KERNEL_SUMS
from hf_pdyn.fused.triton_kernels import CHUNK
from hf_pdyn.sharding import Piece
from hf_pdyn.updates import SUMS, StepSums, Task, Update
from tests.test_optimizer import VARIANTS, assert_follows_the_scalar_reference

STEP = Task.MOMENTS | Task.APPLY
EVERYTHING = STEP | Task.GRADIENT | Task.MEASURE | Task.PARAMETER

# Roundings of float32 (6e-8), some on either side, relative to the larger of what is added: m and g are of order 1.
MOMENT = 3e-7
# x^-p is good to 4e-7 here and to some roundings in torch; an update is a hundredth of a parameter or less.
PARAMETER = 5e-7
# Nearly equal numbers may be rounded apart: one unit in the last place of bf16 (8 bits) or fp16 (11).
ROUNDING = {torch.float32: PARAMETER, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# float32 sums over a chunk of 2048 and terms that are powers, each good to 4e-7 or a few roundings.
SUM = 2e-6

DEFAULTS: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-16,
    "p": 0.37,
    "weight_decay": 0.1,
    "amsgrad": False,
    "maximize": False,
    "decoupled_weight_decay": True,
    "bias_correction": "eq18",
}

SETTINGS: dict[str, dict[str, Any]] = {
    "decoupled decay": {},
    "no decay": {"weight_decay": 0.0},
    "coupled decay": {"decoupled_weight_decay": False},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True, "decoupled_weight_decay": False},
    "published": {"bias_correction": "padam", "eps": 1e-8},
    "no first moment": {"betas": (0.0, 0.6)},
    "short first moment": {"betas": (0.3, 0.0)},
    "large eps": {"eps": 1e-3},
}
EXPONENTS = [-0.4, 0.0, 0.25, 0.37, 0.5, 1.0]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What overflows or is NaN is meant to: numpy would warn, a device does not."""
    with np.errstate(all="ignore"):
        yield


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
) -> Update:
    """Moments as after some steps, over several orders of magnitude. offset: elements before the first one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(dtype: torch.dtype) -> Tensor:
        values = torch.randn(offset + numel, generator=generator).to(dtype)[offset:]
        return values if shape is None else values.view(shape)

    theta, grad, m = normal(theta_type), normal(grad_type or theta_type), normal(torch.float32)
    v = normal(torch.float32).square_() * 1e-2
    maximum = normal(torch.float32).square_() * 1e-2 if group["amsgrad"] else None
    return Update(group, theta, theta, grad, m, v, maximum, t)


def copy_of(update: Update) -> Update:
    names = ("theta", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    copies = {name: value if (value := getattr(update, name)) is None else value.clone() for name in names}
    return replace(update, **copies)


def assert_same(ours: Sequence[Update], expected: Sequence[Update]) -> None:
    for a, b in zip(ours, expected, strict=True):
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert_near(getattr(a, name), getattr(b, name), MOMENT, name)
        assert_near(a.theta, b.theta, ROUNDING[a.theta.dtype], "theta")
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)


def assert_near(ours: Tensor | None, expected: Tensor | None, tolerance: float, name: str) -> None:
    assert (ours is None) == (expected is None)
    if ours is not None and expected is not None:
        torch.testing.assert_close(
            ours, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )


def exact_sums(before: Update, after: Update, *, clip_factor: float = 1.0) -> dict[str, Tensor]:
    """All of KERNEL_SUMS in float64: of `before`'s gradient, and of `after`, with its moments and theta."""
    group = before.group
    options = {"times": [before.t], "beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"]}
    options["bias_correction"] = group["bias_correction"]
    moments = [after.exp_avg.double()], [after.second_moment.double()]
    direction, adam = (kernels.update_directions(*moments, p=p, **options)[0] for p in (group["p"], 0.5))
    grad, p = before.grad.double() / clip_factor, group["p"]
    return {
        "grad_sq": before.grad.double().square().sum(),
        "direction_sq": direction.square().sum(),
        "adam_sq": adam.square().sum(),
        "param_sq": after.theta.double().square().sum(),
        "v_sum": after.second_moment.double().sum(),
        "one_norm": kernels.perturbed_one_norm(grad, eps=group["eps"]),
        "penalised": kernels.penalised_norm(grad, p=p, eps=group["eps"]) * (2 if p == 1 else 2 * (1 - p)),
    }


def assert_sums(
    sums: Tensor, before: Sequence[Update], after: Sequence[Update], columns: Sequence[str], **options: float
) -> None:
    """`columns` to SUM, and 0 in all others."""
    assert sums.shape == (len(before), len(KERNEL_SUMS)) and sums.dtype == torch.float64
    for row, a, b in zip(sums, before, after, strict=True):
        expected = exact_sums(a, b, **options)
        for value, name in zip(row, KERNEL_SUMS, strict=True):
            if name not in columns:
                assert value == 0, name
                continue
            # Logarithms of either sign cancel: their sum is good to SUM of as many ones.
            atol = SUM * a.theta.numel() if name == "penalised" and a.group["p"] == 1 else 0.0
            torch.testing.assert_close(
                value, expected[name], rtol=SUM, atol=atol, equal_nan=True, msg=lambda text, name=name: f"{name} {text}"
            )


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_measured_step_is_the_plain_one_and_its_sums_are_float64_s(p: float, settings: str) -> None:
    group = {**DEFAULTS, **SETTINGS[settings], "p": p}
    before = [update_of(group, 300), update_of(group, 1, seed=1)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    sums = gpu.advance(ours, EVERYTHING)
    plain.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, [name for name in KERNEL_SUMS if name != "adam_sq"])


@pytest.mark.parametrize("theta_type", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad_type", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_and_its_rounding(theta_type: torch.dtype, grad_type: torch.dtype) -> None:
    before = [update_of(DEFAULTS, 1000, theta_type=theta_type, grad_type=grad_type)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    sums = gpu.advance(ours, EVERYTHING)
    plain.advance(expected, STEP)
    assert_same(ours, expected)
    # Rounded apart are some in a thousand: the difference before rounding is 1e-7, a unit in the last place 1e-3. The
    # interpreter cuts bf16 off where a device rounds, as tests/fused/test_gpu_compiles.py shows.
    different = (ours[0].theta != expected[0].theta).float().mean()
    assert theta_type != torch.float16 or different < 0.005
    assert_sums(sums, before, ours, [name for name in KERNEL_SUMS if name != "adam_sq"])


@pytest.mark.parametrize("eps", [0.0, 1e-16])
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("bias_correction", ["eq18", "padam"])
def test_nan_infinity_and_subnormal_numbers_appear_where_they_do_in_the_plain_step(
    eps: float, p: float, bias_correction: str
) -> None:
    """Every pair of them as gradient and second moment, with a first moment of 0 and of 1, with and without amsgrad."""
    special = torch.tensor([0.0, 1e-40, 1e-30, 1e-20, 1.0, 1e10, math.inf, math.nan])
    pairs = torch.cartesian_prod(special, special, torch.tensor([0.0, 1.0]))
    for amsgrad in (False, True):
        group = {**DEFAULTS, "eps": eps, "p": p, "bias_correction": bias_correction, "amsgrad": amsgrad, "lr": 1e-20}
        group["weight_decay"] = 0.0
        grad, v, m = (column.clone() for column in pairs.unbind(1))
        theta = torch.ones_like(grad)
        before = [Update(group, theta, theta, grad, m, v, v.flip(0).clone() if amsgrad else None, 1.0)]
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        gpu.advance(ours, STEP)
        plain.advance(expected, STEP)
        assert_same(ours, expected)


def test_an_infinite_parameter_is_left_alone_where_nothing_decays() -> None:
    for decoupled in (True, False):
        group = {**DEFAULTS, "weight_decay": 0.0, "decoupled_weight_decay": decoupled}
        before = [update_of(group, 4)]
        before[0].theta.copy_(torch.tensor([math.inf, -math.inf, math.nan, 1.0]))
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        gpu.advance(ours, STEP)
        plain.advance(expected, STEP)
        assert_same(ours, expected)


@pytest.mark.parametrize("exponent", [-1.0, -0.37, 0.1, 0.5, 1.0, 2.5])
def test_a_power_is_good_to_3e_7_over_the_whole_range(exponent: float) -> None:
    """Seen through a step from v: d = v^-p. A device's exp2 adds 2.4e-7. As in torch.pow, p is rounded to float32."""
    v = torch.logspace(-44, 38, 1500, dtype=torch.float64).float()
    exact = v.double() ** -torch.tensor(exponent).item()
    group = {**DEFAULTS, "eps": 0.0, "p": exponent, "weight_decay": 0.0, "lr": 1.0, "betas": (0.0, 0.0)}
    ones = torch.ones_like(v)
    update = Update(group, ones, torch.zeros_like(v), ones, ones.clone(), v, None, 1.0)
    gpu.advance([update], Task.APPLY)
    ours = -update.theta.double()
    normal = (exact > 1.2e-38) & (exact < 3.4e38)
    assert ((ours / exact - 1).abs()[normal] < 3e-7).all()
    # Subnormal numbers have absolute errors: at most a unit in the last place and half.
    torch.testing.assert_close(ours[exact < 1.2e-38], exact[exact < 1.2e-38], rtol=0, atol=2.2e-45)
    assert ours[exact > 3.41e38].isinf().all()


SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "0-d": (1, {"shape": ()}),
    "empty": (0, {}),
    "a vector": (16, {}),
    "a chunk": (CHUNK.value, {}),
    "a chunk and an element": (CHUNK.value + 1, {}),
    "aligned, no multiple of a chunk": (2 * CHUNK.value + 48, {}),
    "unaligned": (3 * CHUNK.value - 1, {"offset": 1}),
    "unaligned, of whole vectors": (CHUNK.value, {"offset": 3}),
    "a matrix": (33 * 7, {"shape": (33, 7)}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_and_addresses(shape: str) -> None:
    numel, options = SHAPES[shape]
    before = [update_of(DEFAULTS, numel, **options)]
    ours = before if options.get("offset") else [copy_of(before[0])]  # a copy is aligned
    expected, start = [copy_of(before[0])], [copy_of(before[0])]
    sums = gpu.advance(ours, EVERYTHING)
    plain.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, start, ours, [name for name in KERNEL_SUMS if name != "adam_sq"])


def test_nothing_beside_a_tensor_is_touched() -> None:
    """A buffer around every tensor, as the flat ones of sharded parameters have."""
    around = {name: torch.full((100,), 7.0) for name in ("theta", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    group = {**DEFAULTS, "amsgrad": True}
    for start, stop in ((17, 60), (16, 64)):
        parts = {name: value[start:stop] for name, value in around.items()}
        gpu.advance([Update(group, parts["theta"], t=1.0, **parts)], EVERYTHING)
        for value in around.values():
            assert (value[:16] == 7).all() and (value[64:] == 7).all()


def many() -> list[Update]:
    """Of several groups, dtypes, step counts and alignments, so several launches; their order is none of these."""
    groups = [
        {**DEFAULTS},
        {**DEFAULTS, "p": 0.5, "lr": 1e-3, "weight_decay": 0.0},
        {**DEFAULTS, "p": 1.0, "eps": 1e-6, "amsgrad": True, "maximize": True},
        {**DEFAULTS, "bias_correction": "padam", "decoupled_weight_decay": False, "betas": (0.8, 0.95)},
    ]
    types = [torch.float32, torch.bfloat16, torch.float16]
    sizes = [16, 5, 0, 64, CHUNK.value + 16, 1]
    return [
        update_of(groups[i % 4], sizes[i % 6], seed=i, theta_type=types[i % 3], t=1.0 + i % 2, offset=i % 5 == 4)
        for i in range(24)
    ]


def test_many_tensors_of_several_groups() -> None:
    before = many()
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    sums = gpu.advance(ours, EVERYTHING)
    plain.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, [name for name in KERNEL_SUMS if name != "adam_sq"])


def test_two_passes_are_one() -> None:
    """Bit for bit; with a scale of 1, as the sums of what is asked in both."""
    before = many()
    ours, once = [list(map(copy_of, before)) for _ in range(2)]
    first = gpu.advance(ours, Task.MOMENTS | Task.DIRECTION | Task.GRADIENT | Task.MEASURE)
    assert_sums(first, before, [replace(u, theta=b.theta) for u, b in zip(ours, before, strict=True)], FIRST)
    second = gpu.advance(ours, Task.APPLY | Task.PARAMETER, scale=torch.ones((), dtype=torch.float64))
    assert_sums(second, before, ours, ["param_sq"])
    together = gpu.advance(once, EVERYTHING | Task.DIRECTION)
    assert torch.equal(together, first + second)
    for a, b in zip(ours, once, strict=True):
        assert torch.equal(a.theta, b.theta) and torch.equal(a.exp_avg, b.exp_avg)
        assert torch.equal(a.exp_avg_sq, b.exp_avg_sq)


FIRST = ["grad_sq", "direction_sq", "adam_sq", "v_sum", "one_norm", "penalised"]


def test_scale_and_clip_factor() -> None:
    before = many()
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    scale, clip_factor = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.25)
    sums = gpu.advance(ours, EVERYTHING, scale=scale, clip_factor=clip_factor)
    plain.advance(expected, STEP, scale=scale)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, [name for name in KERNEL_SUMS if name != "adam_sq"], clip_factor=0.25)


@pytest.mark.parametrize("bias_correction", ["eq18", "padam"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9999), (0.5, 0.0)])
def test_step_counts_on_the_device(bias_correction: str, betas: tuple[float, float]) -> None:
    """1 - beta^t there is float32's, to 1e-6, for few steps and many. So updates of order lr are to 1e-6 of that."""
    group = {**DEFAULTS, "betas": betas, "bias_correction": bias_correction}
    for t in (1.0, 2.0, 7.0, 300.0, 693.0, 1e4, 1e7):
        before = [update_of(group, 40, t=t)]
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        ours[0].t = torch.tensor(t)
        before[0].theta, expected[0].theta, ours[0].theta = (torch.zeros(40) for _ in range(3))
        sums = gpu.advance(ours, EVERYTHING)
        plain.advance(expected, STEP)
        torch.testing.assert_close(ours[0].theta, expected[0].theta, rtol=2e-6, atol=1e-9)
        direction = KERNEL_SUMS.index("direction_sq")
        assert sums[0, direction].item() == pytest.approx(
            exact_sums(before[0], ours[0])["direction_sq"].item(), rel=5e-6
        )


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learning_rate_on_the_device_is_read_where_it_stands(shape: tuple[int, ...]) -> None:
    """A tensor on the CPU would be read by the host: here one stands for the device's, as the kernel reads it."""
    before = [update_of(DEFAULTS, 40)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    rate = torch.full(shape, 0.3)
    group = {**DEFAULTS, "lr": rate}
    ours, expected = [[replace(update, group=g) for update in part] for part, g in ((ours, group), (expected, group))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "group_lr", lambda group: group["lr"].view(()))
        gpu.advance(ours, STEP)
    plain.advance(expected, STEP)
    assert_same(ours, expected)


def test_tables_are_kept_and_the_oldest_given_up() -> None:
    made: list[int] = []
    tables, cpu = gpu._Tables(), torch.device("cpu")

    def get(number: int) -> Tensor:
        return tables.get(number, lambda: made.append(number) or torch.tensor(number), cpu)

    for number in (*range(gpu._MANY_TABLES), 0, gpu._MANY_TABLES, 0, 1):
        assert get(number).item() == number
    assert made == [*range(gpu._MANY_TABLES + 1), 1]  # 0 was in use, so 1 was the oldest


@pytest.fixture
def through_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whole optimizers on CPU tensors take the GPU's path."""
    as_cpu = SimpleNamespace(
        DTYPES=gpu.DTYPES, NEEDS=gpu.NEEDS, why_not_here=lambda: None, prepare=lambda: None, advance=gpu.advance
    )
    monkeypatch.setitem(choice._MODULES, "cpu", as_cpu)
    monkeypatch.setattr(choice, "_failure", lambda device_type: None)
    calls: list[Task] = []

    def advance(updates: Sequence[Update], tasks: Task, **options: Any) -> Tensor:
        calls.append(tasks)
        return gpu.advance(updates, tasks, **options)

    as_cpu.advance = advance
    yield
    assert calls


class Fused(Padam):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, fused=True)


@pytest.mark.usefixtures("through_triton")
@pytest.mark.parametrize("p", [-0.25, 0.0, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_optimizer_follows_the_scalar_reference(p: float, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_optimizer.Padam", Fused)
    assert_follows_the_scalar_reference(p, variant, torch.float32)


@pytest.mark.usefixtures("through_triton")
@pytest.mark.parametrize("update_scale", ["raw", "adam"])
def test_an_optimizer_answers_requests(update_scale: str) -> None:
    """As the CPU's fused or plain path: pieces of a flat holder, and what is left of it, to SUM."""
    torch.manual_seed(0)
    holder, other = nn.Parameter(torch.randn(100)), nn.Parameter(torch.randn(3, 5))
    start = holder.detach().clone()
    holder.grad, other.grad = torch.randn(100), torch.randn(3, 5)
    pieces = [Piece(holder, start=3, numel=40), Piece(other), Piece(holder, start=48, numel=32)]
    optimizer = Fused([holder, other], p=0.25, lr=0.1, weight_decay=0.0, update_scale=update_scale)
    request = StepSums(pieces, measure=True, clip_factor=torch.tensor(0.5))
    optimizer.sum_next_step(request)
    optimizer.step()
    assert request.rows is not None and list(request.summed) == pieces and request.failure is None
    rows = {name: request.rows[:, i] for i, name in enumerate(SUMS)}
    parts = holder.detach()[3:43], other.detach(), holder.detach()[48:80]
    grads = holder.grad[3:43], other.grad, holder.grad[48:80]
    expect = {
        "grad_sq": [grad.double().square().sum() for grad in grads],
        "param_sq": [part.double().square().sum() for part in parts],
        "one_norm": [kernels.perturbed_one_norm(grad.double() * 2, eps=1e-16) for grad in grads],
        "N_p": [kernels.penalised_norm(grad.double() * 2, p=0.25, eps=1e-16) for grad in grads],
        "v_hat_sum": [grad.double().square().sum() for grad in grads],  # after one step
        "numel": [torch.tensor(float(grad.numel())) for grad in grads],
    }
    for name, values in expect.items():
        torch.testing.assert_close(rows[name], torch.stack(values).double(), rtol=1e-5, atol=0)
    moved = (holder.detach() - start).double()
    for row, part in ((0, moved[3:43]), (2, moved[48:80])):  # 1e-4: as moved in float32
        assert rows["update_sq"][row].item() == pytest.approx(part.square().sum().item(), rel=1e-4)
    assert (moved != 0).all()
