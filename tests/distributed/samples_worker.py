"""One process of a Trainer with sample losses; writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hf_pdyn import SampleLossCallback
from hf_pdyn.integrations import probing
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.leaving import leave
from tests.training import token_blocks, trainer


class Unreadable(list):  # type: ignore[type-arg]
    """Its last sample cannot be read on rank 1."""

    def __getitem__(self, i: Any) -> Any:
        if dist.is_initialized() and dist.get_rank() == 1 and i == len(self) - 1:
            raise OSError("no such sample")
        return super().__getitem__(i)


class Loses(TrainerCallback):
    """Leaves rank 1 without its evaluation sets."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if dist.get_rank() == 1:
            self.trainer.eval_dataset = token_blocks(2)


def failing_at_first(original: Any) -> Any:
    """`original`, but for the first call on rank 1."""
    calls = []

    def called(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1 and dist.get_rank() == 1:
            raise MemoryError("none left")
        return original(*args)

    return called


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Sets of 13 samples and of one, in batches of 2, and 7 of the train set."""
    whole = token_blocks(13, seed=9)
    tests = {"many": Unreadable(whole) if options.pop("fails", False) else whole, "one": token_blocks(1, seed=3)}
    loses, switches = Loses(), options.pop("switches", True)
    callbacks = [SampleLossCallback(7)] if options.pop("measures", True) else []
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    run = trainer(
        out,
        callbacks=[*callbacks, *([loses] if options.pop("loses", False) else [])],
        per_device_train_batch_size=8 // processes,
        per_device_eval_batch_size=2,
        **options,
    )
    run.eval_dataset = tests
    loses.trainer = run
    evaluating = probing.evaluating if switches else failing_at_first(probing.evaluating)
    with warnings.catch_warnings(record=True) as caught, mock.patch.object(probing, "evaluating", evaluating):
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
