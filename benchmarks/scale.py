"""What telemetry costs with very many tensors: host time, memory, bytes between processes, rows and report.

Every tensor has a few elements, so that what is timed is the work for a tensor, not for an element. Tensors are named
as those of a model with mixtures of experts.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from benchmarks.opponents import LR
from benchmarks.step import peak_of_process
from hf_pdyn import Padam, PdynArguments, StepStatistics
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.policy.row_budget import MOST_VALUES
from hf_pdyn.report.page import page
from hf_pdyn.report.reading import read_runs
from hf_pdyn.run_dir.tables import LAYERS

SIZES = (1_000, 10_000, 100_000)
TRAINED = 20_000
"""Tensors of the Trainer's run: with five times as many, autograd alone takes seconds a step."""
STEPS, LOGGING = 6, 2
WIDTH = 4
REPETITIONS = 3


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False))


class _Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class _Layer(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = _Attention()
        self.mlp = nn.ModuleDict({"experts": nn.ModuleList(_Expert() for _ in range(experts))})


class TinyElements(nn.Module):
    """A model of about so many tensors, whose loss is of all of them."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = max(round(math.sqrt(tensors) / 5), 1)
        self.layers = nn.ModuleList(_Layer(max((tensors // layers - 8) // 4, 1)) for _ in range(layers))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        flat = torch.cat([param.flatten() for param in self.parameters()])
        return {"loss": (flat * x.mean() - 1).square().mean()}


def run(sizes: tuple[int, ...] = SIZES, budget: int = MOST_VALUES) -> dict[str, Any]:
    rows = []
    for tensors in sizes:
        rows.append(_steps(tensors))
        print(line(rows[-1]), flush=True)
    found: dict[str, Any] = {"rows": rows, "logging_steps": LOGGING}
    for name, callbacks in (("without", False), ("with", True)):
        found[f"training_{name}"] = _in_fresh_process("training", min(sizes[-1], TRAINED), callbacks)
    found["budget"] = _in_fresh_process("budget", budget, found["rows"][-1]["layer_scopes"])
    return found


def _steps(tensors: int) -> dict[str, Any]:
    """One model in a bare loop."""
    model = TinyElements(tensors)
    params = list(model.parameters())
    for param in params:
        param.grad = torch.randn_like(param)
    found: dict[str, Any] = {"tensors": len(params)}
    found["adamw_foreach"] = _milliseconds(torch.optim.AdamW(params, lr=LR, foreach=True).step)
    optimizer: Optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
    found["adamw_fused"] = _milliseconds(optimizer.step)
    found |= {f"adamw_{name}": value for name, value in _watched(optimizer, StepStatistics(optimizer, model)).items()}
    optimizer = Padam(params, lr=LR, p=0.37, fused=True)
    found["padam"] = _milliseconds(optimizer.step)
    begun = time.perf_counter()
    taken = StepStatistics(optimizer, model)
    found["prepare_seconds"] = round(time.perf_counter() - begun, 3)
    found["scopes"], found["layers_joined"] = len(taken.scopes), taken.joined_layers
    found["layer_scopes"] = sum(scope.layer is not None for scope in taken.scopes)
    found |= _watched(optimizer, taken)
    window = taken.window()
    sent: list[int] = []

    def add_up(sums: Tensor) -> Tensor:
        sent.append(sums.numel() * sums.element_size())
        return sums

    window._add_up = add_up  # type: ignore[method-assign]
    for _ in range(LOGGING - 1):
        optimizer.step()
    _measured_step(optimizer, taken)
    begun = time.perf_counter()
    window.read()
    found["reading"] = round(1e3 * (time.perf_counter() - begun), 3)
    found["all_reduces"], found["bytes_of_a_reading"] = len(sent), sum(sent)
    return found


def _watched(optimizer: Optimizer, taken: StepStatistics) -> dict[str, float]:
    """Steps with a window, which takes gradient norms, and such that everything is measured of."""
    window = taken.window()
    found = {"with_statistics": _milliseconds(optimizer.step)}
    found["measured"] = _milliseconds(lambda: _measured_step(optimizer, taken))
    window.read()
    return found


def _measured_step(optimizer: Optimizer, taken: StepStatistics) -> None:
    taken.measure_next_step()
    optimizer.step()


def _milliseconds(work: Callable[[], object]) -> float:
    """The median, after two rounds of warming up."""
    times = []
    for _ in range(2 + REPETITIONS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(times[2:]), 3)


class _Times(TrainerCallback):
    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.starts.append(time.perf_counter())


def _differences(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


def training(tensors: int, callbacks: bool) -> dict[str, Any]:
    """A Trainer with padam, with all that is on by default and telemetry of layers, or with none of it."""
    times = _Times()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=1,
            logging_steps=LOGGING,
            save_strategy="steps" if callbacks else "no",
            save_steps=STEPS,
            optim="padam",
            optim_args="p=0.37, fused=true",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        given = PdynArguments(telemetry="layers", p_control="gradient", p_interval=str(LOGGING)).callbacks()
        data = [{"x": torch.ones(1), "labels": torch.zeros(1)}] * STEPS
        run = Trainer(
            TinyElements(tensors), arguments, train_dataset=data, callbacks=[times, *(given if callbacks else [])]
        )
        run.remove_callback(PrinterCallback)
        begun = time.perf_counter()
        run.train()
        found: dict[str, Any] = {
            "tensors": sum(1 for _ in run.model.parameters()),
            "seconds": round(time.perf_counter() - begun, 2),
            "step": round(
                1e3 * statistics.median(b - a for a, b in zip(times.starts, times.starts[1:], strict=False)), 1
            ),
            "peak_bytes": peak_of_process(),
        }
        if callbacks:
            state = next(Path(folder).glob(f"checkpoint-{STEPS}/trainer_state.json"))
            found |= {
                "trainer_state_bytes": state.stat().st_size,
                "metrics_a_record": sum(name.startswith("pdyn/") for name in run.state.log_history[0]),
                **_disk(Path(folder)),
                "report": _report(Path(folder)),
            }
    return found


def budget(values: int, layer_scopes: int) -> dict[str, Any]:
    """A run whose rows of layers fill the budget."""
    names = ("grad_norm", "update_norm", "param_norm", "v_hat_mean", "one_norm", "N_p", "implicit_bias", "eps_share")
    generator = torch.Generator().manual_seed(0)
    records = values // (layer_scopes * len(names))
    with tempfile.TemporaryDirectory() as folder:
        buffer, state = RowBuffer(LAYERS), TrainerState(max_steps=records, is_world_process_zero=True)
        buffer.begin(folder, state)
        for step in range(1, records + 1):
            state.global_step, state.epoch = step, step / records
            numbers = iter(torch.rand(layer_scopes * len(names), generator=generator, dtype=torch.float64).tolist())
            buffer.add(
                state,
                (
                    {
                        "layer": f"model.layers.{scope // 14}.mlp.part_{scope % 14 // 2}",
                        "part": ("weight", "bias_like")[scope % 2],
                        "name": name,
                        "value": next(numbers),
                    }
                    for scope in range(layer_scopes)
                    for name in names
                ),
            )
        buffer.flush()
        # The smallest that a report takes for a run.
        log = [{"step": step, "loss": 1.0} for step in range(1, records + 1)]
        state.log_history = log
        state.save_to_json(str(Path(folder) / "trainer_state.json"))
        return {"values": values, "records": records, **_disk(Path(folder)), "report": _report(Path(folder))}


def _disk(run_dir: Path) -> dict[str, Any]:
    """Rows and bytes of every kind of records."""
    import pyarrow.parquet as pq

    found = {}
    for folder in sorted((run_dir / "pdyn").iterdir()):
        files = list(folder.glob("*.parquet")) if folder.is_dir() else []
        if files:
            rows = sum(pq.read_metadata(path).num_rows for path in files)
            found[folder.name] = {"rows": rows, "bytes": sum(path.stat().st_size for path in files)}
    return {"disk": found}


def _report(run_dir: Path) -> dict[str, Any]:
    before, begun = peak_of_process(), time.perf_counter()
    size = len(page(read_runs([run_dir])).encode())
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "bytes": size,
        "more_memory_bytes": peak_of_process() - before,
    }


def _in_fresh_process(what: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", what, *map(str, arguments)]
    output = subprocess.run(command, env={**os.environ}, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(f"{what} {' '.join(map(str, arguments))}: {json.dumps(found)}", flush=True)
    return found


HEADER = (
    "| tensors | AdamW foreach, ms | fused | with gradient norms | measured | padam, ms | with gradient norms | "
    "measured | a reading, ms | its bytes | columns | to begin, s |\n" + "|---" * 12 + "|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    times = ("adamw_foreach", "adamw_fused", "adamw_with_statistics", "adamw_measured")
    times += ("padam", "with_statistics", "measured", "reading")
    cells = [f"{row['tensors']:,}", *(f"{row[name]:.1f}" for name in times), f"{row['bytes_of_a_reading']:,}"]
    return f"| {' | '.join(cells)} | {row['scopes']:,} | {row['prepare_seconds']:.1f} |"


def lines(record: dict[str, Any]) -> list[str]:
    """What a record says, in tables."""
    largest = record["rows"][-1]
    ours, plain, full = record["training_with"], record["training_without"], record["budget"]
    disk = ours["disk"]["layers"]
    rows = disk["rows"] // (STEPS // LOGGING)
    rows_of_budget = full["disk"]["layers"]
    found = [HEADER, *map(line, record["rows"]), "", f"In the largest, {largest['layers_joined']}.", ""]
    found += [
        f"A Trainer with {ours['tensors']:,} tensors, {STEPS} steps and a record every {LOGGING}:",
        "",
        "| with | ms a step, median | whole training, s | peak memory, GB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {of['step']:,.0f} | {of['seconds']:.1f} | {of['peak_bytes'] / 1e9:.2f} |"
            for name, of in (("padam, no callbacks", plain), ("telemetry of layers, control, allocation curve", ours))
        ),
        "",
        "| of that run | is |",
        "|---|---|",
        f"| metrics in a log record | {ours['metrics_a_record']:,} |",
        f"| rows of layers in a record | {rows:,} |",
        f"| bytes of such a row on disk | {disk['bytes'] / disk['rows']:.1f} |",
        f"| `trainer_state.json` of a checkpoint | {ours['trainer_state_bytes'] / 1e3:,.0f} kB |",
        f"| its report | {ours['report']['seconds']:.1f} s, {ours['report']['bytes'] / 1e6:.1f} MB |",
        "",
        "| a run that fills the budget of rows | is |",
        "|---|---|",
        f"| rows of layers, in {full['records']:,} records | {rows_of_budget['rows']:,} |",
        f"| their files | {rows_of_budget['bytes'] / 1e6:.0f} MB |",
        f"| its report | {full['report']['seconds']:.1f} s, {full['report']['bytes'] / 1e6:.1f} MB, with "
        f"{full['report']['more_memory_bytes'] / 1e9:.1f} GB of memory |",
    ]
    return found


if __name__ == "__main__":
    work, first, second = sys.argv[1:4]
    result = training(int(first), second == "True") if work == "training" else budget(int(first), int(second))
    print(json.dumps(result))
