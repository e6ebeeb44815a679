"""A training run as every recipe does it: its defaults, its start and its outputs."""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback, is_tensorboard_available

from hf_pdyn import PdynArguments, last_complete_checkpoint
from hf_pdyn.run_dir import tables

from .config_file import RecipeParser
from .entry_point import DivergedError, RecipeError
from .lora import LoraArguments

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


@dataclass
class Options:
    """What a recipe was asked for, and how it goes on: where to print, which checkpoint to resume from."""

    model: Any
    data: Any
    lora: LoraArguments
    training: TrainingArguments
    pdyn: PdynArguments
    console: Console
    checkpoint: str | None


def check_data_options(validation_fraction: float, **counts: int | None) -> None:
    """Raise for a share that holds nothing out, or all, and for a number of examples below one."""
    if not 0 < validation_fraction < 1:
        raise RecipeError(f"--validation_fraction must lie between 0 and 1, got {validation_fraction}; 0.1 is usual")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise RecipeError(f"--{name} must be at least 1, got {count}; leave it out to use all")


def begin(doc: str, model_arguments: type, data_arguments: type, defaults: dict[str, Any]) -> Options:
    """Parse the command line and check it before any work; the first line of `doc` describes the recipe."""
    _silence_warnings_of_others()
    parser = RecipeParser(
        (model_arguments, data_arguments, LoraArguments, TrainingArguments, PdynArguments),
        defaults=defaults,
        description=doc.partition("\n")[0],
        usage="%(prog)s [--config FILE] [--option VALUE ...]",
    )
    model, data, lora, training, pdyn = parser.parse()
    is_main = training.process_index == 0
    pdyn.check(training)
    for name, folder in (("output_dir", training.output_dir), ("cache_dir", model.cache_dir)):
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise RecipeError(f"--{name} must be a directory, got {folder!r}, which is a file; name another")
    if training.per_device_train_batch_size < 1:
        size = training.per_device_train_batch_size
        raise RecipeError(f"--per_device_train_batch_size must be at least 1, got {size}; the default is the recipe's")
    checkpoint = checkpoint_to_resume(training)
    logging.getLogger("hf_pdyn").setLevel(logging.INFO if is_main else logging.WARNING)
    return Options(model, data, lora, training, pdyn, Console(quiet=not is_main), checkpoint)


def _silence_warnings_of_others() -> None:
    """Those that nobody who runs a recipe can do anything about."""
    # peft reads transformers' old name (peft 0.21, transformers 5.23).
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which peft imports, warns that it finds no other


def checkpoint_to_resume(options: TrainingArguments) -> str | None:
    """Return the checkpoint that ``--resume_from_checkpoint`` means; ``auto`` takes the newest complete one."""
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted == "auto":
        return last_complete_checkpoint(options.output_dir)
    if not Path(wanted, "trainer_state.json").is_file():
        raise RecipeError(
            "--resume_from_checkpoint must be a checkpoint directory, with its trainer_state.json, or 'auto' for the"
            f" newest, got {wanted!r}; checkpoints are OUTPUT_DIR/checkpoint-STEP"
        )
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
    if (output_dir / tables.FOLDER).is_dir():
        paths["records"] = output_dir / tables.FOLDER
    paths["summary"] = output_dir / "summary.json"
    return paths


def refuse_divergence(name: str, value: float) -> None:
    """Raise where a closing measurement is no number."""
    if not math.isfinite(value):
        raise DivergedError(
            f"training diverged: the {name} is {value}; lower --learning_rate or p, or set update_scale=adam in"
            " --optim_args"
        )
