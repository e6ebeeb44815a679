"""Checkpoint state that was altered: one ValueError before the first step, or the documented warning."""

import copy
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, Trainer, TrainerControl, TrainerState

from hf_pdyn import (
    PControlCallback,
    ScheduleCallback,
    SpectralCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.policy.algorithm1 import ControlConfig
from tests.training import saved_state, trainer

STEP = 7
IMPOSSIBLE = ["x", math.nan, math.inf, True, 10**400, {"x": 1}, ["x"], -1]
DOCUMENTED = ("anew at this step", "means are over the steps since the resume")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Between two log records and two decisions, so that every part of the state has something in it."""
    callbacks = [
        PControlCallback(ControlConfig(p_min=0.1, p_max=0.6), interval=3),
        ScheduleCallback("eps", "1e-12"),
        WeightDecayShutoffCallback("a_t=-0.0005"),
        TelemetryCallback(every=1, per_layer=True),
        SpectralCallback(every=3),
    ]
    run = trainer(
        tmp_path_factory.mktemp("run"),
        callbacks=callbacks,
        logging_steps=5,
        save_strategy="steps",
        save_steps=STEP,
        weight_decay=0.1,
    )
    run.train()
    run.remove_callback(PrinterCallback)
    return run


def memory_of(run: Trainer) -> dict[str, Any]:
    return saved_state(Path(run.args.output_dir, f"checkpoint-{STEP}"))["stateful_callbacks"]["pdyn"]


def resume(run: Trainer, memory: Any) -> list[str]:
    """The warnings of a training that begins with that memory, logs and writes a checkpoint."""
    state = TrainerState(global_step=STEP, max_steps=12, logging_steps=5, stateful_callbacks={"pdyn": memory})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.callback_handler.on_train_begin(run.args, state, TrainerControl())
        run.callback_handler.on_log(run.args, state, TrainerControl(), {"loss": 1.0, "learning_rate": 1e-3})
        for callback in run.callback_handler.callbacks:
            if isinstance(callback, PdynCallback):
                callback.before_checkpoint(state)
        json.dumps(state.stateful_callbacks, allow_nan=False)
    return [str(one.message) for one in caught]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value in the memory; the first of a list, and of a dict whose keys are metrics or labels."""
    if path:
        yield path
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    alike = isinstance(value, list) or path[-1:] in (("unlogged",), ("quantities",), ("cumulative_decay",))
    for key, one in inner[:1] if alike else inner:
        yield from places(one, (*path, key))


def altered(memory: dict[str, Any], path: tuple[Any, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every impossible alteration at that place, with its name."""
    *above, last = path
    for value in (*IMPOSSIBLE, KeyError):
        changed: Any = copy.deepcopy(memory)
        at = changed
        for key in above:
            at = at[key]
        if value is KeyError:
            if not isinstance(at, dict):
                continue
            del at[last]
        else:
            at[last] = value
        yield f"{'.'.join(map(str, path))}: {'deleted' if value is KeyError else str(value)[:10]}", changed


# What is possible after all: a label without a_t, another id, a key that no callback of this run reads.
POSSIBLE = {
    "telemetry.cumulative_decay.: deleted",
    "run: x",
    "run: deleted",
    "initial_p: deleted",
    "initial_eps: deleted",
    "initial_weight_decay: deleted",
    "shutoff.approach.above: True",  # as it was
}
NEGATIVE = ("weight_change", "bias_change", "N_p", "cumulative_decay", "unlogged.pdyn", "unlogged.0.p", "initial_p")


def test_the_state_as_it_was_written_is_taken_up_without_a_word(trained: Trainer) -> None:
    memory = memory_of(trained)
    assert memory["spectra"]["unlogged"]
    assert memory["control"]["unlogged"]
    assert memory["control"]["window"]["steps"] == 1
    assert memory["telemetry"]["window"]["quantities"]
    assert memory["shutoff"]["unlogged"]
    assert resume(trained, memory) == []


@pytest.mark.parametrize(
    "part", ["control", "telemetry", "spectra", "shutoff", "initial_eps", "initial_p", "version", "run"]
)
def test_no_alteration_passes_silently_or_is_a_traceback(trained: Trainer, part: str) -> None:
    memory, wrong = memory_of(trained), []
    for path in places({part: memory[part]}):
        for name, changed in altered(memory, path):
            if name in POSSIBLE or (name.endswith(": -1") and any(word in name for word in NEGATIVE)):
                continue
            try:
                said = resume(trained, changed)
            except ValueError as error:
                said = [str(error)]
                if len(said[0]) > 800:
                    wrong.append((name, "long text"))
            except Exception as error:
                wrong.append((name, repr(error)))
                continue
            if not said:
                wrong.append((name, "silent"))
    assert wrong == []


@pytest.mark.parametrize("memory", [*IMPOSSIBLE, None, []])
def test_all_of_it_replaced(trained: Trainer, memory: Any) -> None:
    with pytest.raises(ValueError, match="The pdyn state must be a dict|has version"):
        resume(trained, memory)


def test_measuring_goes_on_without_what_is_damaged(trained: Trainer) -> None:
    memory = memory_of(trained)
    memory["telemetry"]["skipped_steps"] = -1
    memory["spectra"]["unlogged"] = []
    said = resume(trained, memory)
    assert len(said) == 2
    assert all(any(words in text for words in DOCUMENTED) for text in said)


def test_groups_of_another_number(trained: Trainer) -> None:
    memory = memory_of(trained)
    memory["initial_p"].append(0.5)
    with pytest.raises(ValueError, match="initial_p for .* parameter groups, this run has .*same labels"):
        resume(trained, memory)
