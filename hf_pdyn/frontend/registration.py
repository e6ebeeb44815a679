"""`--optim padam` becomes valid, at no cost: neither torch nor transformers is imported for it."""

from __future__ import annotations

from typing import Any

from hf_pdyn.frontend.launched import take_over
from hf_pdyn.integrations.on_import import when_imported
from hf_pdyn.integrations.optimizer_names import add_optimizer_handler, add_optimizer_name

OPTIMIZER_NAME = "padam"


def register() -> None:
    """Make the optimizer's name known to transformers, now or when it is imported. Idempotent.

    Below a launcher, have its options reach this process's Trainers too.
    """
    when_imported("transformers.training_args", _add_name)
    when_imported("transformers.trainer_optimizer", _add_handler)
    take_over()


def _add_name() -> None:
    add_optimizer_name(OPTIMIZER_NAME)


def _add_handler() -> None:
    add_optimizer_handler(OPTIMIZER_NAME, _build_for_trainer)


def _build_for_trainer(context: Any) -> tuple[type, dict[str, Any]]:
    from hf_pdyn.frontend.trainer_padam import build_for_trainer

    return build_for_trainer(context)
