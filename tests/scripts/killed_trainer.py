"""Trainer runs that are killed at a given place and then resumed: `OUT LAUNCH CASES KILLS`.

They are resumed from the newest complete checkpoint, with default flags. Cases and kills are JSON lists of names.
Every run is a forked child (one for each process of the launch), so one start of the interpreter serves all; the parent
itself never trains. What a run saw is in `OUT/<case>/<kill>/rank<i>.json`, that of the uninterrupted one in
`OUT/<case>/straight`.
"""

import gc
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState

from hf_pdyn import PControlCallback, TelemetryCallback, WeightDecayShutoffCallback, last_complete_checkpoint
from hf_pdyn.policy.algorithm1 import ControlConfig
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.matrix import LAUNCHES
from tests.distributed.trainer_worker import full_weights
from tests.training import trainer, training_logs

CONTROL = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)

# Checkpoints end the epochs (transformers 5.2 resumes nowhere else exactly). Control decides every 3 steps and a record
# is logged every 5, so a checkpoint lies inside intervals of both.
STEPS, SAVED, KILLED_SAVE, KILLED_STEP = 24, (8, 16), 16, 20

CASES: dict[str, dict[str, Any]] = {
    "padam, control, shutoff, telemetry": {"optim_args": "p=0.5", "with": ["control", "shutoff", "telemetry"]},
    "padam matched, control": {"optim_args": "p=0.25,update_scale=adam", "with": ["control"]},
    "sgd, shutoff": {"optim": "sgd", "with": ["shutoff"]},
    "adamw, shutoff, telemetry": {"optim": "adamw_torch", "with": ["shutoff", "telemetry"]},
}
CALLBACKS: dict[str, Callable[[], TrainerCallback]] = {
    "control": lambda: PControlCallback(CONTROL, interval=3),
    "shutoff": lambda: WeightDecayShutoffCallback("0.5"),
    "telemetry": lambda: TelemetryCallback(per_layer=True),
}


class Steps(TrainerCallback):
    """Sees every step's settings, and asks for the checkpoints when our callbacks have had their on_step_end."""

    def __init__(self) -> None:
        self.seen: dict[int, list[list[float | None]]] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.seen[state.global_step + 1] = [[group.get("p"), group["weight_decay"]] for group in optimizer.param_groups]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in SAVED


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_killed_save(path: Any) -> bool:
    return f"checkpoint-{KILLED_SAVE}" in str(path)


