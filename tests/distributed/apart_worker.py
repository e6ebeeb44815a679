"""One process of a Trainer that evaluates before it trains, or not; writes what was said to `OUT/rank<i>.json`."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments  # noqa: F401  (imports what warns before warnings are recorded)

from hf_pdyn import PControlCallback, TelemetryCallback
from tests.distributed.leaving import leave
from tests.training import trainer


def train(out: Path, evaluates: bool, controls: bool) -> dict[str, Any]:
    callback = PControlCallback(interval=2) if controls else TelemetryCallback()
    run = trainer(out, callbacks=[callback], max_steps=4, ddp_find_unused_parameters=False)
    if evaluates:
        run.evaluate()
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run.train()
        except ValueError as refused:
            error = str(refused)
    return {
        "error": error,
        "world_size": dist.get_world_size(),
        "wrapper": type(run.model_wrapped).__name__,
        "said": [str(one.message) for one in caught if "do not average" in str(one.message)],
        "weights": [param.detach().double().norm().item() for param in run.model.parameters()],
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    reports = {name: train(out / name.replace(" ", "_"), *case) for name, case in cases.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
