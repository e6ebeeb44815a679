"""What we need of transformers beyond its public API (tried with 5.2 to 5.23).

`transformers.trainer` takes half a second to import, so it is imported where it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, PrinterCallback, ProgressCallback

from hf_pdyn.integrations import patches
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.optim.clipping import note_clip
from hf_pdyn.run_dir.checkpoints import CHECKPOINT_PREFIX, STATE_FILE, last_complete_checkpoint
from hf_pdyn.tensors.sharding import local

T = TypeVar("T")

_FROM_FACTORY = "built_by_hf_pdyn"


def check_optim_args(args: TrainingArguments) -> None:
    """ValueError for `optim_args` that the Trainer cannot split, which it does before it calls any optimizer's handler.

    Its own words for that are "not enough values to unpack" (transformers 5.2 to 5.23).
    """
    for item in args.optim_args.split(",") if args.optim_args else ():
        if item.count("=") != 1:
            raise ValueError(
                "optim_args must be comma-separated key=value items, each with one '=', got "
                f"{item.strip()!r} in {args.optim_args!r}."
            )


def set_default_callbacks(factory: Callable[[], list[TrainerCallback]]) -> None:
    """Give every Trainer built from now on fresh callbacks from `factory`, ahead of its reporters, and no earlier ones.

    Trainer.__init__ reads `trainer.DEFAULT_CALLBACKS` and instantiates the classes in it, so what is
    added are classes whose instances are the factory's.
    """
    defaults = patches.DEFAULT_CALLBACKS.value()
    defaults[:] = [entry for entry in defaults if not hasattr(entry, _FROM_FACTORY)]
    for position, sample in enumerate(factory()):

        def build(cls: type, position: int = position) -> TrainerCallback:
            return factory()[position]

        members = {"__new__": build, _FROM_FACTORY: True}
        defaults.append(type(f"Default{type(sample).__name__}", (TrainerCallback,), members))


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


def shorten_console(shorten: Callable[[Mapping[str, Any]], dict[str, Any]], trainer: Any | None) -> None:
    """Have the Trainer's own printer and progress bar show `shorten(record)` of every log record. Idempotent.

    Only the two that the Trainer adds by itself; a subclass of theirs shows what its author wants.
    """
    handler = _running(CallbackHandler, trainer)
    for callback in handler.callbacks if handler is not None else ():
        if type(callback) in (PrinterCallback, ProgressCallback) and "on_log" not in vars(callback):
            callback.on_log = _shortened(callback.on_log, shorten)


def _shortened(
    on_log: Callable[..., Any], shorten: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Callable[..., Any]:
    def shown(*event: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return on_log(*event, logs=None if logs is None else shorten(logs), **kwargs)

    return shown


def after_create_optimizer(trainer: Any, act: Callable[[Optimizer, nn.Module], None]) -> None:
    """Call `act(optimizer, model)` whenever `trainer` has built its optimizer, before a scheduler or wrapper sees it.

    On the instance, so that it holds for a subclass's own `create_optimizer`, and for DeepSpeed's call of it.
    """
    create = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        created = create(*args, **kwargs)
        model = next((given for given in (*args, kwargs.get("model")) if given is not None), trainer.model)
        act(trainer.optimizer if created is None else created, model)
        return created

    trainer.create_optimizer = create_optimizer


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

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def _mixed_mesh_grad_norm(self: Any, model: nn.Module, max_norm: float) -> Any:
            total_norm = original(self, model, max_norm)
            note_clip(unwrap_optimizer(self.optimizer), total_norm, max_norm)
            return total_norm

        return _mixed_mesh_grad_norm

    patches.MIXED_MESH_GRAD_NORM.replace(noting)


def add_to_log(logs: dict[str, Any], state: TrainerState, metrics: dict[str, float]) -> None:
    """Add `metrics` to the record that `on_log` announces, for reporters and trainer_state.json.

    Trainer.log appends a *copy* of the record to `log_history` before it calls `on_log`.
    """
    logs.update(metrics)
    if state.log_history:
        state.log_history[-1].update(metrics)


def make_checkpoints_resumable() -> None:
    """Have a checkpoint hold all that a resumed run needs, and a resumed run stop where it should. Idempotent.

    - Callbacks with a `before_checkpoint(state)` are asked, in every process, just before the Trainer writes one. The
      Trainer has no event there: `on_save` comes after, and another callback may ask for a checkpoint behind our
      `on_step_end`, or, as transformers' just-in-time one, write it at once.
    - trainer_state.json is there only when all else of the checkpoint is on the disk.
    - The Trainer looks at max_steps after a step, not before: a checkpoint of the last step, inside an epoch, would
      have one more.
    """

    def remembering(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def _save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "before_checkpoint"):
                    callback.before_checkpoint(self.state)
            if self.args.should_save:
                folder = Path(run_directory(self.args, self), f"{CHECKPOINT_PREFIX}{self.state.global_step}")
                # Of an earlier run: it would make this one look complete.
                (folder / STATE_FILE).unlink(missing_ok=True)
            save_checkpoint(self, *args, **kwargs)

        return _save_checkpoint

    def waiting(save_rng_state: Callable[..., Any]) -> Callable[..., Any]:
        def _save_rng_state(self: Any, *args: Any, **kwargs: Any) -> None:
            save_rng_state(self, *args, **kwargs)
            # Every process has its own, and the first goes on to trainer_state.json.
            self.accelerator.wait_for_everyone()

        return _save_rng_state

    def stopping(get_batch_samples: Callable[..., Any]) -> Callable[..., Any]:
        def get_batches_unless_done(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step < self.state.max_steps:
                return get_batch_samples(self, *args, **kwargs)
            self.control.should_training_stop = True
            return [], None

        return get_batches_unless_done

    patches.SAVE_CHECKPOINT.replace(remembering)
    patches.SAVE_RNG_STATE.replace(waiting)
    patches.GET_BATCH_SAMPLES.replace(stopping)


def resume_from_complete_checkpoints() -> None:
    """Let transformers' `get_last_checkpoint`, and so `resume_from_checkpoint=True`, pass over incomplete checkpoints.

    For scripts that cannot call `last_complete_checkpoint` themselves. Idempotent.
    """
    found = patches.GET_LAST_CHECKPOINT.find()
    patches.GET_LAST_CHECKPOINT.replace(lambda original: lambda folder: last_complete_checkpoint(folder))
    trainer = sys.modules.get("transformers.trainer")
    if found is not None and getattr(trainer, found[1], None) is found[2]:  # it holds a reference of its own
        setattr(trainer, found[1], getattr(found[0], found[1]))


def is_training_log(logs: dict[str, Any]) -> bool:
    """Whether a log record is one of training steps (or their final summary), not of an evaluation."""
    # A script's own trainer.log({"loss": ...}), on one process perhaps, ends no interval. setfit renames the loss.
    has_loss = "loss" in logs or any(name.endswith("embedding_loss") for name in logs)
    return (has_loss and "learning_rate" in logs) or "train_loss" in logs


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
