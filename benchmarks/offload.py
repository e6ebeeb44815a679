"""A step of the float32 partitions that ZeRO keeps on the CPU with `offload_optimizer`, against DeepSpeedCPUAdam's.

ZeRO-1 and 2 hand an optimizer one flat tensor for each parameter group, whole here as in a launch of one process. Both
step the same tensors, and the same moments. What ZeRO does afterwards with either, to round the partitions into the
model's bf16 parameters, is timed beside the step in rows of its own; the transfer to a GPU and the gather are not.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.opponents import LR
from benchmarks.shapes import SHAPES, Shapes
from benchmarks.step import header, line, share_moments
from benchmarks.timing import bandwidth, interleaved
from hf_pdyn import Padam
from hf_pdyn.optim.step_work import StepSums
from hf_pdyn.tensors.sharding import Piece

__all__ = ["HEADER", "line", "run"]

HEADER = header(on_device=False)

WEIGHT_DECAY = 0.01
TARGET = 1.05


class Partitions:
    """The matrices and the vectors of a model, each in one flat tensor, with a gradient, and as bf16."""

    def __init__(self, shapes: Shapes) -> None:
        generator = torch.Generator().manual_seed(0)
        self.flat: list[Tensor] = []
        self.pieces: list[Piece] = []
        for matrices in (True, False):
            sizes = [math.prod(shape) for shape in shapes if (len(shape) > 1) == matrices]
            values = torch.randn(sum(sizes), generator=generator).mul_(0.02)
            flat = torch.nn.Parameter(values)
            flat.grad = torch.randn(sum(sizes), generator=generator).mul_(1e-3)
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            self.pieces += [Piece(flat, start, size) for start, size in zip(starts, sizes, strict=True)]
            self.flat.append(flat)
        self.rounded = [torch.empty(flat.numel(), dtype=torch.bfloat16) for flat in self.flat]

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [flat], "weight_decay": decay}
            for flat, decay in zip(self.flat, (WEIGHT_DECAY, 0.0), strict=True)
        ]

    def round(self) -> None:
        """Into bf16, as ZeRO does after a step."""
        for rounded, flat in zip(self.rounded, self.flat, strict=True):
            rounded.copy_(flat.detach())


def padam(partitions: Partitions, *, p: float, statistics: bool) -> Optimizer:
    """With gradient norms of every parameter at every step, as telemetry asks for them, or without."""
    optimizer = Padam(partitions.groups(), lr=LR, p=p, fused=True)
    if statistics:
        optimizer.register_step_pre_hook(lambda *_: optimizer.sum_next_step(StepSums(partitions.pieces, measure=False)))
    return optimizer


def cpu_adam(partitions: Partitions) -> Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    found: Optimizer = DeepSpeedCPUAdam(partitions.groups(), lr=LR, adamw_mode=True)
    return found


def run(shapes: str, seconds: float) -> dict[str, Any]:
    bytes_a_second = bandwidth(torch.device("cpu"), numel=2**16 if shapes == "tiny" else 2**27)
    partitions = Partitions(SHAPES[shapes])
    numel = sum(flat.numel() for flat in partitions.flat)
    rows = []
    for name, p, statistics, rounds in (
        ("p=0.5", 0.5, True, False),
        ("p=0.37", 0.37, True, False),
        ("p=0.5, no statistics", 0.5, False, False),
        ("p=0.5, then into bf16", 0.5, True, True),
    ):
        ours, theirs = padam(partitions, p=p, statistics=statistics), cpu_adam(partitions)
        share_moments(ours, theirs)
        steps = [_step(optimizer, partitions if rounds else None) for optimizer in (ours, theirs)]
        pair = interleaved(*steps, seconds=seconds, device=torch.device("cpu"))
        moved = numel * (7 * 4 + (4 + 2 if rounds else 0))
        rows.append(
            {
                "shapes": shapes,
                "dtype": "fp32",
                "ours": name,
                "against": "DeepSpeedCPUAdam",
                "milliseconds": round(1e3 * pair.ours, 4),
                "theirs_milliseconds": round(1e3 * pair.theirs, 4),
                "ratio": round(pair.ratio, 3),
                "target": TARGET,
                "memory_limit": round(moved / bytes_a_second / pair.ours, 3),
                "rounds": pair.rounds,
            }
        )
        print(line(rows[-1]), flush=True)
        del ours, theirs, steps
        gc.collect()  # hooks and optimizers hold each other
    return {"gigabytes_per_second": round(bytes_a_second / 1e9, 1), "rows": rows}


def _step(optimizer: Optimizer, then_round: Partitions | None) -> Callable[[], None]:
    def work() -> None:
        optimizer.step()
        if then_round is not None:
            then_round.round()

    return work
