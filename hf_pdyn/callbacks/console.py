"""What the console shows of a log record: one line. Reporters and trainer_state.json have all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_pdyn.policy.algorithm1 import BRANCHES

_SHOWN = {"pdyn/p": "p", "pdyn/G_w_over_G_b": "D_w/D_b", "pdyn/allocation/lr_factor": "lr_factor"}


def short_record(logs: Mapping[str, Any]) -> dict[str, Any]:
    """The record without our metrics, but for p, D_w/D_b, the learning rate's factor and Algorithm 1's decision."""
    short = {name: value for name, value in logs.items() if not name.startswith("pdyn/")}
    short |= {shown: logs[name] for name, shown in _SHOWN.items() if name in logs}
    branch = logs.get("pdyn/control/branch")
    if branch is not None:
        short["decision"] = BRANCHES[int(branch)]
    return short
