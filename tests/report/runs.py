"""Run directories as trainings leave them, without a training: what the tests of reports read."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_pdyn.policy.algorithm1 import BRANCHES
from hf_pdyn.policy.allocation_curve import EXPONENTS
from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.tables import ALLOCATION, DECISIONS, LAYERS, SAMPLE_LOSSES, TableKind, TableWriter

LAYER_NAMES = ("transformer.h.0.attn", "transformer.h.2.attn", "transformer.h.10.attn")


def make_run(
    directory: Path,
    *,
    seed: int = 0,
    records: int = 12,
    every: int = 10,
    layers: Sequence[str] = LAYER_NAMES,
    learning_rate: float = 1e-3,
    finished: bool = True,
    spectra: bool = True,
    samples: int = 40,
    info: bool = True,
    remainder: int = 0,
) -> Path:
    """A run with everything: log records, layers, spectra, decisions, allocation curves, sample losses, configuration.

    remainder: steps after the last logging step, which the Trainer's closing record covers.
    """
    rng = random.Random(seed)
    steps = [every * (i + 1) for i in range(records)]
    total = every * records + remainder
    directory.mkdir(parents=True)
    history: list[dict[str, Any]] = []
    for i, step in enumerate(steps):
        record = _log_record(step, i / records, rng, learning_rate, spectra)
        history.append({**record, "pdyn/steps": every})
        if i % 4 == 3:
            history.append({"step": step, "epoch": step / 40, "eval_loss": 3 / (i + 1), "eval_runtime": 0.5})
    if remainder:
        closing = {"pdyn/steps": remainder, "pdyn/D_w": 7.5, "pdyn/D_b": 0.75, "pdyn/G_w_over_G_b": 10.0, "pdyn/p": 0.3}
        history.append({"step": total, "epoch": total / 40, "train_loss": 2.0, **closing})
    if info:
        run_json.write_start(directory, 0, start(learning_rate=learning_rate, max_steps=total))
    write_state(directory, history, run_id_of(directory), global_step=total, max_steps=total)
    covered = steps + ([total] if remainder else [])
    _write_records(directory, LAYERS, [row for step in covered for row in _layer_rows(step, layers, rng, spectra)])
    _write_records(directory, DECISIONS, [_decision(step, i, rng) for i, step in enumerate(steps)])
    _write_records(directory, ALLOCATION, [row for i, step in enumerate(steps) for row in _curves(step, i)])
    losses = [
        {
            "step": step,
            "epoch": step / 40,
            "split": split,
            "index": index,
            "loss": rng.lognormvariate(0, 1),
            "correct": None,
        }
        for step in steps[3::4]
        for split in ("train", "test")
        for index in range(samples)
    ]
    _write_records(directory, SAMPLE_LOSSES, losses)
    if info and finished:
        run_json.write_finish(directory, total)
    return directory


def start(learning_rate: float = 1e-3, max_steps: int = 120, **training_arguments: Any) -> dict[str, Any]:
    return {
        "max_steps": max_steps,
        "versions": {"torch": "2.13.0"},
        "model": {
            "class": "GPT2LMHeadModel",
            "parameters": 7872,
            "trainable_parameters_by_label": {"weight/attention": 8, "bias_like/norm": 2},
        },
        "callbacks": [{"name": "TelemetryCallback", "every": None, "per_layer": True}],
        "training_arguments": {"learning_rate": learning_rate, "optim_args": "p=0.4", **training_arguments},
    }


def run_id_of(directory: Path) -> str | None:
    return (run_json.read(directory) or {}).get("run")


def write_state(directory: Path, history: list[Any], run_id: str | None = None, **state: Any) -> Path:
    """run_id: None as of an earlier version."""
    path = directory / "trainer_state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = {"version": 1} | ({} if run_id is None else {"run": run_id})
    path.write_text(json.dumps({"log_history": history, "stateful_callbacks": {"pdyn": ours}, **state}))
    return path


def cut_off(path: Path) -> None:
    """As an interrupted copy leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def diverge(path: Path, losses: dict[int, float]) -> Path:
    """Give the test samples of these indices these losses after the last epoch, all of them for the index -1."""
    for file in (path / "pdyn" / "sample_losses").iterdir():
        table = pq.read_table(file)
        changed = table.to_pylist()
        last = max(row["step"] for row in changed)
        for row in changed:
            if row["split"] == "test" and row["step"] == last:
                row["loss"] = losses.get(-1, losses.get(row["index"], row["loss"]))
        pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), file)
    return path


