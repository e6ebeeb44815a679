"""One process of bare loops over FSDP2 (or of the same loops unsharded); writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_pdyn import Padam, StepStatistics, build_param_groups
from hf_pdyn.sharding import agreed
from hf_pdyn.windows import Scope
from tests.training import gpt2, token_blocks

STEPS = 4


def train(mesh_shape: tuple[int, ...], optimizer_name: str) -> dict[str, Any]:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = gpt2()
    if world_size > 1:
        names = ("replicate", "shard")[-len(mesh_shape) :]
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    groups = build_param_groups(model, weight_decay=0.1)
    if optimizer_name == "padam":
        optimizer = Padam(groups, lr=1e-2, p=0.25, update_scale="adam")
    else:
        optimizer = torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    tokens = torch.stack([block["input_ids"] for block in token_blocks(8 * STEPS)])
    for batch in tokens.split(8):
        own = batch.chunk(world_size)[rank]
        optimizer.zero_grad()
        model(input_ids=own, labels=own).loss.backward()
        statistics.measure_next_step()
        optimizer.step()
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        reading = window.read()

    params = dict(model.named_parameters())
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "sharded": sum(isinstance(param, DTensor) for param in params.values()),
        "agreed": agreed([float(rank), 0.1 + rank], torch.device("cpu")),
        "reductions_of_a_reading": all_reduce.call_count,
        "grad_norm": by_scope(reading.grad_norm),
        **{name: by_scope(values) for name, values in reading.quantities.items()},
        "weights": {name: full(param).double().norm().item() for name, param in params.items()},
    }


def by_scope(values: Mapping[Scope, float]) -> dict[str, float]:
    return {f"{scope.layer}/{scope.pathway}": value for scope, value in values.items()}


def full(param: torch.Tensor) -> torch.Tensor:
    return (param.full_tensor() if isinstance(param, DTensor) else param).detach()


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    reports = {name: train(tuple(mesh), optimizer) for name, (mesh, optimizer) in cases.items()}
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
