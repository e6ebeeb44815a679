"""One process that steps parameters, sharded by FSDP2 or whole, with moments in fewer bits.

Writes parameters, and moments as bytes, to `OUT/rank<i>.json`; goes on from the checkpoint of another launch and leaves
one where it is asked to.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_pdyn import Padam
from hf_pdyn.optim.weight_correction import joined
from tests.distributed.leaving import leave

STEPS = 3


def run(settings: dict[str, Any], load: str | None, save: str | None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 21), nn.Linear(21, 7))
    if settings.get("weight_correction"):
        model.to(torch.bfloat16)
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = Padam(model.parameters(), lr=1e-2, p=0.3, **settings)
    first = 0
    if load is not None:
        params: dict[str, Any] = dict(model.named_parameters())
        state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(model, optimizer), "model": params}
        dcp.load(state, checkpoint_id=load)
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        first = STEPS
    for step in range(first, first + STEPS):
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            sharded = isinstance(param, DTensor)
            param.grad = distribute_tensor(grad, param.device_mesh, param.placements) if sharded else grad
        optimizer.step()
    if save is not None:
        state = {"optimizer": get_optimizer_state_dict(model, optimizer), "model": dict(model.named_parameters())}
        dcp.save(state, checkpoint_id=save)
    states = [dict(optimizer.state[param]) for param in model.parameters()]
    parameters = [whole(param.detach()) for param in model.parameters()]
    if settings.get("weight_correction"):
        parameters = [
            joined(param, whole(state.pop("weight_correction")))
            for param, state in zip(parameters, states, strict=True)
        ]
    tensors = [value for state in states for value in state.values()]
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "dtypes": sorted({str(tensor.dtype) for tensor in tensors}),
        "shards": sum(isinstance(tensor, DTensor) for tensor in tensors),
        "moments": [whole(tensor).view(torch.uint8).tolist() for tensor in tensors],
        "parameters": [param.tolist() for param in parameters],
    }


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).reshape(-1)


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    reports = {name: run(*case) for name, case in cases.items()}
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    if dist.is_initialized():
        dist.barrier()  # the other may still gather from this one
    leave()


if __name__ == "__main__":
    main()
