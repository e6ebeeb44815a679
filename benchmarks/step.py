"""One optimizer step: time against others, memory, and how long the first takes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.opponents import LR, OPPONENTS, Build, is_installed
from benchmarks.shapes import SHAPES, Parameters
from benchmarks.timing import Pair, bandwidth, interleaved
from hf_pdyn import Padam, StepStatistics

WORDS = 7
"""Read theta, g, m, v and write theta, m, v: what no such step can do without."""

FORMATS = {
    "16bit": {0.0: 0.77, 0.25: 0.77, 0.5: 0.77, 0.37: 0.90},
    "8_16bit": {0.0: 0.75, 0.25: 0.75, 0.5: 0.75, 0.37: None},
}
"""Exponents that each format of the moments is measured at, and the largest ratios to AdamW that we want on a CPU."""
FORMATS_ON_GPU = {"16bit": 0.75, "8_16bit": 0.70}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def padam(*, statistics: str = "every step", switching: bool = False, **options: Any) -> Build:
    """Padam with gradient norms taken at every step, with everything "measured" at every step, or with "none"."""

    def build(model: nn.Module) -> Optimizer:
        optimizer = Padam(model.parameters(), lr=LR, **options)
        if statistics != "none":
            taken = StepStatistics(optimizer, model)
            window = taken.window()
            optimizer.register_step_post_hook(lambda *_: len(window))  # which lives as long as the optimizer
            if statistics == "measured":
                taken.measure_next_step()
                optimizer.register_step_post_hook(lambda *_: taken.measure_next_step())
        if switching:

            def switch(*_: Any) -> None:
                for group in optimizer.param_groups:
                    group["weight_decay"] = 0.0 if group["weight_decay"] else 0.01

            optimizer.register_step_post_hook(switch)
        return optimizer

    return build


@dataclass(frozen=True)
class Comparison:
    """ours and theirs build optimizers over the same parameters; target is the largest ratio we want, or None."""

    name: str
    ours: Build
    theirs: Build
    opponent: str
    target: float | None


def comparisons(shapes: str, device: torch.device) -> Iterator[Comparison]:
    """What is compared for these shapes, and how it should come out."""
    adamw = OPPONENTS["adamw"]
    small = shapes.startswith("lora")
    arbitrary, special = (1.5, 1.5) if small else (1.05, 1.05) if device.type == "cuda" else (1.10, 1.05)
    if shapes == "lora24" and device.type == "cpu":
        arbitrary = special = 1.10
    yield Comparison("p=0.37", padam(p=0.37), adamw, "adamw", arbitrary)
    for p in (0.0, 0.25, 0.5):
        yield Comparison(f"p={p:g}", padam(p=p), adamw, "adamw", special)
    for state_dtype, targets in FORMATS.items() if not small else ():
        for p, target in targets.items():
            largest = FORMATS_ON_GPU[state_dtype] if device.type == "cuda" else target
            ours = padam(p=p, state_dtype=state_dtype)
            yield Comparison(f"{state_dtype}, p={p:g}", ours, adamw, "adamw", largest)
    if not small:
        matched = padam(p=0.37, update_scale="adam", state_dtype="16bit")
        yield Comparison("16bit, update_scale=adam", matched, adamw, "adamw", 1.0)
        for state_dtype in FORMATS:
            measured = padam(p=0.37, state_dtype=state_dtype, statistics="measured")
            yield Comparison(f"{state_dtype}, p=0.37, everything measured", measured, adamw, "adamw", None)
    yield Comparison("p=0.37, everything measured", padam(p=0.37, statistics="measured"), adamw, "adamw", None)
    yield Comparison("p=0.37, no statistics", padam(p=0.37, statistics="none"), adamw, "adamw", None)
    for name in ("torchao", "bitsandbytes"):  # whose moments are of 8 bits, both
        yield Comparison("8_16bit, p=0.5", padam(p=0.5, state_dtype="8_16bit"), OPPONENTS[name], name, None)
    if small:
        return
    plain_step = padam(p=0.37)
    switching = padam(p=0.37, switching=True)
    yield Comparison("weight_decay switched at every step", switching, plain_step, "padam", 1.05)
    yield Comparison("p=0.37, update_scale=adam", padam(p=0.37, update_scale="adam"), adamw, "adamw", 1.32)
    yield Comparison("amsgrad", padam(p=0.37, amsgrad=True), plain_step, "padam", 1.05 * 9 / 7)
    yield Comparison("without a compiler", padam(p=0.37, fused=False), adamw, "adamw", None)
    for name in ("pytorch_optimizer", "uclaml"):
        yield Comparison("p=0.37", padam(p=0.37), OPPONENTS[name], name, 0.25)


def run(
    device: torch.device, names: Sequence[str], dtypes: Sequence[str], against: Sequence[str], seconds: float
) -> dict[str, Any]:
    bytes_a_second = bandwidth(device, numel=2**16 if list(names) == ["tiny"] else 2**27)
    rows = []
    missing = [name for name in against if not is_installed(name)]
    if missing:
        print(f"left out, since they are not installed: {', '.join(missing)}", flush=True)
    for name in names:
        for dtype in dtypes:
            model = Parameters(SHAPES[name], device=device, dtype=DTYPES[dtype])
            for comparison in comparisons(name, device):
                if comparison.opponent not in against or comparison.opponent in missing:
                    continue
                ours, theirs = comparison.ours(model), comparison.theirs(model)
                share_moments(ours, theirs)
                # theta is read and written, g is read, in their dtype; m and v are read and written.
                moved = model.numel * 3 * DTYPES[dtype].itemsize + 2 * _bytes_of_moments(ours)
                pair = interleaved(ours.step, theirs.step, seconds=seconds, device=device)
                rows.append(
                    {
                        "shapes": name,
                        "dtype": dtype,
                        "ours": comparison.name,
                        "against": comparison.opponent,
                        **_times(pair, moved / bytes_a_second),
                        "target": comparison.target and round(comparison.target, 3),
                        "rounds": pair.rounds,
                    }
                )
                print(line(rows[-1]), flush=True)
                del ours, theirs
                gc.collect()  # hooks and optimizers hold each other
            del model
    return {"gigabytes_per_second": round(bytes_a_second / 1e9, 1), "rows": rows}


def share_moments(ours: Optimizer, theirs: Optimizer) -> None:
    """Let both step the same moments, where they have alike ones: where tensors lie in memory then falls on both."""
    ours.step()
    theirs.step()
    for param, state in theirs.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            own = ours.state[param][name]
            if name in state and state[name].dtype == own.dtype:
                ours.state[param][name] = state[name]


def _bytes_of_moments(optimizer: Optimizer) -> int:
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return sum(tensor.numel() * tensor.element_size() for tensor in states)


def _times(pair: Pair, shortest: float) -> dict[str, float]:
    """shortest: the seconds that memory needs for what our step moves."""
    found = {
        "milliseconds": round(1e3 * pair.ours, 4),
        "theirs_milliseconds": round(1e3 * pair.theirs, 4),
        "ratio": round(pair.ratio, 3),
        "memory_limit": round(shortest / (pair.on_device or pair).ours, 3),
    }
    if pair.on_device is not None:
        found["device_milliseconds"] = round(1e3 * pair.on_device.ours, 4)
        found["theirs_device_milliseconds"] = round(1e3 * pair.on_device.theirs, 4)
        found["device_ratio"] = round(pair.on_device.ratio, 3)
    return found


def header(*, on_device: bool) -> str:
    """The head of the table of steps. on_device: it shows the device's own times, and judges those."""
    times = ("ms", "theirs", "ratio", *(("device ms", "theirs", "ratio") if on_device else ()))
    columns = ("shapes", "step", "against", *times, "target", "of the memory limit")
    return f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    target = f"{row['target']:.2f}" if row["target"] else ""
    times = [
        f"{row[of + 'milliseconds']:.2f} | {row['theirs_' + of + 'milliseconds']:.2f} | {row[of + 'ratio']:.2f}"
        for of in ("", "device_")
        if of + "ratio" in row
    ]
    return (
        f"| {row['shapes']} {row['dtype']} | {row['ours']} | {row['against']} | {' | '.join(times)} | {target} | "
        f"{100 * row['memory_limit']:.0f} % |"
    )


