"""What a step keeps for the next must not outlive what it was found from: every change gives the step of a new look."""

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.optim.fused import availability
from hf_pdyn.optim.step_work import StepSums
from hf_pdyn.tensors.sharding import Piece


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors take the fused step too, where it can take them."""
    monkeypatch.setattr(availability, "WORTH_COMPILING", 1)


SHAPES = [(40, 30), (30,), (7,), (5, 4)]
STEPS = 4


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def replace_gradient(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[0].grad = params[0].grad.t().contiguous().t()  # type: ignore[union-attr]


def expand_gradient(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[1].grad = torch.ones(1).expand(30)


def move_gradient(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[1].grad = torch.cat([torch.zeros(1), params[1].grad])[1:]  # type: ignore[list-item]


def replace_data(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.clone() + 1


def replace_by_view(optimizer: Padam, params: list[nn.Parameter]) -> None:
    """The same address; every second element of the first half of the other tensor's length."""
    params[0].data = params[0].data.flatten()[:600].view(20, 30)
    params[0].grad = torch.ones(20, 30)
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[params[0]][name] = torch.ones(20, 30)


def change_dtype(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.bfloat16()
    params[0].grad = torch.ones(40, 30, dtype=torch.bfloat16)


def replace_moment(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]]["exp_avg_sq"] = torch.full((30,), 2.0)


def replace_data_of_moment(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]]["exp_avg"].data = torch.full((30,), 2.0)


