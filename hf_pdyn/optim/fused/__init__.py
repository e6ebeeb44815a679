"""One pass over memory for a whole step: a kernel in C++ for CPUs, one in Triton for GPUs.

Both do what `tensor_step` does, and sum what statistics need on the way. Each is compiled at its first use on a machine
and kept; `availability` says when.
"""

from hf_pdyn.optim.fused.availability import Advance, advance_if_worth_it, advance_on, takes, why_not
from hf_pdyn.optim.fused.layout import squares, step_sums

__all__ = ["Advance", "advance_if_worth_it", "advance_on", "squares", "step_sums", "takes", "why_not"]
