"""One of four processes: FSDP2 over tensor parallelism against the whole model; writes to `OUT/rank<i>.json`."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hf_pdyn import Padam, StepStatistics
from tests.distributed.leaving import leave


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


def train(model: nn.Module) -> dict[str, float]:
    optimizer = Padam(model.parameters(), lr=0.1, p=0.25, update_scale="adam")
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 8)).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    reading = window.read()
    assert reading.weight_norm is not None
    assert reading.bias_norm is not None
    return {"D_w": reading.weight_norm, "D_b": reading.bias_norm, "loss": losses[-1]}


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    whole = train(build())
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = build()
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    kinds = sorted({type(placement).__name__ for param in model.parameters() for placement in param.placements})
    report = {"world_size": dist.get_world_size(), "kinds": kinds, "whole": whole, "parallel": train(model)}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps({"FSDP2 x TP": report}))
    leave()


if __name__ == "__main__":
    main()
