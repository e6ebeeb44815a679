"""Killed between the checkpoint of the last step and the end of training, inside an epoch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_pdyn import TelemetryCallback
from tests.training import trainer


class EpochEnds(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(state.global_step)


@pytest.mark.parametrize("ignore_data_skip", [False, True])
@pytest.mark.parametrize("optim", ["padam", "adamw_torch"])
def test_it_trains_no_step_too_many(tmp_path: Path, optim: str, ignore_data_skip: bool) -> None:
    """8 steps are an epoch; padam alone sees to it, another optimizer needs one of our callbacks."""
    options: dict[str, Any] = {"max_steps": 12, "save_strategy": "steps", "save_steps": 12, "optim": optim}

    def callbacks() -> list[TrainerCallback]:
        return [] if optim == "padam" else [TelemetryCallback()]

    straight = trainer(tmp_path, callbacks=callbacks(), **options)
    straight.train()
    ends = EpochEnds()
    options |= {"ignore_data_skip": ignore_data_skip}
    resumed = trainer(tmp_path, callbacks=[*callbacks(), ends], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert resumed.state.global_step == 12
    assert ends.seen == [12]
    for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)
