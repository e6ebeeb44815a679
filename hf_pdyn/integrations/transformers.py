"""What we need of transformers beyond its public API (tried with 5.2 to 5.23).

`transformers.trainer` takes half a second to import, so it is imported where it is used.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.trainer_optimizer
from torch import nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers.trainer_optimizer import OptimizerContext
from transformers.training_args import OptimizerNames

from hf_pdyn.clipping import note_clip
from hf_pdyn.integrations.accelerate import unwrap_optimizer

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
    original = transformers.trainer_optimizer._parse_optim_args
    if getattr(original, "explains_malformed_items", False):
        return

    def parse_optim_args(optim_args_str: str | None) -> dict[str, str]:
        items = [item for item in (optim_args_str or "").split(",") if item.strip()]
        for item in items:
            if item.count("=") != 1:
                raise ValueError(
                    f"optim_args must be comma-separated key=value items, got {item.strip()!r} in {optim_args_str!r}."
                )
        return original(",".join(items))

    parse_optim_args.explains_malformed_items = True  # type: ignore[attr-defined]
    for module_name in ("transformers.trainer_optimizer", "transformers.trainer"):
        module = sys.modules.get(module_name)
        if getattr(module, "_parse_optim_args", None) is original:
            module._parse_optim_args = parse_optim_args  # type: ignore[union-attr]


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


def place_before_reporters(callback: TrainerCallback) -> None:
    """Move `callback` to just behind DefaultFlowCallback in the handler that is delivering this event.

    A callback that a user passes stands behind the reporters, which then never see what it adds to a
    log record. No argument of an event names the handler, so it is found on the stack; without it
    (another Trainer's own event loop) the order stays, and only trainer_state.json has the metrics.
    """
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return
    handler: CallbackHandler = frame.f_locals["self"]
    others = [other for other in handler.callbacks if other is not callback]
    flow = next((i for i, other in enumerate(others) if isinstance(other, DefaultFlowCallback)), -1)
    # A new list: the handler is iterating over the old one, and each callback must get the event once.
    handler.callbacks = [*others[: flow + 1], callback, *others[flow + 1 :]]


def watch_mixed_mesh_clipping() -> None:
    """Note the clipping that a Trainer does itself where gradients lie on several device meshes. Idempotent.

    `Accelerator.clip_grad_norm_`, which is watched otherwise, has no part in it (transformers 5.23; 5.2 has no such
    clipping).
    """
    from transformers import Trainer

    original = getattr(Trainer, "_mixed_mesh_grad_norm", None)
    if original is None or getattr(original, "watched_by_hf_pdyn", False):
        return

    @functools.wraps(original)
    def _mixed_mesh_grad_norm(self: Any, model: nn.Module, max_norm: float) -> Any:
        total_norm = original(self, model, max_norm)
        note_clip(unwrap_optimizer(self.optimizer), total_norm, max_norm)
        return total_norm

    _mixed_mesh_grad_norm.watched_by_hf_pdyn = True  # type: ignore[attr-defined]
    Trainer._mixed_mesh_grad_norm = _mixed_mesh_grad_norm


def add_to_log(logs: dict[str, Any], state: TrainerState, metrics: dict[str, float]) -> None:
    """Add `metrics` to the record that `on_log` announces, for reporters and trainer_state.json.

    Trainer.log appends a *copy* of the record to `log_history` before it calls `on_log`.
    """
    logs.update(metrics)
    if state.log_history:
        state.log_history[-1].update(metrics)


def rewrite_saved_state(state: TrainerState, output_dir: str) -> None:
    """Write `state` once more into the checkpoint of its step, if there is one; never half of it."""
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    path = Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / TRAINER_STATE_NAME
    if path.is_file():
        unfinished = path.with_suffix(".json.tmp")
        state.save_to_json(str(unfinished))
        os.replace(unfinished, path)


def is_training_log(logs: dict[str, Any]) -> bool:
    """Whether a log record is one of training steps (or their final summary), not of an evaluation."""
    return "loss" in logs or "train_loss" in logs


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