def in_an_interval() -> AbstractContextManager[Any]:
    asks = Steps.on_step_end

    def on_step_end(self: Steps, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asks(self, args, state, control)
        if state.global_step == KILLED_STEP:
            die()

    return mock.patch.object(Steps, "on_step_end", on_step_end)


def in_the_model() -> AbstractContextManager[Any]:
    save_model = Trainer.save_model

    def dying(self: Trainer, output_dir: str, _internal_call: bool = False) -> None:
        save_model(self, output_dir, _internal_call)
        if is_killed_save(output_dir) and self.args.should_save:
            weights = Path(output_dir) / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
            die()

    return mock.patch.object(Trainer, "save_model", dying)


def in_the_optimizer(part: float) -> AbstractContextManager[Any]:
    save = torch.save

    def dying(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        save(content, path, *args, **kwargs)
        if is_killed_save(path) and Path(path).name == "optimizer.pt":
            written = Path(path).read_bytes()
            Path(path).unlink()
            if part:
                Path(path).write_bytes(written[: int(len(written) * part)])
            die()

    return mock.patch.object(torch, "save", dying)


def in_the_state(part: float | None) -> AbstractContextManager[Any]:
    save = TrainerState.save_to_json

    def dying(self: TrainerState, path: str) -> None:
        if is_killed_save(path) and part is None:
            die()
        save(self, path)
        if is_killed_save(path):
            text = Path(path).read_text()
            Path(path).write_text(text[: int(len(text) * part)])
            die()

    return mock.patch.object(TrainerState, "save_to_json", dying)


KILLS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "in an interval": in_an_interval,
    "in the model": in_the_model,
    "before the optimizer": lambda: in_the_optimizer(0),
    "in the optimizer": lambda: in_the_optimizer(0.5),
    "before the state": lambda: in_the_state(None),
    "in the state": lambda: in_the_state(0.5),
    "after the state": lambda: in_the_state(1),
    "over an earlier checkpoint": lambda: in_the_optimizer(0),
}


def slow_random_state() -> AbstractContextManager[Any]:
    """Other processes than the first take longer to write theirs than it takes to write the rest."""
    save = torch.save

    def slow(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if is_killed_save(path) and Path(path).name == "rng_state_1.pth":
            time.sleep(0.5)
        save(content, path, *args, **kwargs)

    return mock.patch.object(torch, "save", slow)


def loadable_on_cpu() -> AbstractContextManager[Any]:
    """transformers 5.2 maps to "cpu:0" in a launch on the CPU, which torch.load does not know: none resumes there."""
    load = torch.load

    def load_on_cpu(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("map_location"), torch.device) and kwargs["map_location"].type == "cpu":
            kwargs["map_location"] = "cpu"
        return load(*args, **kwargs)

    return mock.patch.object(torch, "load", load_on_cpu)


def train(out: Path, case: dict[str, Any], resume: Path | None = None, go_on: bool = False) -> None:
    """go_on: from the newest complete checkpoint."""
    options, steps = dict(case), Steps()
    run = trainer(
        out,
        callbacks=[*(CALLBACKS[name]() for name in options.pop("with")), steps],
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=STEPS,
        logging_steps=5,
        weight_decay=0.1,
        **options,
    )
    run.remove_callback(PrinterCallback)
    with loadable_on_cpu(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train(resume_from_checkpoint=last_complete_checkpoint(out) if go_on else resume)
    report = {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "wrapper": type(run.model_wrapped).__name__,
        "steps": steps.seen,
        "logs": training_logs(run.state.log_history),
        "weights": {name: weight.flatten().tolist() for name, weight in full_weights(run.model).items()},
        "warnings": [str(one.message) for one in caught if issubclass(one.category, UserWarning)],
    }
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def in_children(processes: int, work: Callable[[], None]) -> list[int]:
    """Run `work` in so many processes and return how each ended; when one was killed, the others are too."""
    port, children = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                os.environ |= {name: str(value) for name, value in names.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    ends: dict[int, int] = {}
    while len(ends) < processes:
        child, status = os.wait()
        ends[child] = os.waitstatus_to_exitcode(status)
        if ends[child]:
            for other in children:
                if other not in ends:
                    os.kill(other, signal.SIGKILL)
    return [ends[child] for child in children]


def killed(out: Path, case: dict[str, Any], kill: str) -> Callable[[], None]:
    def work() -> None:
        resume = None
        if kill == "over an earlier checkpoint":
            for step in SAVED:
                shutil.copytree(out.parent / "straight" / f"checkpoint-{step}", out / f"checkpoint-{step}")
            resume = out / f"checkpoint-{SAVED[0]}"
        with ExitStack() as stack:
            if os.environ.get("RANK", "0") == "0":
                stack.enter_context(KILLS[kill]())
            else:
                stack.enter_context(slow_random_state())
            train(out, case, resume)

    return work


def import_what_every_child_needs() -> None:
    """Where deepspeed is installed, accelerate imports it in every run, for seconds."""
    if importlib.util.find_spec("deepspeed") is not None:
        importlib.import_module("deepspeed")
        importlib.import_module("torch._inductor.compile_fx")
    gc.freeze()  # a collection in a child would copy every page that it looks at


def main() -> None:
    out, launch, cases, kills = (
        Path(sys.argv[1]),
        LAUNCHES[sys.argv[2]],
        json.loads(sys.argv[3]),
        json.loads(sys.argv[4]),
    )
    processes = launch.processes
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    import_what_every_child_needs()
    for name in cases:
        case = {**launch.options, **CASES[name]}
        straight = out / name / "straight"
        ends = in_children(processes, lambda out=straight, case=case: train(out, case))
        assert ends == [0] * processes, (name, ends)
        for kill in kills:
            folder = out / name / kill
            ends = in_children(processes, killed(folder, case, kill))
            assert ends[0] == -signal.SIGKILL, (name, kill, ends)
            (folder / "files.json").write_text(
                json.dumps(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
            )
            ends = in_children(processes, lambda out=folder, case=case: train(out, case, go_on=True))
            assert ends == [0] * processes, (name, kill, ends)


if __name__ == "__main__":
    main()
