"""One process of a Trainer that follows spectra; writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from hf_pdyn import SpectralCallback, WeightDecayShutoffCallback
from hf_pdyn.measure.attention_lora import AttentionProduct
from hf_pdyn.run_dir.tables import LAYERS, read_table
from tests.callbacks.test_schedule import Decays
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.leaving import leave
from tests.distributed.trainer_worker import GLOBAL_BATCH, build, kinds
from tests.training import trainer


def fails_at(call: int, original: Any) -> Any:
    """`original`, but for one call, on whichever process comes to it."""
    calls = 0

    def method(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise MemoryError("none left")
        return original(*args, **kwargs)

    return method


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    measure = fails_at(options.pop("fails_at", 0), AttentionProduct.measure)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    target, decays = options.pop("wd_off", None), Decays()
    shutoff = [] if target is None else [WeightDecayShutoffCallback(target)]
    run = trainer(
        out,
        model=build(options.pop("model", "LoRA")),
        callbacks=[*shutoff, SpectralCallback(3), decays],
        per_device_train_batch_size=GLOBAL_BATCH // world_size,
        max_steps=6,
        logging_steps=3,
        learning_rate=1e-2,
        adam_epsilon=1e-6,
        **options,
    )
    with warnings.catch_warnings(record=True) as caught, mock.patch.object(AttentionProduct, "measure", measure):
        warnings.simplefilter("always")
        run.train()
    inner = run.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    return {
        "world_size": world_size,
        "tensors": kinds(inner),
        "steps": run.state.global_step,
        "decays": [max(step) for step in decays.steps],
        "said": [str(one.message) for one in caught if "pdyn" in str(one.message)],
        "logs": [record for record in run.state.log_history if "loss" in record],
        "rows": read_table(out, LAYERS)[0].to_pylist(),
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    reports = {name: train(out / name.replace(" ", "_"), options) for name, options in cases.items()}
    if dist.is_initialized():
        dist.barrier()
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
