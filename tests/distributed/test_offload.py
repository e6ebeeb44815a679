"""ZeRO's offload_optimizer: accelerate would replace Padam. `test_variants` trains with the cure."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_pdyn import Padam, TelemetryCallback
from tests.distributed.launching import launch
from tests.distributed.matrix import zero
from tests.training import gpt2, trainer

CURE = 'Set "zero_force_ds_cpu_optimizer": false in the DeepSpeed config'


def offloading() -> dict[str, Any]:
    options = copy.deepcopy(zero(2))
    options["deepspeed"]["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return options


@pytest.mark.distributed
def test_padam_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    cases = {"with callbacks": {}, "without": {"silent": True}, "control": {"control": True}}
    cases = {name: {**offloading(), **options} for name, options in cases.items()}
    for rank in launch(2, "unreadable_worker", tmp_path / "out", cases):
        assert len(rank) == 3
        for report in rank.values():
            assert report["error"].startswith("With ZeRO's offload_optimizer, accelerate replaces Padam")
            assert CURE in report["error"]


def test_a_callback_finds_the_replacement_of_an_optimizer_that_the_trainer_did_not_build(tmp_path: Path) -> None:
    class DeepSpeedCPUAdam(torch.optim.Adam):
        """Stands for DeepSpeed's, which takes over the groups too."""

    model = gpt2()
    optimizer = DeepSpeedCPUAdam(Padam(model.parameters(), p=0.3).param_groups)
    run = trainer(tmp_path, model, optimizers=(optimizer, None), callbacks=[TelemetryCallback()])
    with pytest.raises(ValueError, match=CURE):
        run.train()
