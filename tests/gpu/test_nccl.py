"""One process over NCCL: FSDP2 through the Trainer, and what of the sums over processes a single one can show."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.tensors.sharding import Shards, declare_shard
from tests.distributed import matrix
from tests.synchronisation import STEPS, cuda_guard, gradients, model_on

pytestmark = pytest.mark.gpu

CASES = {
    **{name: case for name, case in matrix.CASES.items() if "accumulation" not in name},
    "full, adamw fused": {"model": "full", "optim": "adamw_torch_fused"},
    "full, nonfinite=skip": {"model": "full", "optim_args": "p=0.25,nonfinite=skip"},
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("launches")
    return {name: matrix.run(name, out / name.replace(" ", "_"), CASES) for name in matrix.GPU_LAUNCHES}


@pytest.mark.parametrize("case", CASES)
def test_fsdp2_through_the_trainer_equals_a_plain_run(
    launched: dict[str, list[dict[str, Any]]], case: str, record_property: Any
) -> None:
    (sharded,), (plain,) = launched["FSDP2 on a GPU"], launched["plain on a GPU"]
    assert "nccl" in sharded[case]["backend"]
    assert plain[case]["backend"] is None
    found = matrix.difference([sharded[case]], plain[case])
    record_property("difference", str(found))
    assert found.agrees, str(found)


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("nccl")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_sums_travel_by_a_device_that_nccl_knows(device: str) -> None:
    """The CPU's are those of offloaded parameters, which NCCL itself refuses."""
    param = nn.Parameter(torch.ones(3, device=device))
    declare_shard(param, 2)
    sums = torch.tensor([1.0, 2.0], device=device, dtype=torch.float64)
    total = Shards([param]).add_up(sums)
    assert total.device.type == device
    assert total.tolist() == [1.0, 2.0]
    assert total.data_ptr() != sums.data_ptr()  # it went through an all-reduce
    if device == "cpu":
        with pytest.raises(RuntimeError):
            dist.all_reduce(sums.clone())


@pytest.mark.usefixtures("nccl")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("optimizer_name", ["padam", "adamw fused"])
def test_a_measured_step_of_dtensors_waits_for_nothing(optimizer_name: str) -> None:
    """And its statistics are those of plain tensors, to 1e-5 (float32)."""
    readings = []
    for sharded in (True, False):
        model = model_on("cuda")
        if sharded:
            fully_shard(model, mesh=init_device_mesh("cuda", (1,)))
        params = list(model.parameters())
        assert all(isinstance(param, DTensor) for param in params) == sharded
        if optimizer_name == "padam":
            optimizer: torch.optim.Optimizer = Padam(params, lr=1e-2, p=0.25, weight_decay=0.1)
        else:
            optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, fused=True)
        statistics = StepStatistics(optimizer, model)
        window = statistics.window()
        for step in range(STEPS):
            set_gradients(model, step)
            statistics.measure_next_step()
            if step:
                with cuda_guard():
                    optimizer.step()
            else:  # states are made, and the list of columns is sent, once
                optimizer.step()
        readings.append(window.read())
    ours, expected = readings
    assert ours.steps == ours.measured_steps == STEPS
    assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    for name, values in expected.quantities.items():
        assert ours.quantities[name] == pytest.approx(values, rel=1e-5), name


def set_gradients(model: nn.Module, step: int) -> None:
    """The same numbers whether parameters are DTensors or not."""
    plain = model_on("cuda")
    gradients(plain, step)
    for param, like in zip(model.parameters(), plain.parameters(), strict=True):
        grad = like.grad
        if isinstance(param, DTensor):
            grad = DTensor.from_local(grad, param.device_mesh, param.placements)
        param.grad = grad
