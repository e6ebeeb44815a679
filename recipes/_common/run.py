"""A training run as every recipe does it: its defaults, its start and its outputs."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Trainer, TrainingArguments, trainer_utils
from transformers.integrations import TensorBoardCallback, is_tensorboard_available

from hf_pdyn import PdynArguments

from .entry_point import RecipeError

TRAINING_DEFAULTS: dict[str, Any] = {
    "optim": "padam",
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    # For the metrics before training. An evaluate() before train() would leave the model unwrapped: processes would
    # train on their own (transformers 5.23, DDP), or stop (DeepSpeed).
    "eval_on_start": True,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "tensorboard" if is_tensorboard_available() else "none",
    # Pinning memory with no accelerator to copy to is a warning from torch.
    "dataloader_pin_memory": torch.accelerator.is_available(),
}


@dataclass
class CheckpointArguments:
    """Which checkpoint is trained, and how much of it."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub name or directory; by default a small model that is made here."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where the default model is kept; by default ~/.cache/hf_pdyn."},
    )
    full_finetune: bool = field(default=False, metadata={"help": "Train every parameter; no adapter."})

    @property
    def cache_path(self) -> Path | None:
        """The directory of ``cache_dir``."""
        return None if self.cache_dir is None else Path(self.cache_dir).expanduser()

    @property
    def trained(self) -> str:
        """The name of the folder that what was trained is saved in."""
        return "model" if self.full_finetune else "adapter"


def begin(training_options: TrainingArguments, pdyn_options: PdynArguments) -> tuple[Console, str | None]:
    """Check the options before any work; return where to print, and the checkpoint to go on from."""
    is_main = training_options.process_index == 0
    pdyn_options.check(training_options)
    checkpoint = checkpoint_to_resume(training_options)
    logging.getLogger("hf_pdyn").setLevel(logging.INFO if is_main else logging.WARNING)
    return Console(quiet=not is_main), checkpoint


def checkpoint_to_resume(options: TrainingArguments) -> str | None:
    """Return the checkpoint that ``--resume_from_checkpoint`` means; ``auto`` takes the newest."""
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted == "auto":
        exists = Path(options.output_dir).is_dir()
        return trainer_utils.get_last_checkpoint(options.output_dir) if exists else None
    if not Path(wanted).is_dir():
        raise RecipeError(f"--resume_from_checkpoint must be a checkpoint directory or 'auto', got {wanted!r}")
    return wanted


@contextmanager
def loading(source: str | Path, kind: str) -> Iterator[None]:
    """Within it, a model that cannot be loaded is a bad ``--model_name_or_path``."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--model_name_or_path must be {kind} on the hub or in a directory, got {str(source)!r}"
            f" ({str(error).strip().splitlines()[0]}); leave the option out for the model that needs no network"
        ) from error


def save_outputs(trainer: Trainer, model_directory: str) -> dict[str, Path]:
    """Save what was trained and the Trainer's state; return where everything lies."""
    output_dir = Path(trainer.args.output_dir).resolve()
    paths = {model_directory: output_dir / model_directory}
    trainer.save_model(str(paths[model_directory]))
    trainer.save_state()
    checkpoints = {int(path.name.rpartition("-")[2]): path for path in output_dir.glob("checkpoint-*")}
    for step in sorted(step for step in checkpoints if step <= trainer.state.global_step):
        paths[checkpoints[step].name] = checkpoints[step]
    paths["trainer state"] = output_dir / "trainer_state.json"
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is not None:
            paths["tensorboard"] = Path(callback.logging_dir).resolve()
    paths["summary"] = output_dir / "summary.json"
    return paths


def refuse_divergence(name: str, value: float) -> None:
    """Raise where a closing measurement is no number."""
    if not math.isfinite(value):
        raise RecipeError(
            f"training diverged: the {name} is {value}; lower --learning_rate or p, or set update_scale=adam in"
            " --optim_args"
        )
