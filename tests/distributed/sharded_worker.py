"""One process of bare loops over FSDP2 (or of the same loops unsharded); writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import GPT2LMHeadModel, Trainer

from hf_pdyn import Padam, StepStatistics, build_param_groups
from hf_pdyn.integrations.transformers import watch_mixed_mesh_clipping
from hf_pdyn.measure.windows import Scope
from hf_pdyn.tensors.sharding import agreed
from tests.distributed.leaving import leave
from tests.training import gpt2, token_blocks

STEPS = 4


def shard(model: GPT2LMHeadModel, meshes: list[list[int] | None]) -> None:
    """A mesh for each block and one for the rest; None leaves a part as it is."""
    for module, shape in zip([*model.transformer.h, model], meshes, strict=True):
        if shape is not None:
            names = ("replicate", "shard")[-len(shape) :]
            fully_shard(module, mesh=init_device_mesh("cpu", tuple(shape), mesh_dim_names=names))


def average_what_is_whole(model: GPT2LMHeadModel) -> None:
    """The gradients of parameters that FSDP2 does not have, as DDP would."""
    for param in model.parameters():
        if dist.is_initialized() and not isinstance(param, DTensor):
            dist.all_reduce(param.grad)
            param.grad /= dist.get_world_size()


def train(meshes: list[list[int] | None], optimizer_name: str, max_norm: float | None = None) -> dict[str, Any]:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = gpt2()
    if world_size > 1:
        shard(model, meshes)
    groups = build_param_groups(model, weight_decay=0.1)
    if optimizer_name == "padam":
        optimizer = Padam(groups, lr=1e-2, p=0.25, update_scale="adam")
    else:
        optimizer = torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    reductions_of_steps = 0
    tokens = torch.stack([block["input_ids"] for block in token_blocks(8 * STEPS)])
    for batch in tokens.split(8):
        own = batch.chunk(world_size)[rank]
        optimizer.zero_grad()
        model(input_ids=own, labels=own).loss.backward()
        average_what_is_whole(model)
        if max_norm is not None:
            Trainer._mixed_mesh_grad_norm(SimpleNamespace(optimizer=optimizer), model, max_norm)
        statistics.measure_next_step()
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
            optimizer.step()
        reductions_of_steps += all_reduce.call_count
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        reading = window.read()

    params = dict(model.named_parameters())
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "meshes": sorted(
            {str(tuple(p.device_mesh.shape)) if isinstance(p, DTensor) else "whole" for p in params.values()}
        ),
        "agreed": agreed([float(rank), 0.1 + rank], torch.device("cpu")),
        "reductions_of_steps": reductions_of_steps,
        "reductions_of_a_reading": all_reduce.call_count,
        "grad_norm": by_scope(reading.grad_norm),
        "grad_norm_clipped": by_scope(reading.grad_norm_clipped),
        **{name: by_scope(values) for name, values in reading.quantities.items()},
        "weights": {name: full(param).double().norm().item() for name, param in params.items()},
    }


def mesh_of(param: torch.Tensor) -> str:
    return str(tuple(param.device_mesh.shape)) if isinstance(param, DTensor) else "whole"


def by_scope(values: Mapping[Scope, float]) -> dict[str, float]:
    return {f"{scope.layer}/{scope.pathway}": value for scope, value in values.items()}


def full(param: torch.Tensor) -> torch.Tensor:
    return (param.full_tensor() if isinstance(param, DTensor) else param).detach()


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    watch_mixed_mesh_clipping()
    reports = {name: train(*case) for name, case in cases.items()}
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
