"""What one process can see of sharding; sums over several are tested in distributed/."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from hf_pdyn import PControlCallback, TelemetryCallback, label_parameters
from hf_pdyn.tensors.sharding import (
    Piece,
    Shards,
    _communication_device,
    agreed,
    declare_fsdp1_shards,
    declare_shard,
    local,
)
from tests.training import trainer


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def test_plain_tensors_are_whole_and_nothing_is_communicated() -> None:
    params = list(small_model().parameters())
    shards = Shards(params)
    assert not shards.sharded
    assert shards.share(params[0]) == 1.0
    sums = torch.ones(3)
    assert shards.add_up(sums) is sums
    assert local(params[0]) is params[0]


def test_without_other_processes_everybody_agrees() -> None:
    assert agreed([0.1, 2.0], torch.device("cpu")) == [0.1, 2.0]


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.usefixtures("process_group")
def test_fsdp1_in_one_process_shards_nothing() -> None:
    model = FullyShardedDataParallel(small_model(), use_orig_params=True, device_id=torch.device("cpu"))
    declare_fsdp1_shards(model)
    assert not Shards(model.parameters()).sharded


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.usefixtures("process_group")
def test_flat_fsdp1_is_refused_with_the_cure() -> None:
    model = FullyShardedDataParallel(small_model(), use_orig_params=False, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match="use_orig_params"):
        label_parameters(model)


def test_a_declared_shard_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes, of which two hold the same: a sum over all four counts it twice, hence the share."""
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    shard, whole = torch.ones(3), torch.ones(2)
    declare_shard(shard, 2)
    shards = Shards([shard, whole])
    assert shards.sharded
    assert [shards.share(tensor) for tensor in (shard, whole)] == [0.5, 0.25]
    assert shards.share_of_square(torch.tensor(4.0)).item() == 16 / 4


def test_a_piece_of_a_flat_tensor() -> None:
    flat = torch.arange(10.0)
    piece = Piece(flat, start=2, numel=3)
    assert piece.of(flat).tolist() == [2.0, 3.0, 4.0]
    assert piece.of(flat).data_ptr() == flat[2:].data_ptr()  # a view
    assert Piece(flat).of(flat) is flat


@pytest.mark.parametrize(
    ("device", "backends", "expected"),
    [("cpu", "cpu:gloo", "cpu"), ("cpu", "cuda:nccl", "cuda"), ("cpu", "cpu:gloo,cuda:nccl", "cpu")],
)
def test_sums_travel_by_a_device_that_the_backend_knows(
    monkeypatch: pytest.MonkeyPatch, device: str, backends: str, expected: str
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: backends)
    assert _communication_device(torch.device(device)).type == expected


def test_a_wrapped_optimizer_nobody_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pdyn.measure.step_statistics.why_unreadable", lambda _: "DeepSpeed steps it; use DDP")
    with pytest.raises(ValueError, match="Algorithm 1 cannot read the gradients: DeepSpeed steps it; use DDP"):
        trainer(tmp_path, callbacks=[PControlCallback()]).train()
    run = trainer(tmp_path, callbacks=[TelemetryCallback()])
    with pytest.warns(UserWarning, match="pdyn metrics of gradients and updates: DeepSpeed steps it; use DDP."):
        run.train()
    assert not any("pdyn/D_w" in record for record in run.state.log_history)