def extremes(device: torch.device, shapes: str) -> dict[str, Any]:
    """In fresh processes: the peak of memory over steps, and the time to the end of the first step."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as empty:
        for name, cache in (("adamw", None), ("padam, nothing compiled", empty), ("padam, compiled", empty)):
            environment = {
                **os.environ,
                **({"TORCH_EXTENSIONS_DIR": cache, "TRITON_CACHE_DIR": cache} if cache else {}),
            }
            command = [sys.executable, "-m", "benchmarks.step", name.partition(",")[0], shapes, str(device)]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            found[name] = json.loads(output.splitlines()[-1])
    return found


def _extremes_of_this_process(optimizer: str, shapes: str, device: torch.device) -> dict[str, float]:
    import time

    model = Parameters(SHAPES[shapes], device=device, dtype=torch.float32)
    build = OPPONENTS["adamw"] if optimizer == "adamw" else padam(p=0.37)
    start = time.perf_counter()
    optimizer = build(model)
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(3):
        optimizer.step()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_of_process()
    return {"first_step_seconds": round(first, 3), "peak_bytes": peak}


def peak_of_process() -> int:
    """The largest memory in bytes; not getrusage's, which a process inherits from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(_extremes_of_this_process(sys.argv[1], sys.argv[2], torch.device(sys.argv[3]))))
