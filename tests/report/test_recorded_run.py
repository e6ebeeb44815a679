"""Run directories, whole and damaged, as plain data."""

import json
import os
from pathlib import Path

import pytest

from hf_pdyn.report.charts import sections
from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.recorded_run import Series
from hf_pdyn.report.summary import configuration
from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.tables import ALLOCATION, DECISIONS, LAYERS, TABLE_KINDS, TableWriter
from tests.report.runs import cut_off, make_run, run_id_of, start, write_state


def test_a_whole_run_has_no_problems(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "a")])
    assert run.name == "a" and run.problems == ()
    assert run.finished and run.status == "finished (step 120 of 120)"
    assert run.series("loss").steps == tuple(range(10, 121, 10))
    assert len(run.series("eval_loss")) == 3 and len(run.series("no such")) == 0
    assert len(run.layers) and len(run.decisions) and len(run.sample_losses) and len(run.allocation)


@pytest.mark.parametrize(
    ("covered", "partial"),
    [
        ([10, 10, 10], {}),
        ([10, 10, 3], {30: 3}),  # the closing record
        ([1, 9, 10], {10: 1}),  # logging_first_step
        ([1, 3], {10: 1}),
        ([1], {}),
        ([100, 10, 10], {20: 10}),  # resumed with other logging_steps
        ([10, 4, 10], {20: 4}),
    ],
)
def test_a_record_of_fewer_steps_than_its_neighbour_is_partial(
    tmp_path: Path, covered: list[int], partial: dict[int, int]
) -> None:
    history = [{"step": 10 * (i + 1), "pdyn/steps": steps, "pdyn/D_w": 1.0} for i, steps in enumerate(covered)]
    write_state(tmp_path, history)
    (run,) = read_runs([tmp_path])
    assert run.partial_records == partial
    assert run.partial_steps("pdyn/D_w") == run.partial_steps("pdyn/param_norm/weight") == partial.keys()
    assert not run.partial_steps("pdyn/p") and not run.partial_steps("loss")


def test_a_partial_record_is_no_final_mean(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "run", remainder=3)])
    assert run.series("pdyn/D_w").values[-1] == 7.5 and run.last("pdyn/D_w") == run.series("pdyn/D_w").values[-2]
    assert run.last("pdyn/p") == 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.write_text(""), "is no directory"),
        (lambda path: path.mkdir(), "is no run directory"),
        (lambda path: (path / "checkpoint-7").mkdir(parents=True), "is no run directory"),
    ],
)
def test_what_is_no_run_directory_is_refused(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"x {message}: name the output_dir"):
        read_runs([make_run(tmp_path / "good"), tmp_path / "x"])


def test_names_grow_until_they_differ(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / parent / "run", records=1) for parent in "ab"]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]


def test_the_same_directory_twice_is_one_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", records=1)
    assert len(read_runs([path, path / ".." / "run"])) == 1


def test_a_fifo_for_a_file_is_named_and_does_not_hang(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    for file in (path / "trainer_state.json", run_json.path_of(path), LAYERS.folder(path) / "x.parquet"):
        file.unlink(missing_ok=True)
        os.mkfifo(file)
    (run,) = read_runs([path])
    assert len([problem for problem in run.problems if "it is a FIFO" in problem]) == 3
    assert len(run.layers) and len(run.decisions)


@pytest.mark.parametrize("name", ["a\ud800b", "a\u2028b", "a\x00b"], ids=["surrogate", "line separator", "control"])
def test_what_no_page_can_show_of_a_metric_s_name_is_replaced(tmp_path: Path, name: str) -> None:
    write_state(tmp_path, [{"step": 1, "loss": 2.0, name: 3.0}, {"step": 2, "loss": 1.0, name: float("nan")}])
    (run,) = read_runs([tmp_path])
    shown = "a\N{REPLACEMENT CHARACTER}b"
    assert run.series(shown).values == (3.0,) and len(run.series("loss")) == 2
    assert any(problem.startswith(f"{shown} is not finite") for problem in run.problems)


def test_what_no_page_can_show_of_a_table_s_text_is_replaced(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "run", layers=("h\u2028.0",))])
    (section,) = (section for section in sections([run])[0] if section.key == "layers")
    assert "h\N{REPLACEMENT CHARACTER}.0" in str(section.charts) and "\u2028" not in str(section.charts)


