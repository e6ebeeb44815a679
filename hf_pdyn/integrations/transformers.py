"""What we need of transformers beyond its public API (tried with 5.2 to 5.23).

`transformers.trainer` takes half a second to import, so it is imported where it is used.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import transformers.trainer_optimizer
import transformers.trainer_utils
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers.trainer_optimizer import OptimizerContext
from transformers.training_args import OptimizerNames

from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.integrations.patching import replace_once
from hf_pdyn.optim.clipping import note_clip
from hf_pdyn.run_dir.checkpoints import incompleteness
from hf_pdyn.tensors.sharding import local

T = TypeVar("T")

OptimizerHandler = Callable[[OptimizerContext], tuple[Any, dict[str, Any]]]


def register_optimizer(name: str, handler: OptimizerHandler) -> None:
    """Make `TrainingArguments(optim=name)` valid and let `handler` build the optimizer. Idempotent.

    OptimizerNames is an Enum without an extension point, so the member is made by hand. It must exist
    before an HfArgumentParser is built: the parser copies the choices.
    """
    if name not in OptimizerNames._value2member_map_:
        member = str.__new__(OptimizerNames, name)
        member._name_ = name.upper()
        member._value_ = name
        member.__objclass__ = OptimizerNames
        member._sort_order_ = len(OptimizerNames._member_names_)
        type.__setattr__(OptimizerNames, member._name_, member)
        OptimizerNames._member_names_.append(member._name_)
        OptimizerNames._member_map_[member._name_] = member
        OptimizerNames._value2member_map_[name] = member
    transformers.trainer_optimizer._OPTIMIZER_HANDLERS[OptimizerNames(name)] = handler
    _explain_malformed_optim_args()


def _explain_malformed_optim_args() -> None:
    """Replace "not enough values to unpack" by a sentence.

    The Trainer splits `optim_args` itself before it calls any handler, and an item without exactly one
    `=` ends there. `transformers.trainer` holds its own reference where it is loaded already.
    """

    def explaining(original: Callable[..., Any]) -> Callable[..., Any]:
        def _parse_optim_args(optim_args_str: str | None) -> dict[str, str]:
            items = [item for item in (optim_args_str or "").split(",") if item.strip()]
            for item in items:
                if item.count("=") != 1:
                    raise ValueError(
                        "optim_args must be comma-separated key=value items, got "
                        f"{item.strip()!r} in {optim_args_str!r}."
                    )
            return original(",".join(items))

        return _parse_optim_args

    _replace_function(transformers.trainer_optimizer, "_parse_optim_args", explaining)


def add_default_callbacks(factory: Callable[[], list[TrainerCallback]]) -> None:
    """Give every Trainer built from now on fresh callbacks from `factory`, ahead of its reporters.

    Trainer.__init__ reads `trainer.DEFAULT_CALLBACKS` and instantiates the classes in it, so what is
    added are classes whose instances are the factory's.
    """
    import transformers.trainer

    for position, sample in enumerate(factory()):

        def build(cls: type, position: int = position) -> TrainerCallback:
            return factory()[position]

        entry = type(f"Default{type(sample).__name__}", (TrainerCallback,), {"__new__": build})
        transformers.trainer.DEFAULT_CALLBACKS.append(entry)


def place_before_reporters(kind: type[TrainerCallback], trainer: Any | None) -> None:
    """Move the callbacks of that class, each once and in their order, to just behind DefaultFlowCallback.

    A callback that a user passes stands behind the reporters, which then never see what it adds to a log record.
    Without a handler (another Trainer's own event loop) the order stays, and only trainer_state.json has the metrics.
    """
    handler = _running(CallbackHandler, trainer)
    if handler is None:
        return
    moved = {id(callback): callback for callback in handler.callbacks if isinstance(callback, kind)}
    others = [callback for callback in handler.callbacks if not isinstance(callback, kind)]
    flow = next((i for i, other in enumerate(others) if isinstance(other, DefaultFlowCallback)), -1)
    # A new list: the handler is iterating over the old one, and each callback must get the event once.
    handler.callbacks = [*others[: flow + 1], *moved.values(), *others[flow + 1 :]]


def all_callbacks(callback: TrainerCallback, trainer: Any | None) -> list[TrainerCallback]:
    """All callbacks of the handler that is delivering this event; `callback` alone where there is none to be found."""
    handler = _running(CallbackHandler, trainer)
    return [callback] if handler is None else list(handler.callbacks)


def running_trainer(trainer: Any | None) -> Any | None:
    """The Trainer that delivers this event; None where something else does."""
    from transformers import Trainer

    return _running(Trainer, trainer)


def _running(kind: type[T], trainer: Any | None) -> T | None:
    """The Trainer or callback handler that delivers this event.

    `trainer` is the one that the callback was built with. No argument of an event names its sender, so without one the
    sender is the innermost object of that class whose method is running.
    """
    if trainer is not None:
        return trainer.callback_handler if kind is CallbackHandler else trainer
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get("self"), kind):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals["self"]


def log_apart(trainer: Any, metrics: dict[str, float]) -> None:
    """A log record of its own, at this step, for reporters and trainer_state.json.

    A Trainer's own `log`, in a subclass, may take it for the training record that is due (TRL's empties its means
    into it), and every record clears `should_log`, which may announce that one.
    """
    from transformers import Trainer

    due = trainer.control.should_log
    Trainer.log(trainer, metrics)
    trainer.control.should_log = due


def processes_train_apart(trainer: Any | None) -> bool:
    """Whether the Trainer that delivers this event has several processes and nothing that averages their gradients.

    That is so, without a word, after an `evaluate()` before `train()`: accelerate (1.15) has then prepared the model
    once and transformers (5.23) does not wrap it in DDP any more.
    """
    trainer = running_trainer(trainer)
    if trainer is None or not trainer.accelerator.distributed_type.value.startswith("MULTI_"):
        return False
    averages = any(isinstance(module, DistributedDataParallel) for module in trainer.model_wrapped.modules())
    has_dtensors = any(local(param) is not param for param in trainer.model.parameters())
    return not averages and not has_dtensors


def run_directory(args: TrainingArguments, trainer: Any | None) -> str:
    """Where the Trainer that delivers this event puts its checkpoints: of a hyperparameter search, the trial's own."""
    trainer = running_trainer(trainer)
    return args.output_dir if trainer is None else trainer._get_output_dir(getattr(trainer, "_trial", None))


