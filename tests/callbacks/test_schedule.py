from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_pdyn import ScheduleCallback, WeightDecayShutoffCallback
from tests.training import trainer


class Decays(TrainerCallback):
    def __init__(self, field: str = "weight_decay") -> None:
        self.field = field
        self.steps: list[list[float]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.steps.append([group[self.field] for group in optimizer.param_groups])


@pytest.mark.parametrize("optim", ["padam", "adamw_torch", "sgd"])
def test_weight_decay_moves_only_where_something_decays(tmp_path: Path, optim: str) -> None:
    decays = Decays()
    run = trainer(
        tmp_path,
        optim=optim,
        max_steps=10,
        weight_decay=0.1,
        callbacks=[ScheduleCallback("weight_decay", "cosine:0.2..0"), decays],
    )
    run.train()
    largest = [max(step) for step in decays.steps]
    assert largest[0] == 0.2
    assert largest == sorted(largest, reverse=True)
    assert {min(step) for step in decays.steps} == {0.0}


def test_any_number_in_the_groups_can_be_scheduled(tmp_path: Path) -> None:
    momenta = Decays("momentum")
    run = trainer(
        tmp_path, optim="sgd", max_steps=4, callbacks=[ScheduleCallback("momentum", "step:0,0.9@0.5"), momenta]
    )
    run.train()
    assert [step[0] for step in momenta.steps] == [0.0, 0.0, 0.9, 0.9]


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (lambda: ScheduleCallback("p", "linear:0.5..0.4@0..50"), {}, "moment 50 is step 50, training has 12"),
        (
            lambda: ScheduleCallback("momentun", "0.9"),
            {"optim": "sgd"},
            "'momentun' is no number.*Did you mean 'momentum'",
        ),
        (lambda: ScheduleCallback("p", "0.4"), {"optim": "sgd"}, "exponent of Padam, got SGD, .* --optim padam"),
        (lambda: ScheduleCallback("weight_decay", "0.1"), {}, "none decays at the start"),
        (lambda: ScheduleCallback("p", "0.1", label="lora_A"), {}, "lora_A"),
        (lambda: ScheduleCallback("lr", "0.1"), {}, "The learning rate is the Trainer's to schedule"),
        (lambda: ScheduleCallback("weight_decay", "linear:0.1..-1"), {}, "weight_decay must be >= 0, got -1"),
        (lambda: ScheduleCallback("weight_decay", "0.1", label="mlp"), {"optim": "sgd"}, "mlp"),
        (lambda: ScheduleCallback("eps", "-1"), {}, "A schedule of eps must be >= 0, got -1"),
        (lambda: ScheduleCallback("p", "linear:0.5..1e308"), {}, r"schedule of p must be in \[-2, 2\]"),
        (
            lambda: ScheduleCallback("initial_lr", "0.1"),
            {},
            "initial_lr is the value of lr before.*Schedule lr instead",
        ),
    ],
)
def test_nonsense_is_an_error_before_the_first_step(
    tmp_path: Path, callback: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[callback()], **options).train()


def test_two_writers_of_one_field_are_refused(tmp_path: Path) -> None:
    writers = [WeightDecayShutoffCallback(0.5), ScheduleCallback("weight_decay", 0.2)]
    with pytest.raises(ValueError, match="would both write weight_decay"):
        trainer(tmp_path, weight_decay=0.1, callbacks=writers).train()


def test_a_decay_of_a_label_s_own_is_not_scheduled(tmp_path: Path) -> None:
    decays = Decays()
    run = trainer(
        tmp_path,
        weight_decay=0.1,
        optim_args="weight_decay.attention=0.5",
        callbacks=[ScheduleCallback("weight_decay", "0.3"), decays],
    )
    run.train()
    assert {frozenset(step) for step in decays.steps} == {frozenset({0.5, 0.3, 0.0})}


@pytest.mark.parametrize(("optim_args", "unused"), [("p=0.2", "p=0.2 is not used"), ("p=0.45", None), (None, None)])
def test_a_p_that_a_schedule_overrules_is_said(
    tmp_path: Path, optim_args: str | None, unused: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    trainer(tmp_path, callbacks=[ScheduleCallback("p", "linear:0.45..0.4")], optim_args=optim_args).train()
    said = [str(warning.message) for warning in recwarn if "is not used" in str(warning.message)]
    assert [text.partition(":")[0] for text in said] == ([] if unused is None else [unused])