def _log_record(step: int, progress: float, rng: random.Random, learning_rate: float, spectra: bool) -> dict[str, Any]:
    weight, bias = rng.uniform(0.5, 1.5), rng.uniform(0.02, 0.05)
    record: dict[str, Any] = {
        "step": step,
        "epoch": step / 40,
        "loss": 4 * math.exp(-2 * progress) + rng.uniform(0, 0.1),
        "learning_rate": learning_rate * (1 - progress),
        "grad_norm": weight,
        "pdyn/p": 0.4 + 0.02 * (step % 3),
        "pdyn/D_w": weight,
        "pdyn/D_b": bias,
        "pdyn/G_w_over_G_b": weight / bias,
        "pdyn/G_w_over_G_b_invariant": 3 * weight / bias,
        "pdyn/update_ratio": 2.0,
        "pdyn/allocation/lr_factor": 4.0,
        "pdyn/allocation/cosine_to_adam": 0.98,
        "pdyn/allocation/update_ratio_slope": 1.5 - 2 * progress,
        "pdyn/allocation/p_step_factor": 1.3,
        "pdyn/weight_decay": 0.1 if progress < 0.5 else 0.0,
        "pdyn/a_t": -progress,
        "pdyn/skipped_steps": 0,
        "pdyn/nonfinite_steps": 0,
        "memory/<peak>": rng.uniform(1, 2),
    }
    for name in ("update_norm", "param_norm", "v_hat_mean", "one_norm", "N_p"):
        record |= {f"pdyn/{name}/{pathway}": rng.uniform(1, 2) for pathway in ("weight", "bias_like")}
    record |= {"pdyn/implicit_bias/weight": -rng.uniform(1, 2), "pdyn/implicit_bias/bias_like": rng.uniform(1, 2)}
    for label, gradient, update in (("weight/attention", 0.9, 0.5), ("bias_like/norm", 0.1, 0.5)):
        record |= {f"pdyn/by_label/{label}/grad_share": gradient, f"pdyn/by_label/{label}/update_share": update}
    if spectra:
        record |= {
            f"pdyn/spectrum/{part}/{name}": rng.uniform(1, 5)
            for part in ("attention", "attention_heads", "lora")
            for name in ("nuc_over_fro", "effective_rank", "stable_rank")
        }
    return record


def _layer_rows(step: int, layers: Sequence[str], rng: random.Random, spectra: bool) -> list[dict[str, Any]]:
    quantities = dict.fromkeys(("weight", "bias_like"), ("grad_norm", "update_norm", "param_norm"))
    if spectra:
        quantities |= dict.fromkeys(("attention", "attention/head 3", "lora"), ("nuc_over_fro", "effective_rank"))
    return [
        {
            "step": step,
            "epoch": step / 40,
            "layer": layer,
            "part": part,
            "name": name,
            "value": rng.lognormvariate(0, 1),
        }
        for layer in layers
        for part, names in quantities.items()
        for name in names
    ]


def _decision(step: int, index: int, rng: random.Random) -> dict[str, Any]:
    first = index == 0
    return {
        "step": step,
        "epoch": step / 40,
        "interval": index + 1,
        "branch": BRANCHES[1:][0 if first else 1 + index % 4],
        "p": 0.4 + 0.02 * (index % 3),
        "weight_norm": rng.uniform(0.5, 1.5),
        "bias_norm": 0.03,
        "weight_change": None if first else 0.1,
        "bias_change": None if first else -0.1,
        "bias_norm_min": 0.02,
    }


def log_moments(level: float, spread: float, size: float = 0.0) -> list[float]:
    """log M of log-normal v_hat whose logarithms have this mean and spread, exactly."""
    return [size - s * level + (s * spread) ** 2 / 2 for s in EXPONENTS]


def _curves(step: int, index: int) -> list[dict[str, Any]]:
    """Those of pathways and of one component, all of which change over time."""
    row = {"step": step, "epoch": step / 40, "layer": None, "p": 0.4 + 0.02 * (index % 3)}
    own = {
        ("weight", None): log_moments(-16 - 0.1 * index, 1.5, -8),
        ("weight", "attention"): log_moments(-15, 1.5, -9),
        ("bias_like", None): log_moments(-12, 1.0, -10),
    }
    return [
        {**row, "pathway": pathway, "component": component, "log_moments": values}
        for (pathway, component), values in own.items()
    ]


def _write_records(directory: Path, kind: TableKind, rows: list[dict[str, Any]]) -> None:
    writer = TableWriter(directory, kind, run_id_of(directory))
    writer.add(rows)
    writer.flush()