def watch_mixed_mesh_clipping() -> None:
    """Note the clipping that a Trainer does itself where gradients lie on several device meshes. Idempotent.

    `Accelerator.clip_grad_norm_`, which is watched otherwise, has no part in it (transformers 5.23; 5.2 has no such
    clipping).
    """
    from transformers import Trainer

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def _mixed_mesh_grad_norm(self: Any, model: nn.Module, max_norm: float) -> Any:
            total_norm = original(self, model, max_norm)
            note_clip(unwrap_optimizer(self.optimizer), total_norm, max_norm)
            return total_norm

        return _mixed_mesh_grad_norm

    replace_once(Trainer, "_mixed_mesh_grad_norm", noting)


def add_to_log(logs: dict[str, Any], state: TrainerState, metrics: dict[str, float]) -> None:
    """Add `metrics` to the record that `on_log` announces, for reporters and trainer_state.json.

    Trainer.log appends a *copy* of the record to `log_history` before it calls `on_log`.
    """
    logs.update(metrics)
    if state.log_history:
        state.log_history[-1].update(metrics)


def make_checkpoints_resumable() -> None:
    """Let a checkpoint have trainer_state.json only when all else of it is on the disk. Idempotent.

    Callbacks with a `before_checkpoint(state)` are asked, in every process, just before the Trainer writes one. The
    Trainer has no event there: `on_save` comes after, and another callback may ask for a checkpoint behind our
    `on_step_end`, or, as transformers' just-in-time one, write it at once.
    """
    from transformers.trainer import TRAINER_STATE_NAME, Trainer
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    def remembering(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "before_checkpoint"):
                    callback.before_checkpoint(self.state)
            if self.args.should_save:
                folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
                # Of an earlier run: it would make this one look complete.
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            save_checkpoint(self, model, trial)

        return _save_checkpoint

    def waiting(save_rng_state: Callable[..., Any]) -> Callable[..., Any]:
        def _save_rng_state(self: Any, output_dir: str) -> None:
            save_rng_state(self, output_dir)
            # Every process has its own, and the first goes on to trainer_state.json.
            self.accelerator.wait_for_everyone()

        return _save_rng_state

    replace_once(Trainer, "_save_checkpoint", remembering)
    replace_once(Trainer, "_save_rng_state", waiting)


