"""Rows that callbacks leave in the output directory."""

import errno
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from hf_pdyn import PControlCallback, SpectralCallback, TelemetryCallback
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.run_dir.tables import DECISIONS, LAYERS, TABLE_KINDS, TableWriter, read_table
from tests.training import arguments, gpt2, saved_state, token_blocks, trainer, training_logs

OPTIONS: dict[str, Any] = {
    "max_steps": 24,
    "logging_steps": 5,
    "save_strategy": "steps",
    "save_steps": 16,
    "optim_args": "p=0.3",
}


def watching() -> list[TrainerCallback]:
    return [PControlCallback(ControlConfig(p_min=0.1, p_max=0.5), interval=3), TelemetryCallback(per_layer=True)]


def trained(run_dir: Path, resume: bool = False, **options: Any) -> Trainer:
    run = trainer(run_dir, callbacks=watching(), **(OPTIONS | options))
    run.train(resume_from_checkpoint=str(run_dir / "checkpoint-16") if resume else None)
    return run


def rows(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for kind in (LAYERS, DECISIONS):
        table, problems = read_table(run_dir, kind)
        assert not problems
        found[kind.name] = table.to_pylist()
    return found


def test_a_resumed_run_has_every_row_once(tmp_path: Path) -> None:
    trained(tmp_path)
    straight = rows(tmp_path)
    assert {row["step"] for row in straight["layers"]} == {5, 10, 15, 20, 24}
    assert [row["step"] for row in straight["decisions"]] == [3, 6, 9, 12, 15, 18, 21, 24]
    trained(tmp_path, resume=True)
    assert rows(tmp_path) == straight


def test_decisions_are_those_of_the_log(tmp_path: Path) -> None:
    """Whose records have the last one each."""
    run = trained(tmp_path)
    decisions = {row["step"]: row for row in rows(tmp_path)["decisions"]}
    for record in training_logs(run.state.log_history):
        last = decisions[max(step for step in decisions if step <= record["step"])]
        assert record["pdyn/control/p"] == last["p"]
        assert record["pdyn/control/interval"] == last["interval"]
        assert record["pdyn/control/weight_norm"] == last["weight_norm"]


def test_rows_are_on_the_disk_before_the_checkpoint_is(tmp_path: Path) -> None:
    class Interrupts(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    run = trainer(tmp_path, callbacks=[*watching(), Interrupts()], **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert saved_state(tmp_path / "checkpoint-16")["global_step"] == 16
    assert max(row["step"] for row in rows(tmp_path)["decisions"]) == 15
    trained(tmp_path, resume=True)
    after = rows(tmp_path)
    trained(tmp_path / "straight")
    assert after == rows(tmp_path / "straight")


def test_a_new_run_replaces_the_old_one_s_rows(tmp_path: Path) -> None:
    trained(tmp_path)
    trained(tmp_path, max_steps=6, save_strategy="no")
    assert {row["step"] for row in rows(tmp_path)["decisions"]} == {3, 6}
    assert max(row["step"] for row in rows(tmp_path)["layers"]) <= 6


def test_a_full_disk_is_one_warning_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, calls = TableWriter.flush, []

    def fails_at_first(writer: TableWriter, name: str | None = None) -> Path | None:
        calls.append(name)
        if len(calls) <= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return flush(writer, name)

    monkeypatch.setattr(TableWriter, "flush", fails_at_first)
    with pytest.warns(UserWarning, match=r"could not write its .* records: .*No space left") as caught:
        trained(tmp_path)
    assert len([warning for warning in caught if "could not write" in str(warning.message)]) == 2  # one for each kind
    assert len(calls) > 4
    monkeypatch.undo()
    trained(tmp_path / "undisturbed")
    assert rows(tmp_path) == rows(tmp_path / "undisturbed")


def test_rows_of_the_first_step_outlive_what_is_dropped_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_pdyn.callbacks.row_buffer._FLUSH_AT", 3)
    trainer(tmp_path, callbacks=[SpectralCallback(4), TelemetryCallback()], max_steps=8).train()
    assert {row["step"] for row in rows(tmp_path)["layers"]} == {0, 4, 8}


def test_every_trial_of_a_search_has_its_own(tmp_path: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = Trainer(
        model_init=lambda: gpt2(),
        args=arguments(tmp_path, **(OPTIONS | {"max_steps": 6, "save_strategy": "no", "eval_strategy": "epoch"})),
        train_dataset=token_blocks(),
        eval_dataset=token_blocks(16, seed=9),
        callbacks=watching(),
    )
    search.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        n_trials=2,
        backend="optuna",
        direction="minimize",
    )
    first, second = (rows(tmp_path / f"run-{number}")["layers"] for number in (0, 1))
    assert len(first) == len(second) > 0
    assert first != second
    assert not any(kind.folder(tmp_path).exists() for kind in TABLE_KINDS.values())
