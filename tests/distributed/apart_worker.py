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

from hf_pdyn import TelemetryCallback
from tests.training import trainer


def train(out: Path, evaluates: bool) -> dict[str, Any]:
    run = trainer(out, callbacks=[TelemetryCallback()], max_steps=4, ddp_find_unused_parameters=False)
    if evaluates:
        run.evaluate()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    return {
        "world_size": dist.get_world_size(),
        "wrapper": type(run.model_wrapped).__name__,
        "said": [str(one.message) for one in caught if "do not average" in str(one.message)],
        "weights": [param.detach().double().norm().item() for param in run.model.parameters()],
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    reports = {name: train(out / name.replace(" ", "_"), evaluates) for name, evaluates in cases.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
