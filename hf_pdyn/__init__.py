"""See and steer how an optimizer distributes a training signal.

Importing this package makes `TrainingArguments(optim="padam")` and `--optim padam` valid, as soon as transformers is
imported too; nothing else happens. torch and transformers are imported with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_pdyn._version import __version__
from hf_pdyn.frontend.registration import register

if TYPE_CHECKING:
    from hf_pdyn.callbacks import (
        AllocationCallback,
        FindingsCallback,
        GroupRulesCallback,
        LearningRateScheduleCallback,
        NonfiniteCallback,
        PControlCallback,
        PTargetCallback,
        SampleLossCallback,
        ScheduleCallback,
        SpectralCallback,
        TelemetryCallback,
        WeightDecayShutoffCallback,
    )
    from hf_pdyn.frontend.arguments import PdynArguments
    from hf_pdyn.grouping import Label, build_param_groups, label_parameters
    from hf_pdyn.measure import sample_loss
    from hf_pdyn.measure.step_statistics import StepStatistics
    from hf_pdyn.optim.padam import Padam
    from hf_pdyn.policy.group_rules import GroupRules
    from hf_pdyn.run_dir.checkpoints import last_complete_checkpoint

__all__ = [
    "AllocationCallback",
    "FindingsCallback",
    "GroupRules",
    "GroupRulesCallback",
    "Label",
    "LearningRateScheduleCallback",
    "NonfiniteCallback",
    "PControlCallback",
    "PTargetCallback",
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
    "last_complete_checkpoint",
    "sample_loss",
]

_HOMES = {
    "AllocationCallback": "hf_pdyn.callbacks",
    "FindingsCallback": "hf_pdyn.callbacks",
    "GroupRules": "hf_pdyn.policy.group_rules",
    "GroupRulesCallback": "hf_pdyn.callbacks",
    "Label": "hf_pdyn.grouping",
    "LearningRateScheduleCallback": "hf_pdyn.callbacks",
    "NonfiniteCallback": "hf_pdyn.callbacks",
    "PControlCallback": "hf_pdyn.callbacks",
    "PTargetCallback": "hf_pdyn.callbacks",
    "Padam": "hf_pdyn.optim.padam",
    "PdynArguments": "hf_pdyn.frontend.arguments",
    "SampleLossCallback": "hf_pdyn.callbacks",
    "ScheduleCallback": "hf_pdyn.callbacks",
    "SpectralCallback": "hf_pdyn.callbacks",
    "StepStatistics": "hf_pdyn.measure.step_statistics",
    "TelemetryCallback": "hf_pdyn.callbacks",
    "WeightDecayShutoffCallback": "hf_pdyn.callbacks",
    "build_param_groups": "hf_pdyn.grouping",
    "label_parameters": "hf_pdyn.grouping",
    "last_complete_checkpoint": "hf_pdyn.run_dir.checkpoints",
    "sample_loss": "hf_pdyn.measure.sample_loss",
}
"""The module of each public name, which is imported when the name is first used (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if home.__name__.endswith(f".{name}") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
