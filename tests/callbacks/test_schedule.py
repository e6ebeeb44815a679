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
        (lambda: ScheduleCallback("p", "0.4"), {"optim": "sgd"}, "'p' is no number in this optimizer's groups"),
        (lambda: ScheduleCallback("weight_decay", "0.1"), {}, "none decays at the start"),
        (lambda: ScheduleCallback("p", "0.1", label="lora_A"), {}, "lora_A"),
        (lambda: ScheduleCallback("lr", "0.1"), {}, "The learning rate is the Trainer's to schedule"),
        (lambda: ScheduleCallback("weight_decay", "linear:0.1..-1"), {}, "weight_decay must be >= 0, got -1"),
        (lambda: ScheduleCallback("weight_decay", "0.1", label="mlp"), {"optim": "sgd"}, "mlp"),
        (lambda: WeightDecayShutoffCallback("12"), {"weight_decay": 0.1}, "step 12, but training ends after step 12"),
        (lambda: WeightDecayShutoffCallback("epoch:9"), {"weight_decay": 0.1}, "epoch:9, which is step 72"),
        (lambda: WeightDecayShutoffCallback("0.5"), {}, "0 in every group that would be switched off"),
        (
            lambda: WeightDecayShutoffCallback("6", until="3"),
            {"weight_decay": 0.1},
            "must return after it was switched off",
        ),
        (lambda: WeightDecayShutoffCallback("0.5", labels=["norm"]), {"weight_decay": 0.1}, "0 in every group"),
        (
            lambda: WeightDecayShutoffCallback("0.5", labels=["bias_like"]),
            {"weight_decay": 0.1},
            "weight_decay=0.1 to no bias and no norm.*weight_decay.bias_like=0.1",
        ),
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


@pytest.mark.parametrize("optim", ["padam", "adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("at", ["0.5", 0.5, 6, "epoch:0.75"])
def test_shutoff(tmp_path: Path, optim: str, at: str) -> None:
    decays = Decays()
    run = trainer(tmp_path, optim=optim, weight_decay=0.1, callbacks=[WeightDecayShutoffCallback(at), decays])
    run.train()
    assert [max(step) for step in decays.steps] == [0.1] * 6 + [0.0] * 6
    assert max(group["initial_weight_decay"] for group in run.optimizer.param_groups) == 0.1


def test_shutoff_of_chosen_labels_and_back_on(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Record(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            by_label = {(g["pathway"], g["component"]): g["weight_decay"] for g in optimizer.param_groups}
            seen.append((by_label["weight", "attention"], by_label["weight", "mlp"]))

    run = trainer(
        tmp_path,
        weight_decay=0.1,
        max_steps=6,
        callbacks=[WeightDecayShutoffCallback("2", until="4", labels=["attention"]), Record()],
    )
    run.train()
    assert seen == [(0.1, 0.1)] * 2 + [(0.0, 0.1)] * 2 + [(0.1, 0.1)] * 2


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


def test_shutoff_starts_anew_with_every_training(tmp_path: Path) -> None:
    decays = Decays()
    run = trainer(tmp_path, weight_decay=0.1, max_steps=4, callbacks=[WeightDecayShutoffCallback("2"), decays])
    run.train()
    run.train()
    assert [max(step) for step in decays.steps] == [0.1, 0.1, 0.0, 0.0] * 2