def replace_state(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.state[params[2]] = {name: value.clone() * 2 for name, value in optimizer.state[params[2]].items()}


def drop_state(optimizer: Padam, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[2]]


def replace_step(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["step"] = torch.tensor(50.0)


def count_on(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["step"] += 7


def freeze(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[0].requires_grad_(False).grad = None


def load(optimizer: Padam, params: list[nn.Parameter]) -> None:
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][1]["exp_avg"] *= 3
    optimizer.load_state_dict(state)


def add_group(optimizer: Padam, params: list[nn.Parameter]) -> None:
    added = nn.Parameter(torch.ones(6))
    added.grad = torch.full((6,), 0.5)
    params.append(added)
    optimizer.add_param_group({"params": [added], "lr": 0.5})


def remove_from_group(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][1:]


def replace_groups(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.param_groups = [{**group, "p": 0.1} for group in optimizer.param_groups]


def move_settings(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0].update(p=0.1, lr=0.3, weight_decay=0.4, betas=(0.5, 0.6), eps=1e-3)


def turn_amsgrad_on(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["amsgrad"] = True


def take_another_form(optimizer: Padam, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["bias_correction"] = "padam"


def negate_lazily(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[1].grad = torch._neg_view(params[1].grad)  # type: ignore[arg-type]


class Other(Tensor):
    """A class of which an address need not say where its elements are."""


def subclass_gradient(optimizer: Padam, params: list[nn.Parameter]) -> None:
    params[1].grad = params[1].grad.as_subclass(Other)  # type: ignore[union-attr]


CHANGES: list[Callable[[Padam, list[nn.Parameter]], None]] = [
    replace_gradient,
    expand_gradient,
    subclass_gradient,
    move_gradient,
    replace_data,
    replace_by_view,
    change_dtype,
    replace_moment,
    replace_data_of_moment,
    replace_state,
    drop_state,
    replace_step,
    count_on,
    freeze,
    load,
    add_group,
    remove_from_group,
    replace_groups,
    move_settings,
    turn_amsgrad_on,
    take_another_form,
    negate_lazily,
]


def trained(change: Callable[..., None] | None, *, anew: bool, **options: Any) -> tuple[list[Tensor], int]:
    """Parameters and moments after steps with a change before the third, and how many steps repeated another."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = Padam([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], p=0.3, **options)
    repeated = 0
    for step in range(STEPS):
        set_gradients([param for param in params if param.requires_grad], step)
        if step == 2 and change is not None:
            change(optimizer, params)
        if anew:
            optimizer._plan = None
        plan = optimizer._plan
        optimizer.step()
        repeated += plan is not None and optimizer._plan is plan
    moments = [
        state[name] for state in optimizer.state.values() for name in ("step", "exp_avg", "exp_avg_sq") if name in state
    ]
    return [*(param.detach() for param in params), *moments], repeated


@pytest.mark.filterwarnings("ignore:Resuming overrules")
@pytest.mark.parametrize("update_scale", ["raw", "adam"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_steps_is_seen(change: Callable[..., None], update_scale: str) -> None:
    """Bit for bit the steps of an optimizer that looks at everything anew each time."""
    found, _ = trained(change, anew=False, update_scale=update_scale)
    expected, repeated = trained(change, anew=True, update_scale=update_scale)
    assert repeated == 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_has_not_changed_is_not_looked_at_again() -> None:
    assert trained(None, anew=False)[1] == STEPS - 1
    assert trained(move_gradient, anew=False)[1] == STEPS - 1
    assert trained(move_settings, anew=False)[1] == STEPS - 1
    assert trained(replace_data, anew=False)[1] == STEPS - 2
    assert trained(subclass_gradient, anew=False)[1] < STEPS - 1


def test_measured_steps_and_others_take_turns() -> None:
    """Sums of a repeated step are those of a new look, with and without clipping, whatever was asked before."""
    readings = []
    for anew in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 50))
        optimizer = Padam(model.parameters(), p=0.3)
        statistics = StepStatistics(optimizer, model)
        window, found = statistics.window(), []
        for step in range(8):
            set_gradients(list(model.parameters()), step)
            if step % 3 == 1:
                statistics.measure_next_step()
            if anew:
                optimizer._plan = None
            optimizer.step()
            found.append(window.read())
        readings.append(found)
    assert readings[0] == readings[1]


FLAT_CHANGES: list[Callable[..., None] | None] = [
    None,
    move_gradient,
    replace_data,
    replace_moment,
    replace_data_of_moment,
    replace_step,
    move_settings,
    freeze,
]


@pytest.mark.parametrize("update_scale", ["raw", "adam"])
@pytest.mark.parametrize("change", FLAT_CHANGES, ids=lambda change: getattr(change, "__name__", "none"))
def test_flat_holders_are_cut_once(change: Callable[..., None] | None, update_scale: str) -> None:
    """As ZeRO's partitions are: sums of each piece, parameters and moments are bit for bit those of new looks."""
    runs, repeated = [], 0
    for anew in (True, False):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(numel)) for numel in (1200, 30, 7, 20)]
        optimizer = Padam([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], p=0.3, update_scale=update_scale)
        # Out of order, with gaps, and one holder whole.
        pieces = [
            Piece(params[0], 500, 600),
            Piece(params[0], 450, 0),
            Piece(params[1], 10, 20),
            Piece(params[0], 0, 400),
            Piece(params[2]),
        ]
        found = []
        for step in range(STEPS):
            set_gradients([param for param in params if param.requires_grad], step)
            if step == 2 and change is not None:
                change(optimizer, params)
            if anew:
                optimizer._plan = None
            plan, request = optimizer._plan, StepSums(pieces, measure=step == 1)
            optimizer.sum_next_step(request)
            optimizer.step()
            repeated += plan is not None and optimizer._plan is plan
            assert request.rows is not None
            found += [request.rows if request.measure else request.rows[:, 0]]
            grads = [weakref.ref(param.grad) for param in params if param.grad is not None]
            optimizer.zero_grad()
            assert all(ref() is None for ref in grads)
        found += [param.detach() for param in params]
        found += [state[name] for state in optimizer.state.values() for name in ("step", "exp_avg", "exp_avg_sq")]
        runs.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    seen_anew = {None: 0, move_gradient: 0, move_settings: 0}.get(change, 1)
    assert repeated == STEPS - 1 - seen_anew


def test_counts_of_steps_are_ordinary_tensors() -> None:
    """As whoever copies, saves, loads, reads or writes them finds them; each state has its own."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = Padam(params)

    def step(*numbers: int, of: Padam = optimizer) -> list[float]:
        own = of.param_groups[0]["params"]
        for i, param in enumerate(own):
            param.grad = torch.ones(3) if i in numbers else None
        of.step()
        return [state["step"].item() for state in of.state.values()]

    assert step(0, 1, 2) == [1, 1, 1]
    assert step(0, 2) == [2, 1, 2]
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    other = copy.deepcopy(optimizer)
    assert step(0, 1, 2) == [3, 2, 3] and step(1) == [3, 3, 3]
    assert step(0, 1, of=other) == [3, 2, 2]
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert [own["step"].shape for own in state["state"].values()] == [torch.Size([])] * 3
    optimizer.load_state_dict(state)
    assert step(0, 1, 2) == [3, 2, 3]
    assert [own["step"].item() for own in state["state"].values()] == [2, 1, 2]


def test_no_gradient_is_kept_alive() -> None:
    params = [nn.Parameter(torch.ones(100)) for _ in range(2)]
    optimizer = Padam(params)
    for step in range(3):
        set_gradients(params, step)
        kept = [weakref.ref(param.grad) for param in params]
        optimizer.step()
        optimizer.zero_grad()
        assert all(ref() is None for ref in kept)
