"""One pass over memory for a whole step: a kernel in C++ for CPUs, one in Triton for GPUs.

Both do what `tensor_step` does, and sum what statistics need on the way. Each is compiled at its first use on a machine
and kept (`availability`), and compared with the tensor step before its first use in a process (`self_check`).
"""

from hf_pdyn.optim.fused.availability import (
    FusedStep,
    fused_if_worth_it,
    fused_on,
    takes,
    warn_once,
    why_distrusted,
    why_not,
)

__all__ = ["FusedStep", "fused_if_worth_it", "fused_on", "takes", "warn_once", "why_distrusted", "why_not"]