def test_a_file_that_another_run_left_is_named_and_not_shown(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    before = len(read_runs([path])[0].layers)
    writer = TableWriter(path, LAYERS, "another")
    writer.add([{"step": 1, "epoch": 0.1, "layer": "x", "part": "weight", "name": "grad_norm", "value": 1.0}])
    writer.flush()
    (run,) = read_runs([path])
    assert len(run.layers) == before and any("another run wrote it" in problem for problem in run.problems)


def test_control_characters_of_names_are_replaced(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "a\x1b[31m\nb", records=1)])
    assert run.name == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b"


def test_of_a_killed_run_the_newest_readable_checkpoint_counts(tmp_path: Path) -> None:
    for step in (5, 10, 200):
        write_state(tmp_path / f"checkpoint-{step}", [{"step": step, "loss": 1.0}], global_step=step, max_steps=300)
    cut_off(tmp_path / "checkpoint-200" / "trainer_state.json")
    (run,) = read_runs([tmp_path])
    assert run.series("loss").steps == (10,)
    assert run.finished is False and run.status == "not finished (step 10 of 300)"
    assert any("checkpoint-200/trainer_state.json cannot be read" in problem for problem in run.problems)


def test_after_a_resume_a_checkpoint_may_be_ahead_of_the_saved_state(tmp_path: Path) -> None:
    write_state(tmp_path, [{"step": 5, "loss": 1.0}], global_step=5, max_steps=5)
    write_state(tmp_path / "checkpoint-8", [{"step": 8, "loss": 0.5}], global_step=8, max_steps=20)
    (run,) = read_runs([tmp_path])
    assert run.step == 8 and run.finished is False


@pytest.mark.parametrize("name", ["trainer_state.json", "pdyn/run.json", *TABLE_KINDS])
def test_a_damaged_file_is_a_problem_and_the_rest_is_read(tmp_path: Path, name: str) -> None:
    path = make_run(tmp_path / "run")
    damaged = path / name if name.endswith("json") else next((path / "pdyn" / name).iterdir())
    cut_off(damaged)
    (run,) = read_runs([path])
    (problem,) = run.problems
    assert problem.startswith(str(damaged.relative_to(path)))
    assert (len(run.history) > 0) == (name != "trainer_state.json")
    assert (len(run.layers) > 0) == (name != LAYERS.name)
    assert (len(run.decisions) > 0) == (name != DECISIONS.name)
    assert (len(run.allocation) > 0) == (name != ALLOCATION.name)
    assert bool(run.starts) == (name != "pdyn/run.json")


@pytest.mark.parametrize(
    "content", ["null", "[]", '{"log_history": 3}', '{"log_history": [1, {"loss": 2}]}', "\xff{", ""]
)
def test_a_state_of_another_shape_is_no_traceback(tmp_path: Path, content: str) -> None:
    (tmp_path / "trainer_state.json").write_text(content, encoding="latin-1")
    (run,) = read_runs([tmp_path])
    assert run.history == () and run.problems and run.status == "end unknown (no step known)"


def test_what_is_not_finite_is_left_out_and_named(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": nan, "epoch": nan}, {"step": 3, "loss": inf}]
    write_state(tmp_path, history, global_step=3, max_steps=3)
    (run,) = read_runs([tmp_path])
    assert run.series("loss").values == (2.0,)
    assert "loss is not finite in 2 of 3 log records, from step 2 on; those are left out." in run.problems


def test_of_several_values_at_one_step_the_last_counts(tmp_path: Path) -> None:
    write_state(tmp_path, [{"step": 4, "eval_loss": 2.0}, {"step": 4, "eval_loss": 1.0}])
    assert read_runs([tmp_path])[0].series("eval_loss").values == (1.0,)


def test_an_unfinished_run_is_known_by_its_run_json(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "a", finished=False)])
    assert run.finished is False and run.status == "not finished (step 120 of 120)"


