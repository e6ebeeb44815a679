"""One process of trainings under ZeRO-3, case by case: what every reading of telemetry costs; to `OUT/rank<i>.json`."""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainerCallback

from hf_pdyn import TelemetryCallback
from hf_pdyn.measure.windows import Reading, Window
from tests.distributed.leaving import leave
from tests.training import gpt2, trainer

LOGGING = 2


class Readings:
    """Takes the place of `Window.read`."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.all_reduces: list[int] = []
        self.bytes: list[int] = []
        self._read = Window.read

    def __call__(self, window: Window) -> Reading:
        dist.barrier()  # so that no process is timed while it waits for another's step
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
            begun = time.perf_counter()
            reading = self._read(window)
            self.milliseconds.append(1e3 * (time.perf_counter() - begun))
        sent = [call.args[0] for call in all_reduce.call_args_list]
        self.all_reduces.append(len(sent))
        self.bytes.append(sum(tensor.numel() * tensor.element_size() for tensor in sent))
        return reading


class Steps(TrainerCallback):
    """Times of steps, without the log record that follows."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.milliseconds.append(1e3 * (time.perf_counter() - self._begun))


def model_of(size: dict[str, int]) -> GPT2LMHeadModel:
    if not size:
        return gpt2()
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**size, n_positions=16, bos_token_id=0, eos_token_id=0))


def train(out: Path, size: dict[str, int], max_steps: int, deepspeed: dict[str, Any]) -> dict[str, Any]:
    readings, steps = Readings(), Steps()
    run = trainer(
        out,
        model_of(size),
        max_steps=max_steps,
        logging_steps=LOGGING,
        per_device_train_batch_size=2,
        callbacks=[TelemetryCallback(per_layer=True), steps],
        deepspeed=deepspeed,
    )
    run.remove_callback(PrinterCallback)
    numel = sum(getattr(param, "ds_numel", param.numel()) for param in run.model.parameters())
    with mock.patch.object(Window, "read", lambda window: readings(window)):
        run.train()
    return {
        "world_size": dist.get_world_size(),
        "parameters": numel,
        "wrapper": type(run.model_wrapped).__name__,
        "all_reduces": readings.all_reduces,
        "bytes": readings.bytes,
        "reading": statistics.median(readings.milliseconds),
        "step": statistics.median(steps.milliseconds[1:]),
        "records": sum("pdyn/D_w" in record for record in run.state.log_history),
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    reports = {name: train(out / f"case{i}", **case) for i, (name, case) in enumerate(cases.items())}
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(reports))
    leave()


if __name__ == "__main__":
    main()
