"""Trainers whose loss of a sample is not the cross-entropy of its labels: asked for it, or with a reason why not.

Tried with TRL 1.16, sentence-transformers 6.2 and setfit 1.2.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_PREFERENCES = {"DPOTrainer": "rewards/accuracies", "RewardTrainer": "accuracy"}
"""TRL's trainers on pairs, and their metric that is 1 where the chosen one has the higher reward."""
_BY_LABELS = ("SFTTrainer", "PRMTrainer")
"""TRL's trainers whose batches have labels of tokens."""
_OF_A_BATCH = ("aot", "aot_unpaired")
"""Losses of the DPOTrainer that sort the pairs of a batch."""


class OwnLoss(NamedTuple):
    """The loss () of one sample, and whether its reward is on the right side."""

    loss: Tensor
    correct: bool | None


def are_asked(trainer: Any) -> bool:
    """Whether the Trainer itself is asked for each sample's loss, one at a time."""
    return _class_of(trainer, "trl") in _PREFERENCES


def why_none(trainer: Any) -> str | None:
    """Why this Trainer's samples have no loss of their own; None where they have."""
    if _class_of(trainer, "sentence_transformers") is not None:
        return f"{type(trainer).__name__}'s loss compares the texts of a batch, so that none is of a sample alone"
    name = _class_of(trainer, "trl")
    if name is None or name in _BY_LABELS:
        return None
    if name not in _PREFERENCES:
        return f"{name}'s loss is not one of single samples of its data set, as DPOTrainer's and RewardTrainer's are"
    kinds = sorted(set(_OF_A_BATCH) & set(getattr(trainer, "loss_types", ())))
    if kinds:
        return f"loss_type={kinds[0]} sorts the pairs of a batch, so that none is of a pair alone"
    if not isinstance(getattr(trainer, "_metrics", None), dict):
        return f"this version of TRL's {name} keeps its metrics where they cannot be put aside; 1.16 is known to work"
    return None


def of_sample(trainer: Any, batch: Any) -> OwnLoss:
    """The Trainer's own loss of a batch of one sample, with the model as it is; the Trainer's metrics stay."""
    name = _class_of(trainer, "trl")
    assert name is not None
    inputs = trainer._prepare_inputs(batch)
    with _alone(trainer) as metrics, trainer.compute_loss_context_manager(), torch.no_grad():
        loss = trainer.compute_loss(trainer.model, inputs)
    correct = metrics["eval"].get(_PREFERENCES[name])
    return OwnLoss(loss.detach(), bool(correct[-1] == 1) if correct else None)


@contextlib.contextmanager
def _alone(trainer: Any) -> Iterator[dict[str, Any]]:
    """Metrics of the Trainer's that are of this process and this moment, and are dropped afterwards."""
    kept, accelerator = trainer._metrics, trainer.accelerator
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    gathering = [name for name in ("gather", "gather_for_metrics") if name not in vars(accelerator)]
    for name in gathering:
        setattr(accelerator, name, lambda value, *args, **kwargs: value)
    try:
        yield trainer._metrics
    finally:
        trainer._metrics = kept
        for name in gathering:
            delattr(accelerator, name)


def _class_of(trainer: Any, library: str) -> str | None:
    """The name of the Trainer's first class that is the library's."""
    classes = type(trainer).__mro__
    return next((one.__name__ for one in classes if one.__module__.split(".")[0] == library), None)
