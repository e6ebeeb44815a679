"""A plugin for axolotl: `padam` as an optimizer, and our options under the key `pdyn` of its configuration.

    plugins:
      - hf_pdyn.frontend.axolotl.PdynPlugin
    optimizer: padam
    optim_args: {p: 0.4, update_scale: adam}
    pdyn:
      telemetry: layers
      p_control: gradient

Tried with axolotl 0.19.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field, model_validator
from transformers import Trainer, TrainerCallback

from hf_pdyn.frontend.options import arguments_of
from hf_pdyn.frontend.registration import OPTIMIZER_NAME, register

_OWN_GROUPS = ("loraplus_lr_ratio", "embedding_lr_scale", "embedding_lr", "lr_groups")
"""axolotl's options that make parameter groups of their own, which an optimizer with groups by label overrides."""


class PdynOptions(BaseModel):
    """What axolotl's configuration has besides, with this plugin."""

    pdyn: dict[str, Any] | None = Field(
        default=None,
        json_schema_extra={"description": "hf_pdyn's options by name, as `python -m hf_pdyn --help` lists them"},
    )

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        """Refuse what cannot be meant while axolotl validates its configuration, before a model is loaded."""
        if isinstance(data, dict):
            arguments_of(data.get("pdyn") or {})
            given = [name for name in _OWN_GROUPS if data.get(name) is not None]
            if data.get("optimizer") == OPTIMIZER_NAME and given:
                raise ValueError(
                    f"optimizer: {OPTIMIZER_NAME} has parameter groups by label, and {', '.join(given)} would have no "
                    "effect. Use pdyn: {groups: FILE.yaml} (docs/groups.md), or optim_args: {lr_mult.lora_B: 16} for "
                    "LoRA+."
                )
        return data


class PdynPlugin(BasePlugin):
    """Gives axolotl's Trainers the callbacks of the options; telemetry with none."""

    def register(self, cfg: dict[str, Any]) -> None:
        """Make `optimizer: padam` known."""
        register()

    def get_input_args(self) -> str:
        """Where axolotl finds the options' model."""
        return f"{PdynOptions.__module__}.{PdynOptions.__name__}"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        """Return fresh callbacks for one Trainer."""
        return arguments_of(dict(cfg.pdyn or {})).callbacks()

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:
        """Raise ValueError for options that contradict the Trainer's, before training begins."""
        arguments_of(dict(cfg.pdyn or {})).check(trainer.args)
