"""What a run leaves to read: a JSON file for programs, a table for people."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import Trainer

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.json_values import finite_or_none

from .lora import count_parameters

FINAL_METRICS = {
    "final D_w": "pdyn/D_w",
    "final D_b": "pdyn/D_b",
    "final G_w/G_b": "pdyn/G_w_over_G_b",
    "non-finite steps": "pdyn/nonfinite_steps",
}


def results_of(trainer: Trainer, training_seconds: float) -> dict[str, Any]:
    """Return the numbers that every recipe's summary has, by the names it shows."""
    trained, total = count_parameters(trainer.model)
    history = trainer.state.log_history
    # The Trainer's closing record is about the few steps since the one before.
    records = [record for record in history if "loss" in record] or history
    return {
        "final p": last_logged(history, "pdyn/p"),
        **{name: last_logged(records, key) for name, key in FINAL_METRICS.items()},
        "trainable parameters": trained,
        "all parameters": total,
        "processes": trainer.args.world_size,
        "optimizer steps": trainer.state.global_step,
        "training seconds": training_seconds,
    }


def logged_before(trainer: Trainer, key: str) -> float | None:
    """Return what was logged under ``key`` before training; a resumed run has it from its checkpoint."""
    values = [record[key] for record in trainer.state.log_history if record["step"] == 0 and key in record]
    return values[0] if values else None


def last_logged(log_history: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the newest value that the Trainer logged under ``key``."""
    values = [entry[key] for entry in log_history if entry.get(key) is not None]
    return values[-1] if values else None


def write_summary(path: Path, results: Mapping[str, Any], paths: Mapping[str, Path], **more: Any) -> None:
    """Write the numbers, the paths and ``more`` for programs, with keys free of blanks."""
    numbers = {name.replace(" ", "_").replace("/", "_over_"): value for name, value in results.items()}
    outputs = {name.replace(" ", "_"): str(location) for name, location in paths.items()}
    write_json_atomically(path, {**numbers, **more, "outputs": outputs})


def write_json_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is either absent, old or complete; JSON has no NaN, it reads as null."""
    finite = finite_or_none(dict(content))
    with replacing(path) as partial:
        partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def print_table(console: Console, title: str, rows: Mapping[str, object]) -> None:
    """Print names and values; a number is rounded to four digits, None reads as missing."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, _readable(value))
    console.print(table)


def print_paths(console: Console, paths: Mapping[str, Path]) -> None:
    """Print one output to a line, unwrapped and without markup, to be copied."""
    console.print("Outputs", style="bold")
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        console.print(f"  {name:<{width}}  {path}", markup=False, soft_wrap=True, highlight=False)


def _readable(value: object) -> str:
    if value is None:
        return "not logged"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
