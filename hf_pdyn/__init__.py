"""See and steer how an optimizer distributes a training signal.

Importing this package makes `TrainingArguments(optim="padam")` and `--optim padam` valid, and has
`resume_from_checkpoint=True` pass over checkpoints whose writing was interrupted; nothing else happens.
"""

from hf_pdyn._version import __version__
from hf_pdyn.callbacks import (
    NonfiniteCallback,
    PControlCallback,
    SampleLossCallback,
    ScheduleCallback,
    SpectralCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.frontend.arguments import PdynArguments
from hf_pdyn.frontend.registration import register
from hf_pdyn.grouping import Label, build_param_groups, label_parameters
from hf_pdyn.measure import sample_loss
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.optim.padam import Padam

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
    "__version__",
    "build_param_groups",
    "label_parameters",
    "sample_loss",
]

register()
