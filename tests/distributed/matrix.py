"""The launch matrix: every way to launch x every training, what each is compared with, and how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import FullyShardedDataParallelPlugin, is_deepspeed_available
from packaging.version import Version

from tests.distributed.launching import ON_CPU, start

# Sums over processes come in another order, in float32: relative differences stay below this.
TOLERANCE = 1e-5
# Means over elements count one as soon as its v is not exactly zero. The gradients of attention's key biases are zero
# but for rounding, so where sums of a loss come in another order, or from another device, some of these 32 of 448
# bias-like elements count that did not: the share of eps may move by their part, the coefficient by three times as much
# (on an H100 1.6e-3 and 1.3e-2; on a CPU with AVX2, 9e-3 in the first record of accumulated gradients).
NOISE = 32 / 448
NOISY = {"pdyn/eps_share/bias_like": NOISE, "pdyn/implicit_bias/bias_like": 3 * NOISE}

_FSDP = {"transformer_layer_cls_to_wrap": ["GPT2Block"], "use_orig_params": True, "cpu_ram_efficient_loading": False}


def _fsdp(**config: Any) -> dict[str, Any]:
    return {"fsdp": "full_shard auto_wrap", "fsdp_config": {**_FSDP, **config}}


def zero(stage: int) -> dict[str, Any]:
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            **dict.fromkeys(automatic, "auto"),
        }
    }


@dataclass(frozen=True)
class Launch:
    """A way to launch: processes, the Trainer's options, and what parameters must then be.

    tensor: the type of the optimizer's tensors, so that a launch that fell back to something else is seen.
    torchrun: that it also starts a single process.
    """

    processes: int
    options: dict[str, Any]
    wrapper: str
    tensor: str
    torchrun: bool = False
    on_gpu: bool = False


LAUNCHES: dict[str, Launch] = {
    "plain": Launch(1, {}, "", "Parameter"),
    "DDP": Launch(2, {"ddp_find_unused_parameters": False}, "DistributedDataParallel", "Parameter"),
    "FSDP2": Launch(2, _fsdp(version=2), "FSDP", "DTensor"),
    "FSDP1": Launch(2, _fsdp(version=1, sync_module_states=False), "FullyShardedDataParallel", "1-D Parameter"),
    "ZeRO-1": Launch(2, zero(1), "DeepSpeedEngine", "flat Tensor"),
    "ZeRO-2": Launch(2, zero(2), "DeepSpeedEngine", "flat Tensor"),
    "ZeRO-3": Launch(2, zero(3), "DeepSpeedEngine", "flat Tensor"),
}

_ON_GPU = {"use_cpu": False}
GPU_LAUNCHES: dict[str, Launch] = {
    "plain on a GPU": Launch(1, _ON_GPU, "", "Parameter", on_gpu=True),
    "FSDP2 on a GPU": Launch(1, {**_fsdp(version=2), **_ON_GPU}, "FSDP", "DTensor", torchrun=True, on_gpu=True),
}

TRAININGS: dict[str, dict[str, Any]] = {
    "padam p=.5": {"optim_args": "p=0.5"},
    "padam p=.25 matched": {
        "optim_args": "p=0.25,update_scale=adam,lr_mult.norm=3,fused=true",
        "wd_off": "a_t=-0.0006",
    },
    "sgd, shutoff": {"optim": "sgd"},
    "clipped at every step": {"optim_args": "p=0.4,fused=true", "max_grad_norm": 0.01, "logging_steps": 1},
    "held by a target": {"optim_args": "p=0.4", "target": "update_ratio=3"},
    "named groups": {"optim": "adamw_torch", "groups": [{"name": "body", "match": r"\.h\.", "layer": 0.5}]},
    "accumulation": {"optim_args": "p=0.5", "gradient_accumulation_steps": 2},
}
CASES: dict[str, dict[str, Any]] = {
    f"{model}, {name}": {"model": model, **options}
    for model in ("full", "LoRA")
    for name, options in TRAININGS.items()
    if model == "full" or name not in ("accumulation", "named groups")
}


def why_impossible(launch: str, case: str = "") -> str | None:
    """Why the installed libraries cannot do it, with any optimizer."""
    if "FSDP" in launch and "fsdp_version" not in FullyShardedDataParallelPlugin.__dataclass_fields__:
        return "transformers names FSDP's version, which accelerate 1.3 does not know"
    if "ZeRO" in launch and not is_deepspeed_available():
        return "deepspeed is not installed"
    if "ZeRO" in launch and "accumulation" in case and Version(transformers.__version__) < Version("5.23"):
        return "transformers 5.2 adds up accumulated gradients under DeepSpeed, with stock AdamW too"
    return None


def run(launch: str, out: Path, cases: dict[str, dict[str, Any]] = CASES) -> list[dict[str, Any]]:
    """Train all cases under `launch`; the reports of each rank, case by case."""
    how = {**LAUNCHES, **GPU_LAUNCHES}[launch]
    start(
        "trainer_worker",
        how.processes,
        out,
        {name: {**how.options, **options} for name, options in cases.items()},
        torchrun=how.torchrun,
        devices={} if how.on_gpu else ON_CPU,
    )
    return reports(launch, out)


def reports(launch: str, out: Path) -> list[dict[str, Any]]:
    """What a run left in `out`; asserts that it was the launch that it should have been."""
    expected = {**LAUNCHES, **GPU_LAUNCHES}[launch]
    ranks = [torch.load(out / f"rank{rank}.pt") for rank in range(expected.processes)]
    for report in (report for rank in ranks for report in rank.values()):
        assert report["world_size"] == expected.processes
        assert report["wrapper"].startswith(expected.wrapper)
        assert report["tensors"] == [expected.tensor]
        assert report["device"] == ("cuda" if expected.on_gpu else "cpu")
    return ranks


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of a cell from one process: of each logged metric and of final weights."""

    metrics: dict[str, float]
    weights: float
    same_p: bool

    @property
    def statistics(self) -> float:
        return _largest(list(self.metrics.values()))

    @property
    def agrees(self) -> bool:
        return self.same_p and self.statistics <= TOLERANCE and self.weights <= TOLERANCE

    @property
    def agrees_but_for_noise(self) -> bool:
        """Where losses of parts of a batch are added up in another order."""
        statistics = all(value <= NOISY.get(name, TOLERANCE) for name, value in self.metrics.items())
        return self.same_p and statistics and self.weights <= TOLERANCE

    def __str__(self) -> str:
        p = "same p" if self.same_p else "OTHER P"
        worst = next(name for name, value in self.metrics.items() if not value < self.statistics)
        return f"statistics {self.statistics:.1e} ({worst}), weights {self.weights:.1e}, {p}"


