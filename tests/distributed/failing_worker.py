"""One process of a Trainer whose measuring fails on rank 1 alone; writes what it saw to `OUT/rank<i>.json`."""

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from hf_pdyn import AllocationCallback, PControlCallback, StepStatistics, TelemetryCallback
from hf_pdyn.callbacks import allocation, control
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.leaving import leave
from tests.distributed.trainer_worker import CONTROL, Exponents
from tests.training import trainer, training_logs


def fails_at(call: int, original: Any) -> Any:
    """`original`, but for one call on rank 1."""
    calls = 0

    def method(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and dist.get_rank() == 1:
            raise MemoryError("none left")
        return original(*args, **kwargs)

    return method


def fails_behind(call: int, attempted: Any) -> Any:
    """`attempted`, of which that call on rank 1 fails once other processes have had its part."""

    def function(owner: Any, act: Any) -> Any:
        return attempted(owner, lambda: (act(), failing())[0])

    failing = fails_at(call, lambda: None)
    return function


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    failing = options.pop("fails")
    statistics = fails_at(5 if failing == "statistics" else 0, StepStatistics._sum_by_scope)
    telemetry = fails_at(5 if failing == "telemetry" else 0, TelemetryCallback._say_if_a_t_ends)
    attempted = fails_behind(2 if failing == "control" else 0, control.attempted)
    curve = fails_at(2 if failing == "allocation" else 0, AllocationCallback._current_p)
    exponents = Exponents()
    run = trainer(
        out,
        callbacks=[PControlCallback(CONTROL, interval=3), TelemetryCallback(every=1), AllocationCallback(), exponents],
        per_device_train_batch_size=4,
        max_steps=18,
        logging_steps=3,
        save_strategy="steps",
        save_steps=8,
        **options,
    )
    with (
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(StepStatistics, "_sum_by_scope", statistics),
        mock.patch.object(TelemetryCallback, "_say_if_a_t_ends", telemetry),
        mock.patch.object(control, "attempted", attempted),
        mock.patch.object(AllocationCallback, "_current_p", curve),
        mock.patch.object(allocation, "_MOST_OF_TRAINING", math.inf),  # every record is measured
    ):
        warnings.simplefilter("always")
        run.train()
    return {
        "world_size": dist.get_world_size(),
        "steps": run.state.global_step,
        "p": exponents.steps,
        "said": [str(one.message) for one in caught if "stopped measuring" in str(one.message)],
        "D_w": [record.get("pdyn/D_w") for record in training_logs(run.state.log_history)],
        "nonfinite": [record.get("pdyn/nonfinite_steps") for record in training_logs(run.state.log_history)],
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    reports = {name: train(out / name.replace(" ", "_"), options) for name, options in cases.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
