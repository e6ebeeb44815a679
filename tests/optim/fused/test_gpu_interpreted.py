"""The fused step for GPUs, its kernels run by Triton's interpreter on the CPU, against the tensor step and float64.

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

from hf_pdyn import Padam
from hf_pdyn.measure import implicit_bias
from hf_pdyn.optim import tensor_step
from hf_pdyn.optim.fused import availability, gpu, self_check
from hf_pdyn.optim.fused.layout import addresses_of
from hf_pdyn.optim.fused.sending import KnownTables
from hf_pdyn.optim.fused.triton_kernels import CHUNK
from hf_pdyn.optim.hyperparameters import StateDtype
from hf_pdyn.optim.step_work import STEP_SUMS, SUMS, StepSums, Task, Update
from hf_pdyn.tensors.sharding import Piece
from tests.optim.fused.comparison import (
    DEFAULTS,
    EVERYTHING,
    EXPONENTS,
    FORMATS,
    MEASURED,
    SETTINGS,
    SPECIAL,
    STEP,
    assert_corrected_as_in_the_tensor_step,
    assert_not_numbers_as_in_the_tensor_step,
    assert_rounded_as_in_the_tensor_step,
    assert_same,
    assert_sums,
    assert_two_passes_are_one,
    copy_of,
    exact_sums,
    in_format,
    special_updates,
    update_of,
)
from tests.optim.test_padam import VARIANTS, assert_follows_the_scalar_reference


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What overflows or is NaN is meant to: numpy would warn, a device does not."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_measured_step_is_the_tensor_step_and_its_sums_are_float64_s(p: float, settings: str) -> None:
    group = {**DEFAULTS, **SETTINGS[settings], "p": p}
    before = [update_of(group, 300), update_of(group, 1, seed=1)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    sums = gpu.advance(ours, EVERYTHING)
    tensor_step.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, MEASURED)


@pytest.mark.parametrize("theta_type", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad_type", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_and_its_rounding(theta_type: torch.dtype, grad_type: torch.dtype) -> None:
    before = [update_of(DEFAULTS, 1000, theta_type=theta_type, grad_type=grad_type)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    sums = gpu.advance(ours, EVERYTHING)
    tensor_step.advance(expected, STEP)
    assert_same(ours, expected)
    # Rounded apart are some in a thousand: the difference before rounding is 1e-7, a unit in the last place 1e-3. The
    # interpreter cuts bf16 off where a device rounds, as tests/fused/test_gpu_compiles.py shows.
    different = (ours[0].theta != expected[0].theta).float().mean()
    assert theta_type != torch.float16 or different < 0.005
    assert_sums(sums, before, ours, MEASURED)


@pytest.mark.parametrize("eps", [0.0, 1e-16])
@pytest.mark.parametrize("p", EXPONENTS)
def test_nan_infinity_and_subnormal_numbers_appear_where_they_do_in_the_tensor_step(eps: float, p: float) -> None:
    for before in special_updates(eps=eps, p=p):
        ours, expected = [copy_of(before)], [copy_of(before)]
        gpu.advance(ours, STEP)
        tensor_step.advance(expected, STEP)
        assert_same(ours, expected, SPECIAL)


@pytest.mark.parametrize("times_on_device", [False, True])
@pytest.mark.parametrize("p", EXPONENTS)
def test_gradients_are_good_up_to_where_v_overflows(p: float, times_on_device: bool) -> None:
    """Their squares do not fit into float32, nor does v / (1 - beta2^t)."""
    grads = torch.tensor([0.0, 1.0, 1e19, -2e19, 5e20])
    theta, m, v = (torch.zeros(5) for _ in range(3))
    before = Update({**DEFAULTS, "p": p}, theta, theta, grads, m, v, None, 1.0)
    ours, expected = [copy_of(before)], [copy_of(before)]
    if times_on_device:
        ours[0].t = torch.tensor(1.0)
    sums = gpu.advance(ours, Task.MOMENTS | Task.DIRECTION)
    gpu.advance(ours, Task.APPLY)
    tensor_step.advance(expected, STEP)
    assert ours[0].exp_avg_sq.isfinite().all()
    torch.testing.assert_close(ours[0].theta, expected[0].theta, rtol=3e-6, atol=0)
    assert sums[0, STEP_SUMS.index("adam_sq")] == pytest.approx(4.0, rel=3e-6)


def test_an_infinite_parameter_is_left_alone_where_nothing_decays() -> None:
    for decoupled in (True, False):
        group = {**DEFAULTS, "weight_decay": 0.0, "decoupled_weight_decay": decoupled}
        before = [update_of(group, 4)]
        before[0].theta.copy_(torch.tensor([math.inf, -math.inf, math.nan, 1.0]))
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        gpu.advance(ours, STEP)
        tensor_step.advance(expected, STEP)
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


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_moments_in_fewer_bits_are_rounded_as_in_the_tensor_step(state_dtype: str, settings: str) -> None:
    assert_rounded_as_in_the_tensor_step(gpu.advance, state_dtype, settings, numel=5000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_corrections_are_kept_as_in_the_tensor_step(dtype: torch.dtype) -> None:
    assert_corrected_as_in_the_tensor_step(gpu.advance, dtype, numel=2500)


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_two_passes_over_moments_in_fewer_bits_are_one(state_dtype: str) -> None:
    assert_two_passes_are_one(gpu.advance, state_dtype, numel=5000, tolerance=0.0)


@pytest.mark.parametrize("tasks", [[STEP], [EVERYTHING], [Task.MOMENTS | Task.DIRECTION, Task.APPLY]])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_moments_in_fewer_bits_are_no_numbers_where_those_of_the_tensor_step_are_none(
    state_dtype: str, tasks: list[Task]
) -> None:
    assert_not_numbers_as_in_the_tensor_step(gpu.advance, state_dtype, tasks, numel=1100)


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
    tensor_step.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, start, ours, MEASURED)


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
    """Updates of several groups, dtypes, step counts and alignments, so several launches, in no order."""
    groups = [
        {**DEFAULTS},
        {**DEFAULTS, "p": 0.5, "lr": 1e-3, "weight_decay": 0.0, "eps": 0.0},
        {**DEFAULTS, "p": 1.0, "eps": 1e-6, "amsgrad": True, "maximize": True},
        {**DEFAULTS, "eps": 1e-8, "decoupled_weight_decay": False, "betas": (0.8, 0.95)},
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
    tensor_step.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, MEASURED)


def test_two_passes_are_one() -> None:
    """Bit for bit; with a scale of 1, as the sums of what is asked in both."""
    before = many()
    ours, once = [list(map(copy_of, before)) for _ in range(2)]
    first = gpu.advance(ours, Task.MOMENTS | Task.DIRECTION | Task.GRADIENT | Task.MEASURE)
    assert_sums(first, before, [replace(u, theta=b.theta) for u, b in zip(ours, before, strict=True)], FIRST)
    second = gpu.advance(ours, Task.APPLY | Task.PARAMETER, scale=torch.ones((), dtype=torch.float64))
    assert_sums(second, before, ours, ["update_sq", "param_sq"])
    together = gpu.advance(once, EVERYTHING | Task.DIRECTION)
    assert torch.equal(together, first + second)
    for a, b in zip(ours, once, strict=True):
        assert torch.equal(a.theta, b.theta) and torch.equal(a.exp_avg, b.exp_avg)
        assert torch.equal(a.exp_avg_sq, b.exp_avg_sq)


FIRST = [name for name in STEP_SUMS if name not in ("update_sq", "param_sq")]


def test_scale_and_clip_factor() -> None:
    before = many()
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    scale, clip_factor = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.25)
    sums = gpu.advance(ours, EVERYTHING, scale=scale, clip_factor=clip_factor)
    tensor_step.advance(expected, STEP, scale=scale)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, MEASURED, clip_factor=0.25, scale=0.7)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9999), (0.5, 0.0)])
def test_step_counts_on_the_device(betas: tuple[float, float]) -> None:
    """1 - beta^t there is float32's, to 1e-6, for few steps and many. So updates of order lr are to 1e-6 of that."""
    group = {**DEFAULTS, "betas": betas}
    for t in (1.0, 2.0, 7.0, 300.0, 693.0, 1e4, 1e7):
        before = [update_of(group, 40, t=t)]
        ours, expected = [list(map(copy_of, before)) for _ in range(2)]
        ours[0].t = torch.tensor(t)
        before[0].theta, expected[0].theta, ours[0].theta = (torch.zeros(40) for _ in range(3))
        sums = gpu.advance(ours, EVERYTHING)
        tensor_step.advance(expected, STEP)
        torch.testing.assert_close(ours[0].theta, expected[0].theta, rtol=2e-6, atol=1e-9)
        direction = STEP_SUMS.index("update_sq")
        assert sums[0, direction].item() == pytest.approx(exact_sums(before[0], ours[0])["update_sq"].item(), rel=5e-6)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_learning_rate_on_the_device_is_read_where_it_stands(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor on the CPU would be read by the host: here one stands for the device's, as the kernel reads it."""
    before = [update_of(DEFAULTS, 40)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    rate = torch.full(shape, 0.3, dtype=dtype)  # of which the kernel reads a copy, in float32
    group = {**DEFAULTS, "lr": rate}
    ours, expected = [[replace(update, group=g) for update in part] for part, g in ((ours, group), (expected, group))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "group_lr", lambda group: group["lr"].view(()))
        gpu.advance(ours, STEP)
    tensor_step.advance(expected, STEP)
    assert_same(ours, expected)


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize("numel", [41, 48], ids=["unaligned", "aligned"])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_the_self_check_agrees_with_kernels_that_round_moments(state_dtype: str, numel: int, skipping: bool) -> None:
    """One of the unaligned examples has an m below 1e-3, two codes of bf16 apart."""
    like = in_format(update_of(DEFAULTS, numel), state_dtype)
    like.addresses = addresses_of(like)
    assert self_check.disagreement(gpu.advance, like, [STEP], clipped=False, skipping=skipping) is None


@pytest.mark.parametrize("state_dtype", ["fp32", *FORMATS])
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_step_that_is_to_be_skipped_moves_nothing(state_dtype: StateDtype, skip: float) -> None:
    """And with 0 it is the step, bit for bit."""
    group = {**DEFAULTS, "p": 0.3, "amsgrad": True}
    before = [update_of(group, numel, seed=numel) for numel in (5, 3000)]
    if state_dtype != "fp32":
        before = [in_format(update, state_dtype) for update in before]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    gpu.advance(ours, EVERYTHING, skip=torch.tensor(skip))
    if not skip:
        gpu.advance(expected, EVERYTHING)
    for a, b in zip(ours, expected, strict=True):
        for name in ("theta", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert torch.equal(getattr(a, name).view(torch.uint8), getattr(b, name).view(torch.uint8)), name


def test_tables_are_made_on_the_host_whatever_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after torch.set_default_device("cuda"): nothing is made there that would wait to be filled."""
    monkeypatch.setattr(gpu, "_tables", KnownTables())
    before = many()
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    with torch.device("meta"):
        gpu.advance(ours, EVERYTHING)
    gpu.advance(expected, EVERYTHING)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a.theta, b.theta)


@pytest.mark.parametrize(
    ("capability", "hip", "refused"), [((7, 5), None, True), ((8, 0), None, False), ((7, 5), "6.4", False)]
)
def test_gpus_that_triton_has_no_bf16_for_are_refused(
    capability: tuple[int, int], hip: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    reason = gpu.why_not_here()
    assert (reason is not None) == refused
    assert reason is None or reason.endswith("compute capability 8.0 at least, this is one of 7.5")


@pytest.fixture
def through_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whole optimizers on CPU tensors take the GPU's path."""
    as_cpu = SimpleNamespace(
        DTYPES=gpu.DTYPES,
        NEEDS=gpu.NEEDS,
        why_not_here=lambda: None,
        prepare=lambda: None,
        variant=gpu.variant,
        Tables=gpu.Tables,
        advance=gpu.advance,
    )
    monkeypatch.setitem(availability._MODULES, "cpu", as_cpu)
    monkeypatch.setattr(availability, "_failure", lambda device_type: None)
    calls: list[Task] = []

    def advance(updates: Sequence[Update], tasks: Task, **options: Any) -> Tensor:
        calls.append(tasks)
        return gpu.advance(updates, tasks, **options)

    as_cpu.advance = advance
    yield
    assert calls


@pytest.mark.usefixtures("through_triton")
@pytest.mark.parametrize("p", [-0.25, 0.0, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "published padam"])
def test_an_optimizer_follows_the_scalar_reference(p: float, variant: str) -> None:
    for dtype in (torch.float32, torch.float16):
        assert_follows_the_scalar_reference(p, variant, dtype, fused=True)


@pytest.mark.usefixtures("through_triton")
@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("update_scale", ["raw", "adam"])
def test_a_step_that_the_device_skips_moves_nothing_and_answers_nan(update_scale: str, measure: bool) -> None:
    """Also of the tensor whose own gradient is finite: the kernel sums none of what it leaves out."""
    params = [nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(7))]
    optimizer = Padam(params, fused=True, p=0.25, update_scale=update_scale, nonfinite="skip")
    optimizer.capturable = True
    for step in range(2):
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        thetas = [param.detach().clone() for param in params]
        states = [{name: value.clone() for name, value in optimizer.state[param].items()} for param in params]
        request = StepSums([Piece(param) for param in params], measure=measure, clip_factor=None)
        optimizer.sum_next_step(request)
        if step:
            params[0].grad[3] = math.nan
        optimizer.step()
        assert request.rows is not None and request.failure is None
        assert bool(request.rows.isnan().all()) == bool(step)
    for param, theta, state in zip(params, thetas, states, strict=True):
        assert torch.equal(param, theta)
        assert all(torch.equal(optimizer.state[param][name], value) for name, value in state.items())


@pytest.mark.usefixtures("through_triton")
@pytest.mark.parametrize("update_scale", ["raw", "adam"])
def test_an_optimizer_answers_requests(update_scale: str) -> None:
    """As the CPU's fused or tensor path: pieces of a flat holder, and what is left of it, to SUM."""
    torch.manual_seed(0)
    holder, other = nn.Parameter(torch.randn(100)), nn.Parameter(torch.randn(3, 5))
    start = holder.detach().clone()
    holder.grad, other.grad = torch.randn(100), torch.randn(3, 5)
    pieces = [Piece(holder, start=3, numel=40), Piece(other), Piece(holder, start=48, numel=32)]
    optimizer = Padam([holder, other], fused=True, p=0.25, lr=0.1, weight_decay=0.0, update_scale=update_scale)
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
        "one_norm": [implicit_bias.perturbed_one_norm(grad.double() * 2, eps=1e-16) for grad in grads],
        "N_p": [implicit_bias.power_norm(grad.double() * 2, p=0.25, eps=1e-16) for grad in grads],
        "v_hat_sum": [grad.double().square().sum() for grad in grads],  # after one step
        "numel": [torch.tensor(float(grad.numel())) for grad in grads],
    }
    for name, values in expect.items():
        torch.testing.assert_close(rows[name], torch.stack(values).double(), rtol=1e-5, atol=0)
    moved = (holder.detach() - start).double()
    for row, part in ((0, moved[3:43]), (2, moved[48:80])):  # 1e-4: as moved in float32
        assert rows["update_sq"][row].item() == pytest.approx(part.square().sum().item(), rel=1e-4)
    assert (moved != 0).all()


@pytest.mark.parametrize("column", [None, "theta", "exp_avg_sq", "grad_sq"])
def test_the_self_check_tells_a_right_kernel_from_a_wrong_one(column: str | None) -> None:
    def advance(updates: Sequence[Update], tasks: Task, **options: Any) -> Tensor:
        sums = gpu.advance(updates, tasks, **options)
        for update in updates if column in ("theta", "exp_avg_sq") else ():
            getattr(update, column).mul_(1 + 1e-4)
        if column in STEP_SUMS:
            sums[:, STEP_SUMS.index(column)] *= 1 + 1e-4
        return sums

    like = update_of(DEFAULTS, 64)
    found = self_check.disagreement(advance, like, [EVERYTHING], clipped=True)
    assert found is None if column is None else found is not None and column in found
