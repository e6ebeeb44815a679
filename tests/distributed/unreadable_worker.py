"""One process of DeepSpeed runs whose gradients cannot be read; writes what was said to `OUT/rank<i>.json`."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from hf_pdyn import PControlCallback, TelemetryCallback
from tests.distributed.leaving import leave
from tests.distributed.trainer_worker import GLOBAL_BATCH
from tests.training import trainer, training_logs


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    callbacks = [PControlCallback(interval=3)] if options.pop("control", False) else [TelemetryCallback(every=1)]
    if options.pop("silent", False):
        callbacks = []
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    run = trainer(
        out,
        callbacks=callbacks,
        per_device_train_batch_size=GLOBAL_BATCH // world_size,
        adam_epsilon=1e-6,
        weight_decay=0.1,
        **options,
    )
    report: dict[str, Any] = {"error": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run.train()
        except ValueError as error:
            report["error"] = str(error)
    params = list(run.model.parameters())
    with deepspeed.zero.GatheredParameters([param for param in params if hasattr(param, "ds_id")]):
        weights = [param.detach().double().norm().item() for param in params]
    return report | {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "engine": type(run.model_wrapped).__name__,
        "said": [str(one.message) for one in caught if "pdyn metrics" in str(one.message)],
        "logs": training_logs(run.state.log_history),
        "weights": weights,
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    reports = {name: train(out / name.replace(" ", "_"), options) for name, options in cases.items()}
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
