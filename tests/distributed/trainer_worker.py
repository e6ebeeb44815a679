"""One process of Trainer runs with everything on, case by case; writes what it saw to `OUT/rank<i>.json`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PrinterCallback, TrainerCallback

from hf_pdyn import PControlCallback, TelemetryCallback, WeightDecayShutoffCallback
from hf_pdyn.control import ControlConfig
from tests.training import trainer

CONTROL = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)
GLOBAL_BATCH = 8


class Exponents(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.steps.append(optimizer.param_groups[0].get("p", -1.0))


def train(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = options.get("gradient_accumulation_steps", 1)
    exponents = Exponents()
    callbacks = [TelemetryCallback(every=1, per_layer=True), WeightDecayShutoffCallback("0.5"), exponents]
    if options.get("optim", "padam") == "padam":
        callbacks.insert(0, PControlCallback(CONTROL, interval=3))
    run = trainer(
        out,
        callbacks=callbacks,
        weight_decay=0.1,
        max_steps=18,
        logging_steps=3,
        per_device_train_batch_size=GLOBAL_BATCH // world_size // accumulation,
        ddp_find_unused_parameters=False,
        **options,
    )
    run.remove_callback(PrinterCallback)
    run.train()
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "wrapper": type(run.model_wrapped).__name__,
        "p": exponents.steps,
        "logs": [record for record in run.state.log_history if "loss" in record],
        "weights": {name: param.detach().double().norm().item() for name, param in run.model.named_parameters()},
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    reports = {name: train(out / name.replace(" ", "_"), options) for name, options in cases.items()}
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
