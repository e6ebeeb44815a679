"""What one process can see of sharding; sums over several are tested in distributed/."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from hf_pdyn import PControlCallback, StepStatistics
from hf_pdyn.sharding import Shards, agreed, local, shards_invisibly
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
    assert shards.shares(params, like=params[0]) == 1.0
    sums = torch.ones(3)
    assert shards.add_up(sums) is sums
    assert local(params[0]) is params[0]


def test_without_other_processes_everybody_agrees() -> None:
    assert agreed([0.1, 2.0], torch.device("cpu")) == [0.1, 2.0]


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.usefixtures("process_group")
def test_fsdp1_is_said_to_be_unavailable() -> None:
    model = FullyShardedDataParallel(small_model(), use_orig_params=True, device_id=torch.device("cpu"))
    assert shards_invisibly(model)
    assert not shards_invisibly(small_model())
    statistics = StepStatistics(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert statistics.unavailable is not None
    assert "use FSDP2" in statistics.unavailable


def test_control_without_statistics_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pdyn.statistics.shards_invisibly", lambda model: True)
    with pytest.raises(ValueError, match="Algorithm 1 cannot read the gradients: FSDP1 shards parameters"):
        trainer(tmp_path, callbacks=[PControlCallback()]).train()


def test_matching_is_refused_where_no_process_sees_the_whole_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_pdyn.registration.shards_invisibly", lambda model: True)
    trainer(tmp_path).create_optimizer()
    with pytest.raises(
        ValueError, match='update_scale="adam".*under FSDP1 no process can see. Launch with DDP or FSDP2'
    ):
        trainer(tmp_path, optim_args="update_scale=adam").create_optimizer()