def difference(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> Difference:
    """Of the worst rank; AssertionError where one logged other metrics, or has other parameters by name."""
    metrics: dict[str, list[float]] = {}
    weights = [0.0]
    for report in ranks:
        assert len(report["logs"]) == len(expected["logs"])
        for record, wanted in zip(report["logs"], expected["logs"], strict=True):
            assert record.keys() == wanted.keys(), record.keys() ^ wanted.keys()
            for name, value in record.items():
                metrics.setdefault(name, []).append(_relative(name, value, wanted[name]))
        names = expected["weights"].keys()
        assert report["weights"].keys() == names, report["weights"].keys() ^ names
        weights += [_distance(report["weights"][name], expected["weights"][name]) for name in names]
    # The first rank's decisions are every rank's, bit for bit; those of another launch come from sums in another order,
    # which show in a p that is solved for.
    alike = zip(ranks[0]["p"], expected["p"], strict=True)
    same_p = all(report["p"] == ranks[0]["p"] for report in ranks) and all(
        math.isclose(ours, wanted, rel_tol=TOLERANCE) for ours, wanted in alike
    )
    return Difference({name: _largest(found) for name, found in metrics.items()}, _largest(weights), same_p)


def _relative(name: str, value: float, wanted: float) -> float:
    # Relative changes and slopes of logarithms are differences of two numbers that are each good to the tolerance.
    # eps_share is a part of 1, which gradients make that are zero but for rounding.
    scale = 1.0 if name.endswith(("_change", "_slope")) or "eps_share" in name else abs(wanted)
    return abs(value - wanted) / max(scale, 1e-9)


def _distance(weight: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((weight - wanted).norm() / wanted.norm().clamp(min=1e-3)).item()


def _largest(values: list[float]) -> float:
    return torch.tensor(values).max().item()  # unlike Python's max, NaN if one is
