"""TrainerCallbacks: thin adapters between the Trainer's events and the modules below."""

from hf_pdyn.callbacks.allocation import AllocationCallback
from hf_pdyn.callbacks.control import PControlCallback
from hf_pdyn.callbacks.findings import FindingsCallback
from hf_pdyn.callbacks.groups import GroupRulesCallback
from hf_pdyn.callbacks.lr_schedule import LearningRateScheduleCallback
from hf_pdyn.callbacks.nonfinite import NonfiniteCallback
from hf_pdyn.callbacks.samples import SampleLossCallback
from hf_pdyn.callbacks.schedule import ScheduleCallback
from hf_pdyn.callbacks.shutoff import WeightDecayShutoffCallback
from hf_pdyn.callbacks.spectral import SpectralCallback
from hf_pdyn.callbacks.target import PTargetCallback
from hf_pdyn.callbacks.telemetry import TelemetryCallback

__all__ = [
    "AllocationCallback",
    "FindingsCallback",
    "GroupRulesCallback",
    "LearningRateScheduleCallback",
    "NonfiniteCallback",
    "PControlCallback",
    "PTargetCallback",
    "SampleLossCallback",
    "ScheduleCallback",
    "SpectralCallback",
    "TelemetryCallback",
    "WeightDecayShutoffCallback",
]
