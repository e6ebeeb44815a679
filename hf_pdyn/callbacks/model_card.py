"""The section of a model card that says how the model was optimized: optim, p's path, weight decay, allocation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerState, TrainingArguments

from hf_pdyn._version import __version__
from hf_pdyn.callbacks.run_json_writer import constructor_arguments
from hf_pdyn.common.never_fatal import described
from hf_pdyn.integrations.model_card import add_to_model_card
from hf_pdyn.integrations.transformers import running_trainer
from hf_pdyn.policy.schedules import Schedule
from hf_pdyn.run_dir.run_json import as_json

if TYPE_CHECKING:
    from hf_pdyn.callbacks.base import PdynCallback


def describe_in_model_card(
    trainer: Any | None, args: TrainingArguments, state: TrainerState, callbacks: Sequence[PdynCallback]
) -> None:
    """Let the model card that the Trainer writes, if it writes any, say how this training optimized the model."""

    def section() -> str | None:
        try:
            return card_section(args, state.log_history, callbacks)
        except Exception as error:
            warnings.warn(
                f"hf_pdyn could not describe the optimizer in the model card: {described(error)}. The card lacks it.",
                stacklevel=2,
            )
            return None

    add_to_model_card(running_trainer(trainer), section)


def card_section(
    args: TrainingArguments, records: Sequence[Mapping[str, Any]], callbacks: Iterable[PdynCallback]
) -> str:
    """Return the section in Markdown: a row for each thing that is known, none for what is not.

    Args:
        args: the training's arguments.
        records: its log records so far.
        callbacks: ours, whose schedules and controllers it names.
    """
    rows = [*_optimizer(args), *_path_of_p(records), *_moved_by(callbacks), *_weight_decay(args, records)]
    rows += _allocation(records)
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"## Optimizer\n\nDescribed by hf_pdyn {__version__}.\n\n| what | value |\n|---|---|\n{table}"


def _optimizer(args: TrainingArguments) -> Iterator[tuple[str, str]]:
    yield "optim", f"`{getattr(args.optim, 'value', args.optim)}`"
    if args.optim_args:
        yield "optim_args", f"`{args.optim_args}`"


def _path_of_p(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    path = [record["pdyn/p"] for record in records if "pdyn/p" in record]
    if path and min(path) == max(path):
        yield "p", f"{path[0]:.3g} throughout"
    elif path:
        yield "p", f"from {path[0]:.3g} to {path[-1]:.3g}, between {min(path):.3g} and {max(path):.3g}"
    decisions = sum(record.get("pdyn/control/decisions", 0) for record in records)
    if decisions:
        yield "decisions of Algorithm 1", f"{decisions:.0f}"


def _moved_by(callbacks: Iterable[PdynCallback]) -> Iterator[tuple[str, str]]:
    """Schedules and controllers, with their settings."""
    for callback in callbacks:
        given = constructor_arguments(callback)
        schedule = given.get("schedule")
        if isinstance(schedule, Schedule):
            target = ".".join(part for part in (given.get("field"), given.get("label")) if part)
            yield f"schedule of {target}", f"`{schedule}`"
        elif callback.writes is not None:
            settings = ", ".join(f"{name}={_short(value)}" for name, value in given.items() if value is not None)
            yield f"{callback.writes} moved by", f"`{type(callback).__name__}({settings})`"


def _weight_decay(args: TrainingArguments, records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    yield "weight decay", f"{args.weight_decay:g}"
    off, cumulative = _last(records, "pdyn/wd_off/step"), _last(records, "pdyn/a_t")
    if off is not None:
        yield "weight decay off after step", f"{off:.0f}"
    if cumulative is not None:
        yield "cumulative decay, -sum lr * weight decay", f"{cumulative:.3g}"


def _allocation(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    balance, ratio = _last(records, "pdyn/G_w_over_G_b"), _last(records, "pdyn/update_ratio")
    if balance is not None:
        yield "gradient norm of weights over that of biases and norms, at the end", f"{balance:.3g}"
    if ratio is not None:
        yield "update norm of weights over that of biases and norms, at the end", f"{ratio:.3g}"
    factor, cosine = _last(records, "pdyn/allocation/lr_factor"), _last(records, "pdyn/allocation/cosine_to_adam")
    if factor is not None and cosine is not None:
        yield "size of Adam's update over the raw one", f"{factor:.3g}"
        yield "cosine between the update and Adam's", f"{cosine:.3g}"


def _last(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if name in record), None)


def _short(value: object) -> str:
    plain = as_json(value)
    if isinstance(plain, dict):
        return "{" + ", ".join(f"{name}: {item}" for name, item in plain.items()) + "}"
    return str(plain)
