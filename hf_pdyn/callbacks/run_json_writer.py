"""`RunJsonWriter`: writes a run's `pdyn/run.json`, for the callbacks of one training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerState, TrainingArguments

from hf_pdyn.common.environment import installed_versions
from hf_pdyn.grouping import label_parameters
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.tables import forget_after
from hf_pdyn.tensors.sharding import has_fsdp1

if TYPE_CHECKING:
    from hf_pdyn.callbacks.base import PdynCallback


class RunJsonWriter:
    """Notes that a training begins, with its configuration, and that it came to its end.

    On the main process; on others it does nothing. What cannot be written is one warning: no training ends by it.
    """

    def __init__(self) -> None:
        self._run_dir: str | None = None

    def begin(
        self,
        run_dir: str,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        optimizer: Optimizer,
        callbacks: Iterable[PdynCallback],
        run_id: str | None = None,
    ) -> str | None:
        """Note the start, and forget the records of what is about to be repeated, or of an earlier run.

        callbacks: those whose settings are part of the run. run_id: that of the run that the checkpoint is of.

        Returns the run's id: on the main process None where nothing could be noted, on others `run_id`.
        """
        noted: str | None = None

        def write() -> None:
            nonlocal noted
            _warn_of(forget_after(run_dir, _rows_to_keep(run_json.id_of(run_dir), run_id, state.global_step)))
            noted = run_json.write_start(
                run_dir,
                state.global_step,
                describe_start(args, state, model, optimizer, callbacks),
                run_id,
            )
            self._run_dir = run_dir

        if not state.is_world_process_zero:
            return run_id
        _try(write)
        return noted

    def finish(self, state: TrainerState) -> None:
        """Note the end."""
        run_dir, self._run_dir = self._run_dir, None
        if run_dir is not None:
            _try(lambda: run_json.write_finish(run_dir, state.global_step))


def describe_start(
    args: TrainingArguments,
    state: TrainerState,
    model: nn.Module,
    optimizer: Optimizer,
    callbacks: Iterable[PdynCallback],
) -> dict[str, Any]:
    """Return the configuration that a training begins with, as run.json has it."""
    return {
        "max_steps": state.max_steps,
        "versions": installed_versions(run_json.LIBRARIES),
        "model": describe_model(model, optimizer.param_groups),
        "optimizer": type(unwrap_optimizer(optimizer)).__name__,
        "callbacks": [
            {"name": type(callback).__name__, **constructor_arguments(callback), **callback.resolved()}
            for callback in callbacks
        ],
        "device": str(args.device),
        "processes": args.world_size,
        "training_arguments": args.to_dict(),
    }


def _rows_to_keep(known: str | None, resumed: str | None, step: int) -> dict[str, int]:
    """For each run whose rows are in the directory, by its id, the step up to which they stay; -1 for none.

    known: the run that run.json is of, which is replaced unless it is resumed. A new training has rows of step 0 of
    its own.
    """
    replaced = {known: -1} if known else {}
    continued = resumed or known
    return replaced | ({continued: step} if continued and step > 0 else {})


def constructor_arguments(callback: object) -> dict[str, Any]:
    """Return the arguments a callback was constructed with: by convention it keeps each under its own name."""
    names = inspect.signature(type(callback).__init__).parameters
    return {name: getattr(callback, name) for name in names if name != "self" and hasattr(callback, name)}


def describe_model(model: nn.Module, groups: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a model's class, name and numbers of parameters: all, trainable, and trainable by label.

    Args:
        model: as it is trained.
        groups: the optimizer's parameter groups; labels are theirs where they have any.
    """
    described: dict[str, Any] = {"class": type(_base_model(model)).__name__}
    if type(model) is not type(_base_model(model)):
        described["adapter"] = type(model).__name__
    config = getattr(model, "config", None)
    described["name_or_path"] = getattr(config, "name_or_path", None) or getattr(config, "_name_or_path", None)
    if has_fsdp1(model):
        return described | {"parameters": "unknown: under FSDP1 a process sees the sizes of its shards"}
    by_label: dict[str, int] = {}
    params = dict(model.named_parameters())
    for name, label in _labels(model, groups).items():
        by_label[label] = by_label.get(label, 0) + _size(params[name])
    described["parameters"] = sum(map(_size, params.values()))
    described["trainable_parameters"] = sum(by_label.values())
    trained = {str(param.dtype).removeprefix("torch.") for param in params.values() if param.requires_grad}
    described["trainable_dtypes"] = sorted(trained)
    return described | {"trainable_parameters_by_label": dict(sorted(by_label.items()))}


def _labels(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Every trained parameter's label: that of its parameter group, which rules may have given it, else the default."""
    labelled = {
        name: f"{group['pathway']}/{group['component']}"
        for group in groups
        if "pathway" in group and "component" in group
        for name in group.get("param_names", ())
    }
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    if labelled.keys() == trained:
        return labelled
    return {name: str(label) for name, label in label_parameters(model).items()}


def _base_model(model: nn.Module) -> nn.Module:
    """The transformer below an adapter."""
    below: Any = getattr(model, "get_base_model", None)
    return below() if callable(below) else model


def _size(param: nn.Parameter) -> int:
    whole: int | None = getattr(param, "ds_numel", None)  # of DeepSpeed ZeRO-3, which leaves an empty tensor
    return param.numel() if whole is None else whole


def _warn_of(left: Mapping[Path, str]) -> None:
    """Warn of files that keep rows which the run should have dropped."""
    if left:
        path, reason = next(iter(left.items()))
        warnings.warn(
            f"hf_pdyn could not drop the rows that this run repeats or replaces from {len(left)} of its files, the "
            f"first is {path}: {reason}. Remove what is not this run's.",
            stacklevel=3,
        )


def _try(write: Callable[[], None]) -> None:
    try:
        write()
    except Exception as error:
        warnings.warn(
            f"hf_pdyn could not write the run's pdyn/run.json: {str(error)[:200]}. Training goes on; a report lacks "
            "the configuration, or takes the run for an unfinished one.",
            stacklevel=3,
        )