def test_a_resume_with_other_settings_is_named(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", finished=False)
    run_json.write_start(path, 60, start(learning_rate=0.5, resume_from_checkpoint="x"))
    (run,) = read_runs([path])
    assert run.problems == ("It was resumed at step 60 with other settings: learning_rate.",)
    assert [line.split()[0] for line in run.log] == ["started", "resumed"]


def test_odd_values_in_run_json_are_no_traceback(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", info=False)
    odd = {
        "format": 1,
        "starts": [{"step": "x", "callbacks": 3, "model": [1], "training_arguments": None}],
        "finished": 3,
    }
    run_json.path_of(path).write_text(json.dumps(odd))
    (run,) = read_runs([path])
    assert run.finished is False and run.log == ("started at an unknown time",)


def test_spectra_stand_where_they_were_taken(tmp_path: Path) -> None:
    """They reach the log with the next record."""
    name = "pdyn/spectrum/lora/nuc_over_fro"
    history = [
        {"step": 10, "epoch": 0.1, "loss": 2.0, name: 1.5, "pdyn/spectrum/step": 0},
        {"step": 20, "epoch": 0.2, "loss": 1.0, name: 1.7, "pdyn/spectrum/step": 20},
        {"step": 30, "epoch": 0.3, "loss": 1.0, name: 1.9, "pdyn/spectrum/step": "?"},
    ]
    write_state(tmp_path, history, global_step=30, max_steps=30)
    (run,) = read_runs([tmp_path])
    assert run.series(name) == Series((0, 20, 30), (None, 0.2, 0.3), (1.5, 1.7, 1.9))
    assert run.series("loss").steps == (10, 20, 30)


def test_what_an_earlier_run_left_is_not_shown(tmp_path: Path) -> None:
    """A new run in a used directory, killed before it wrote a state: no old state counts, no old checkpoint."""
    path = make_run(tmp_path / "run")
    write_state(path / "checkpoint-90", [{"step": 90, "loss": 1.0}], run_id_of(path), global_step=90, max_steps=120)
    new = run_json.write_start(path, 0, start())
    (run,) = read_runs([path])
    assert run.history == () and run.step is None
    assert "Another run in this directory left" in run.problems[0] and "checkpoint-90" in run.problems[0]
    write_state(path / "checkpoint-10", [{"step": 10, "loss": 2.0}], new, global_step=10, max_steps=120)
    (run,) = read_runs([path])
    assert run.step == 10 and run.last("loss") == 2.0


@pytest.mark.parametrize("seconds", [1_000_000_000, 4_000_000_000])
def test_when_a_file_was_written_says_nothing(tmp_path: Path, seconds: int) -> None:
    """Archives, copies and clocks change it."""
    path = make_run(tmp_path / "run")
    for file in path.rglob("*.json"):
        os.utime(file, (seconds, seconds))
    (run,) = read_runs([path])
    assert run.step == 120 and run.problems == ()


def test_a_state_without_an_id_is_the_run_s_own(tmp_path: Path) -> None:
    """So it is of a version that wrote none."""
    path = make_run(tmp_path / "run", records=1)
    write_state(path / "checkpoint-90", [{"step": 90, "loss": 1.0}], global_step=90, max_steps=120)
    (run,) = read_runs([path])
    assert run.step == 90 and run.problems == ()
    info = json.loads(run_json.path_of(path).read_text())
    del info["run"]
    run_json.path_of(path).write_text(json.dumps(info))
    write_state(path / "checkpoint-100", [{"step": 100, "loss": 1.0}], "x", global_step=100, max_steps=120)
    (run,) = read_runs([path])
    assert run.step == 100 and run.problems == ()


def test_the_order_of_callbacks_is_no_setting(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", info=False)
    callbacks = [{"name": "ScheduleCallback", "field": field} for field in ("p", "eps")]
    for step, order in ((0, callbacks), (60, callbacks[::-1])):
        run_id = run_json.write_start(path, step, start() | {"callbacks": order})
    write_state(path, [{"step": 60}], run_id, global_step=60)
    (run,) = read_runs([path])
    assert run.problems == ()
    other = make_run(tmp_path / "b", info=False)
    run_json.write_start(other, 0, start() | {"callbacks": callbacks})
    settings = {setting.name: setting for setting in configuration(read_runs([path, other]))}
    assert not settings["ScheduleCallback.field"].differs and not settings["ScheduleCallback #2.field"].differs
    run_json.write_start(path, 90, start() | {"callbacks": callbacks[:1]})
    (run,) = read_runs([path])
    assert run.problems == ("It was resumed at step 90 with other settings: callbacks.",)


def test_numbers_beyond_any_float_are_named(tmp_path: Path) -> None:
    large = 10**400
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": large, "epoch": large}, {"step": large, "loss": 1.0}]
    write_state(tmp_path, [*history, {"step": 3, "pdyn/spectrum/x": 1.0, "pdyn/spectrum/step": float("inf")}])
    (run,) = read_runs([tmp_path])
    assert run.series("loss").values == (2.0,) and run.series("pdyn/spectrum/x").steps == (3,)
    assert "loss is not finite in 1 of 3 log records, from step 2 on; those are left out." in run.problems
    assert "1 of 4 log records have no step and are left out." in run.problems


def test_a_run_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    run_json.path_of(path).write_text("[" * 100_000)
    (run,) = read_runs([path])
    assert run.step == 120 and "run.json cannot be read" in run.problems[0]
