"""The fused step on a CUDA device: its kernels against the tensor step and float64, graphs, compilations and memory."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam
from hf_pdyn.optim import tensor_step
from hf_pdyn.optim.fused import gpu
from hf_pdyn.optim.fused.sending import KnownTables
from hf_pdyn.optim.state_format import codes_of
from hf_pdyn.optim.step_work import SUMS, StepSums, Task
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
    assert_rounded_as_in_the_tensor_step,
    assert_same,
    assert_sums,
    copy_of,
    special_updates,
    update_of,
)
from tests.synchronisation import cuda_guard

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _triton() -> None:
    pytest.importorskip("triton")


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_measured_step_is_the_tensor_step_and_its_sums_are_float64_s(p: float, settings: str) -> None:
    group = {**DEFAULTS, **SETTINGS[settings], "p": p}
    before = [update_of(group, numel, seed=numel, device="cuda") for numel in (0, 1, 300, 4096, 100_003)]
    ours, expected = [list(map(copy_of, before)) for _ in range(2)]
    sums = gpu.advance(ours, EVERYTHING)
    tensor_step.advance(expected, STEP)
    assert_same(ours, expected)
    assert_sums(sums, before, ours, MEASURED)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("theta_type", DTYPES, ids=str)
@pytest.mark.parametrize("grad_type", DTYPES, ids=str)
def test_large_tensors_of_every_dtype(theta_type: torch.dtype, grad_type: torch.dtype, offset: int) -> None:
    options: dict[str, Any] = {"theta_type": theta_type, "grad_type": grad_type, "offset": offset, "device": "cuda"}
    before = update_of(DEFAULTS, 10_000_000, **options)
    start, expected = copy_of(before), copy_of(before)
    sums = gpu.advance([before], EVERYTHING)
    tensor_step.advance([expected], STEP)
    assert_same([before], [expected])
    assert_sums(sums, [start], [before], MEASURED)


@pytest.mark.parametrize("eps", [0.0, 1e-16])
@pytest.mark.parametrize("p", EXPONENTS)
def test_nan_infinity_and_subnormal_numbers_appear_where_they_do_in_the_tensor_step(eps: float, p: float) -> None:
    for before in special_updates(eps=eps, p=p, device="cuda"):
        ours, expected = [copy_of(before)], [copy_of(before)]
        gpu.advance(ours, STEP)
        tensor_step.advance(expected, STEP)
        assert_same(ours, expected, SPECIAL)


def test_two_passes_are_one_and_steps_repeat_bit_for_bit() -> None:
    before = [update_of(DEFAULTS, numel, seed=numel, device="cuda") for numel in (5, 1_000_000, 64)]
    results = []
    for _ in range(2):
        once, twice = [list(map(copy_of, before)) for _ in range(2)]
        sums = gpu.advance(once, EVERYTHING | Task.DIRECTION)
        first = gpu.advance(twice, Task.MOMENTS | Task.DIRECTION | Task.GRADIENT | Task.MEASURE)
        second = gpu.advance(twice, Task.APPLY | Task.PARAMETER, scale=torch.ones((), device="cuda"))
        # Other instructions may be fused in another kernel: to 1e-6, not bit for bit.
        torch.testing.assert_close(first + second, sums, rtol=1e-6, atol=0)
        assert_same(twice, once)
        results.append([sums, *(tensor for u in once for tensor in (u.theta, u.exp_avg, u.exp_avg_sq))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def model_on_cuda(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Also a weight that is channels_last, a scalar, and one whose size is odd."""
    torch.manual_seed(0)
    model = nn.Module()
    model.conv = nn.Conv2d(16, 32, 3)
    model.linear = nn.Linear(1000, 999)
    model.scalar = nn.Parameter(torch.tensor(0.5))
    return model.to("cuda", dtype).to(memory_format=torch.channels_last)


def set_gradients(params: Iterable[nn.Parameter], step: int) -> None:
    """In place where there are some, as a captured step needs it."""
    generator = torch.Generator(device="cuda").manual_seed(step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, device="cuda", dtype=param.dtype)
        param.grad = torch.empty_like(param) if param.grad is None else param.grad
        param.grad.copy_(grad)


