"""See and steer how an optimizer distributes a training signal.

Importing this package makes `TrainingArguments(optim="padam")` and `--optim padam` valid, and has
`resume_from_checkpoint=True` pass over checkpoints whose writing was interrupted; nothing else happens.
"""

from hf_pdyn import sample_loss
from hf_pdyn.arguments import PdynArguments
from hf_pdyn.callbacks import (
    NonfiniteCallback,
    PControlCallback,
    SampleLossCallback,
    ScheduleCallback,
    SpectralCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.grouping import Label, build_param_groups, label_parameters
from hf_pdyn.optimizer import Padam
from hf_pdyn.registration import register
from hf_pdyn.statistics import StepStatistics

__all__ = [
    "Label",
    "NonfiniteCallback",
    "PControlCallback",
    "Padam",
    "PdynArguments",
    "SampleLossCallback",
    "ScheduleCallback",
    "SpectralCallback",
    "StepStatistics",
    "TelemetryCallback",
    "WeightDecayShutoffCallback",
    "build_param_groups",
    "label_parameters",
    "sample_loss",
]

__version__ = "0.1.0"

register()