def skip_incomplete_checkpoints() -> None:
    """Let `resume_from_checkpoint=True` pass over checkpoints whose writing was interrupted. Idempotent.

    The Trainer takes the highest number, complete or not, and then starts silently at step 0 with those weights.
    """

    def choosing(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_last_checkpoint(folder: str) -> str | None:
            skipped: list[str] = []
            chosen = next(_complete(_newest_first(folder), skipped), None)
            if skipped:
                instead = f"{chosen.name} is used" if chosen else "no other is left"
                warnings.warn(
                    f"Incomplete checkpoints in {folder}, written by an interrupted run, are passed over: "
                    f"{', '.join(skipped)}; {instead}.",
                    stacklevel=2,
                )
            return str(chosen) if chosen else None

        return get_last_checkpoint

    _replace_function(transformers.trainer_utils, "get_last_checkpoint", choosing)


def _newest_first(folder: str) -> list[Path]:
    prefix = f"{transformers.trainer_utils.PREFIX_CHECKPOINT_DIR}-"
    steps = [name.removeprefix(prefix) for name in os.listdir(folder) if re.fullmatch(rf"{prefix}\d+", name)]
    paths = [Path(folder, prefix + step) for step in sorted(steps, key=int, reverse=True)]
    return [path for path in paths if path.is_dir()]


def _complete(checkpoints: list[Path], skipped: list[str]) -> Iterator[Path]:
    for checkpoint in checkpoints:
        reason = incompleteness(checkpoint)
        if reason is None:
            yield checkpoint
        else:
            skipped.append(f"{checkpoint.name} ({reason})")


def _replace_function(home: ModuleType, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """In the module that defines it, and in `transformers.trainer`, which has its own reference where it is loaded."""
    original = getattr(home, name)
    replace_once(home, name, wrap)
    trainer = sys.modules.get("transformers.trainer")
    if getattr(trainer, name, None) is original:
        setattr(trainer, name, getattr(home, name))


def is_training_log(logs: dict[str, Any]) -> bool:
    """Whether a log record is one of training steps (or their final summary), not of an evaluation."""
    # A script's own trainer.log({"loss": ...}), on one process perhaps, ends no interval.
    return {"loss", "learning_rate"} <= logs.keys() or "train_loss" in logs


def stock_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The two groups that `Trainer.create_optimizer` hands to an optimizer: decaying and exempt."""
    from transformers import Trainer

    decaying = set(Trainer.get_decay_parameter_names(None, model))  # reads no self
    trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return [
        {"params": [param for name, param in trainable if name in decaying], "weight_decay": weight_decay},
        {"params": [param for name, param in trainable if name not in decaying], "weight_decay": 0.0},
    ]


def shards_every_parameter() -> bool:
    """Whether DeepSpeed ZeRO-3 is on: no process holds a whole parameter."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


def build_without_weights(name_or_path: str) -> nn.Module:
    """The model of a hub name or checkpoint directory on the meta device: names and shapes, no memory.

    OSError where there is no such model.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(name_or_path)
    architecture = (config.architectures or [""])[0]
    model_class = getattr(transformers, architecture, None)
    with torch.device("meta"):
        if model_class is None:
            return transformers.AutoModel.from_config(config)
        return model_class._from_config(config)
