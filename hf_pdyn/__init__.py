"""See and steer how an optimizer distributes a training signal.

Importing this package makes `TrainingArguments(optim="padam")` and `--optim padam` valid, and has
`resume_from_checkpoint=True` pass over checkpoints whose writing was interrupted; nothing else happens.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING


def _only_reads_runs() -> bool:
    """Whether this process is `hf-pdyn report` or `compare`, which need neither torch nor transformers."""
    return [Path(word).stem for word in sys.argv[:1]] == ["hf-pdyn"] and sys.argv[1:2] in (["report"], ["compare"])


if TYPE_CHECKING or not _only_reads_runs():
    from hf_pdyn.arguments import PdynArguments
    from hf_pdyn.callbacks import (
        NonfiniteCallback,
        PControlCallback,
        ScheduleCallback,
        TelemetryCallback,
        WeightDecayShutoffCallback,
    )
    from hf_pdyn.grouping import Label, build_param_groups, label_parameters
    from hf_pdyn.optimizer import Padam
    from hf_pdyn.registration import register
    from hf_pdyn.statistics import StepStatistics

    register()

__all__ = [
    "Label",
    "NonfiniteCallback",
    "PControlCallback",
    "Padam",
    "PdynArguments",
    "ScheduleCallback",
    "StepStatistics",
    "TelemetryCallback",
    "WeightDecayShutoffCallback",
    "build_param_groups",
    "label_parameters",
]

__version__ = "0.1.0"
