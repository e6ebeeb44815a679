"""One process of a Trainer with sample losses; writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hf_pdyn import SampleLossCallback
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.leaving import leave
from tests.training import token_blocks, trainer


class Unreadable(list):  # type: ignore[type-arg]
    """Its last sample cannot be read on rank 1."""

    def __getitem__(self, i: Any) -> Any:
        if dist.is_initialized() and dist.get_rank() == 1 and i == len(self) - 1:
            raise OSError("no such sample")
        return super().__getitem__(i)


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Sets of 13 samples and of one, in batches of 2, and 7 of the train set."""
    whole = token_blocks(13, seed=9)
    tests = {"many": Unreadable(whole) if options.pop("fails", False) else whole, "one": token_blocks(1, seed=3)}
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    run = trainer(
        out,
        callbacks=[SampleLossCallback(7)] if options.pop("measures", True) else [],
        per_device_train_batch_size=8 // processes,
        per_device_eval_batch_size=2,
        **options,
    )
    run.eval_dataset = tests
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    logged = [record for record in run.state.log_history if "pdyn/samples/train/mean" in record]
    weights = [param.full_tensor() if hasattr(param, "full_tensor") else param for param in run.model.parameters()]
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "steps": run.state.global_step,
        "logged": logged,
        "weights": [weight.detach().double().sum().item() for weight in weights],
        "said": [str(one.message) for one in caught if "sample losses" in str(one.message)],
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    reports = {name: train(out / name, options) for name, options in cases.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
