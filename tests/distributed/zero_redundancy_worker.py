"""One process of torch's ZeroRedundancyOptimizer over Padam; writes the weights' norms to `OUT/rank<i>.json`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from hf_pdyn import Padam
from tests.distributed.leaving import leave


def norms(model: nn.Module) -> list[float]:
    return [param.norm().item() for param in model.parameters()]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
    return norms(model)


def train(options: dict[str, Any]) -> dict[str, Any]:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    start, error = norms(models[0]), None
    try:
        steps(models[0], ZeroRedundancyOptimizer(models[0].parameters(), Padam, lr=0.1, **options))
    except ValueError as refusal:
        error = str(refusal)
    return {
        "world_size": dist.get_world_size(),
        "start": start,
        "error": error,
        "partitioned": norms(models[0]),
        "whole": steps(models[1], Padam(models[1].parameters(), lr=0.1, **options)),
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    reports = {name: train(options) for name, options in cases.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
