"""A shim, for tests only: accelerate (1.15) shards over gloo when asked for FSDP, as it does over NCCL.

accelerate chooses FSDP for accelerators alone. On CPU it keeps the plugin it was given, leaves the distributed type at
MULTI_CPU and trains with DDP, without a word. The type is all that decides.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow_fsdp_on_cpu() -> None:
    original = AcceleratorState.__init__

    @functools.wraps(original)
    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            # In both: every later AcceleratorState() copies what PartialState has.
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            self.device = torch.device("cpu")  # FSDP1 takes the index of "cpu:0" for another device

    AcceleratorState.__init__ = init
