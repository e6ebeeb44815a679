"""A plugin for ms-swift: `padam` as an optimizer, and our callbacks in its Trainers.

A plugin file says which options (`swift sft --external_plugins pdyn_plugin.py --callbacks pdyn --optimizer padam ...`):

    from hf_pdyn.frontend.ms_swift import register

    register(telemetry="layers", p_control="gradient")

Tried with ms-swift 4.6.
"""

from __future__ import annotations

from typing import Any

from swift.callbacks import callbacks_map
from swift.optimizers import OptimizerCallback, optimizers_map
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_pdyn.frontend.arguments import PdynArguments
from hf_pdyn.frontend.options import arguments_of
from hf_pdyn.frontend.registration import OPTIMIZER_NAME
from hf_pdyn.frontend.registration import register as make_padam_known

CALLBACK = "pdyn"
"""What `--callbacks` takes."""
_OWN_GROUPS = ("vit_lr", "aligner_lr", "lorap_lr_ratio")
"""ms-swift's options that choose an optimizer of its own, with groups, where `--optimizer` names none."""


def register(**options: Any) -> None:
    """Make `--callbacks pdyn` and `--optimizer padam` known to ms-swift. A later call replaces the options.

    Args:
        options: those of the command line by name: `telemetry="layers"`, `p_control="gradient"`.

    Raises:
        ValueError: for options that cannot be meant.
    """
    make_padam_known()
    arguments = arguments_of(options)
    callbacks_map[CALLBACK] = lambda args, trainer: AddsCallbacks(arguments, trainer)
    optimizers_map[OPTIMIZER_NAME] = BuildsPadam


class AddsCallbacks(TrainerCallback):
    """ms-swift builds one callback for a name, before its Trainer is one; ours are several."""

    def __init__(self, arguments: PdynArguments, trainer: Any) -> None:
        self._arguments, self._trainer = arguments, trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the options beside the Trainer's, and add the callbacks they stand for; they get this event too."""
        self._arguments.check(args)
        for callback in self._arguments.callbacks():
            self._trainer.add_callback(callback)


class BuildsPadam(OptimizerCallback):
    """`--optimizer padam`: ms-swift reads its plugins after `--optim`, whose choices are then fixed."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        given = [f"--{name}" for name in _OWN_GROUPS if getattr(args, name, None) is not None]
        if given:
            raise ValueError(
                f"--optimizer {OPTIMIZER_NAME} has parameter groups by label, and {', '.join(given)} would have no "
                'effect. Use register(groups="FILE.yaml") (docs/groups.md), or lr_mult.lora_B=16 in --optim_args for '
                "LoRA+."
            )
        args.optim = OptimizerNames(OPTIMIZER_NAME)
