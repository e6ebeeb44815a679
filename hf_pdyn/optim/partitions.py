"""Optimizers that step a part of the parameters on each rank, and are not told so."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch.distributed as dist
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


def watch_partitions() -> None:
    """Have torch's ZeroRedundancyOptimizer refuse a Padam that needs the whole gradient, before its first step.

    It builds an ordinary optimizer over this rank's part. Only a hook of its own step sees both.
    """
    if dist.is_available() and dist.is_initialized():
        _watch()


@cache
def _watch() -> None:
    register_optimizer_step_pre_hook(_check_partition)


def _check_partition(optimizer: Optimizer, *_: Any) -> None:
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")  # there if anybody uses it
    if module is not None and isinstance(optimizer, module.ZeroRedundancyOptimizer):
        refuse_parts = getattr(optimizer.optim, "refuse_parts", None)
        if refuse_parts is not None:
            refuse_parts("ZeroRedundancyOptimizer has each rank step a part of it")
