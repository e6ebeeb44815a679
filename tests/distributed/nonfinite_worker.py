"""One process of an FSDP2 loop in which NaN stands in a single shard; writes what it saw to `OUT/rank<i>.json`."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from hf_pdyn import Padam
from tests.distributed.leaving import leave


def train() -> dict[str, Any]:
    """Four steps: a plain one, NaN on rank 1 alone, NaN there while rank 0 has no gradient at all, a plain one."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    fully_shard(model)
    optimizer = Padam(model.parameters(), lr=0.1, weight_decay=0.1, nonfinite="skip")
    skipped, weights = [], []
    for step in range(4):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        shard = model[0].weight.grad.to_local()
        if step in (1, 2) and rank == 1:
            shard[0, 0] = math.nan
        if step == 2 and rank == 0:
            optimizer.zero_grad()
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
        weights.append([param.full_tensor().flatten().tolist() for param in model.parameters()])
    return {
        "world_size": dist.get_world_size(),
        "skipped": skipped,
        "weights": weights,
        "steps": sorted({state["step"].item() for state in optimizer.state.values()}),
    }


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    report = train()
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps({"nan in one shard": report}))
    leave()


if __name__ == "__main__":
    main()