OPTIONS: dict[str, dict[str, Any]] = {
    "raw": {"p": 0.25},
    "matched": {"p": 0.25, "update_scale": "adam"},
    "amsgrad": {"p": 0.37, "amsgrad": True},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_an_optimizer_with_any_layout_follows_the_tensor_step(options: str, dtype: torch.dtype) -> None:
    """After 5 steps of a hundredth: float32 to 1e-6 a step, others to two units in the last place."""
    ours, expected = model_on_cuda(dtype), model_on_cuda(dtype)
    optimizers = [
        Padam(model.parameters(), lr=1e-2, fused=fused, **OPTIONS[options])
        for model, fused in ((ours, True), (expected, False))
    ]
    for step in range(5):
        for model, optimizer in zip((ours, expected), optimizers, strict=True):
            set_gradients(model.parameters(), step)
            optimizer.step()
    tolerance = 5e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_measured_step_is_the_same_step_and_sums_what_norms_say(options: str) -> None:
    """Bit for bit the same, but for what a kernel with more in it rounds otherwise (1e-6); sums to 1e-5."""
    measured, other = model_on_cuda(), model_on_cuda()
    ours, expected = [
        Padam(model.parameters(), lr=1e-2, fused=True, weight_decay=0.0, **OPTIONS[options])
        for model in (measured, other)
    ]
    for step in range(3):
        params = list(measured.parameters())
        start = [param.detach().double() for param in params]
        for model in (measured, other):
            set_gradients(model.parameters(), step)
        request = StepSums([Piece(param) for param in params], measure=True)
        ours.sum_next_step(request)
        ours.step()
        expected.step()
        assert request.rows is not None and request.failure is None
        rows = {name: request.rows[:, i] for i, name in enumerate(SUMS)}
        grads = [param.grad.double() for param in params if param.grad is not None]
        moved = [param.detach().double() - before for param, before in zip(params, start, strict=True)]
        for name, tensors, tolerance in (
            ("grad_sq", grads, 1e-5),
            ("param_sq", [param.detach().double() for param in params], 1e-5),
            ("update_sq", moved, 1e-3),  # as rounded into float32 parameters
        ):
            squares = torch.stack([tensor.square().sum() for tensor in tensors])
            torch.testing.assert_close(rows[name], squares, rtol=tolerance, atol=0)
    for a, b in zip(measured.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_moments_in_fewer_bits_are_rounded_as_in_the_tensor_step(state_dtype: str, settings: str) -> None:
    assert_rounded_as_in_the_tensor_step(gpu.advance, state_dtype, settings, numel=5000, device="cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_corrections_are_kept_as_in_the_tensor_step(dtype: torch.dtype) -> None:
    assert_corrected_as_in_the_tensor_step(gpu.advance, dtype, numel=5000, device="cuda")


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_moments_in_fewer_bits_are_those_of_the_cpu(state_dtype: str) -> None:
    """Codes after five steps: apart in less than a hundredth, where a rounding of float32 differs."""
    states = []
    for device in ("cuda", "cpu"):
        generator = torch.Generator().manual_seed(0)
        param = nn.Parameter(torch.randn(300, 500, generator=generator).to(device))
        optimizer = Padam([param], p=0.3, fused=True, state_dtype=state_dtype)
        for _ in range(5):
            param.grad = torch.randn(300, 500, generator=generator).to(device)
            optimizer.step()
        states.append({name: codes_of(value.cpu()) for name, value in optimizer.state[param].items() if name != "step"})
    for name, ours in states[0].items():
        assert (ours != states[1][name]).float().mean() < 0.01, name


def triton_kernels() -> Any:
    from hf_pdyn.optim.fused import triton_kernels

    return triton_kernels


def compilations() -> int:
    """How many kernels of a step this process knows; Triton keeps them by device."""
    kernel = triton_kernels().step_chunk
    if hasattr(kernel, "device_caches"):
        return sum(len(caches[0]) for caches in kernel.device_caches.values())
    return sum(len(cache) for cache in kernel.cache.values())  # Triton 3.2


def test_what_schedules_and_callbacks_move_compiles_nothing() -> None:
    model = model_on_cuda()
    optimizer = Padam(model.parameters(), lr=1e-2, fused=True, update_scale="adam")
    known: list[int] = []
    for step in range(6):
        set_gradients(model.parameters(), step)
        optimizer.step()
        known.append(compilations())
        for group in optimizer.param_groups:
            # Of each, values that Triton would tell apart if they were arguments: 0, 1, multiples of 16.
            group["p"] = [0.0, 0.5, 1.0, 0.3, -0.25, 0.25][step]
            group["lr"] = [1.0, 1e-3, 16.0, 1, 0.0, 1e-4][step]
            group["weight_decay"] = [0.0, 1.0, 0.1, 16.0, 0.01, 0.0][step]
    assert known[0] > 0 and known == [known[0]] * 6


def test_repeated_steps_send_their_settings_in_time_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the steps that look at everything anew, over three rounds of the places that settings are sent from.

    The host is some steps ahead of the device, and the learning rate another at every step.
    """
    kernel = triton_kernels().step_chunk
    run, bound = kernel.run, [0]

    def counting_run(*args: Any, **options: Any) -> Any:
        bound[0] += 1
        return run(*args, **options)

    monkeypatch.setattr(kernel, "run", counting_run)
    results = []
    for repeats in (True, False):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(2_000_000, device="cuda")) for _ in range(4)]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = Padam(params, p=0.3, fused=True)
        for step in range(200):
            if step == 3:
                bound[0] = 0
            if not repeats:
                optimizer._plan = None
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            with cuda_guard() if step >= 3 else nullcontext():
                optimizer.step()
        assert bound[0] == (0 if repeats else 197)  # what is repeated is launched as it was compiled
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_captured_step_is_an_eager_one(options: str) -> None:
    """Bit for bit: the same kernels. The learning rate is a tensor that changes between replays."""
    captured, eager = model_on_cuda(), model_on_cuda()
    rates = [torch.tensor(1e-2, device="cuda") for _ in range(2)]
    ours, expected = [
        Padam(model.parameters(), lr=rate, fused=True, capturable=True, **OPTIONS[options])
        for model, rate in zip((captured, eager), rates, strict=True)
    ]
    graph = torch.cuda.CUDAGraph()

    def warm_up() -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for step in range(3):
                set_gradients(captured.parameters(), step)
                ours.step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            ours.step()

    warm_up()
    for step in range(8):
        rate = 1e-2 if step < 5 else 1e-2 / step
        for tensor in rates:
            tensor.fill_(rate)
        set_gradients(eager.parameters(), step)
        expected.step()
        if step >= 3:
            set_gradients(captured.parameters(), step)
            graph.replay()
    for a, b in zip(captured.parameters(), eager.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(ours.state[a]["step"], expected.state[b]["step"])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_captured_step_skips_what_is_not_finite(options: str, fused: bool) -> None:
    """As eager steps of which the host decides, and with their step counts."""
    captured, eager = model_on_cuda(), model_on_cuda()
    ours, expected = (
        Padam(model.parameters(), lr=1e-2, fused=fused, nonfinite="skip", capturable=on_device, **OPTIONS[options])
        for model, on_device in ((captured, True), (eager, False))
    )
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    for step in range(8):
        for model in (captured, eager):
            set_gradients(model.parameters(), step)
            if step in (1, 5):
                model.linear.weight.grad[3, 4] = math.inf
        expected.step()
        if step < 3:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), cuda_guard() if step == 2 else nullcontext():
                ours.step()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if step == 3:
                with torch.cuda.graph(graph):
                    ours.step()
            graph.replay()
        assert ours.found_inf is not None and bool(ours.found_inf) == (step in (1, 5)) == expected.step_was_skipped
    for a, b in zip(captured.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)  # of another kernel, whose counts are on the device
        assert ours.state[a]["step"].item() == expected.state[b]["step"].item() == 6


def test_a_capture_without_the_tables_says_what_to_do() -> None:
    model = model_on_cuda()
    optimizer = Padam(model.parameters(), fused=True, capturable=True)
    set_gradients(model.parameters(), 0)
    optimizer.step()
    optimizer.param_groups[0]["p"] = 0.123
    with pytest.raises(RuntimeError, match="must find its tensors"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_every_stream_has_tables_of_its_own() -> None:
    """Steps in turn on two streams, each after the other's: as on one."""
    results = []
    for streams in ([torch.cuda.Stream(), torch.cuda.Stream()], [torch.cuda.current_stream()]):
        model = model_on_cuda()
        optimizer = Padam(model.parameters(), lr=1e-2, p=0.3, fused=True)
        for step in range(6):
            stream = streams[step % len(streams)]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                set_gradients(model.parameters(), step)
                optimizer.step()
            torch.cuda.current_stream().wait_stream(stream)
        results.append([param.detach() for param in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("options", [{}, {"update_scale": "adam"}], ids=["raw", "matched"])
def test_a_step_needs_no_more_memory_than_adamw_s(options: dict[str, Any]) -> None:
    """At most a hundredth more than torch's fused AdamW at its peak, everything that it holds included."""
    ours = peak(lambda params: Padam(params, p=0.25, fused=True, **options))
    assert ours <= 1.01 * peak(lambda params: torch.optim.AdamW(params, fused=True))


def peak(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> int:
    """Bytes at the third step's peak, of 4e7 elements."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    params = [nn.Parameter(torch.ones(10_000_000, device="cuda")) for _ in range(4)]
    optimizer = make(params)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
    return torch.cuda.max_memory_allocated() - before


def test_a_default_device_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are made on the host and sent, whatever torch.set_default_device says."""
    start = update_of(DEFAULTS, 5000, device="cuda")
    results: list[Tensor] = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(gpu, "_tables", KnownTables())  # as in a new process
        update = copy_of(start)
        with torch.device(device):
            gpu.advance([update], EVERYTHING)
        results.append(update.theta)
    assert torch.equal(*results)
