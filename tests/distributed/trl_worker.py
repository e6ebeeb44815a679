"""One process of TRL's DPOTrainer with sample losses; writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hf_pdyn import SampleLossCallback
from tests.callbacks.test_trl import dpo
from tests.distributed.leaving import leave


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """9 pairs of the train set and 5 of the test set, which do not come out even."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = dpo(out, [SampleLossCallback(9)], per_device_train_batch_size=4 // processes, max_steps=6, **options)
        run.train()
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "logged": [record for record in run.state.log_history if "pdyn/samples/train/mean" in record],
        "rewards": [record["rewards/margins"] for record in run.state.log_history if "rewards/margins" in record],
        "said": [str(one.message) for one in caught if "sample losses" in str(one.message)],
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    reports = {name: train(out / name, options) for name, options in cases.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
