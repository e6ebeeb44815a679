"""What is said of a run in words, and the command that says it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_pdyn.cli import main
from hf_pdyn.policy.allocation_curve import lr_factor, total, update_ratio
from hf_pdyn.policy.findings import KINDS
from hf_pdyn.report.allocation_curves import AllocationCurves
from hf_pdyn.report.explain import baseline_among, explain
from hf_pdyn.report.page import page
from hf_pdyn.report.reading import read_runs
from hf_pdyn.run_dir import run_json
from tests.report.runs import make_run, start, write_state


def with_records(directory: Path, **changed: Any) -> Path:
    """Give every record of telemetry these metrics."""
    path = directory / "trainer_state.json"
    state = json.loads(path.read_text())
    for record in state["log_history"]:
        if "pdyn/D_w" in record:
            record.update({f"pdyn/{name}": value for name, value in changed.items()})
    path.write_text(json.dumps(state))
    return directory


def test_sentences_at_the_beginning_in_the_middle_and_in_the_end(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "a")])
    explained = explain(run)
    last, of_control = explained.outcome
    sentences = [*explained.earlier, last]
    assert [sentence.split(",")[0] for sentence in sentences] == ["At step 10", "At step 60", "At step 120"]
    assert of_control.startswith("Algorithm 1 decided 12 times (") and "p went from" in of_control
    curves = AllocationCurves.of(run.allocation)
    weight, bias_like, last_p = curves.at(120)["weight"], curves.at(120)["bias_like"], curves.p_at(120)
    assert last_p is not None
    assert f"{lr_factor(total([weight, bias_like]), last_p):.2g} times smaller than Adam's" in sentences[-1]
    ratios = [f"{update_ratio(weight, bias_like, p):.2g}" for p in (last_p, 0.5)]
    assert f"weights get {ratios[0]} times the bias-like update ({ratios[1]} at p = 0.5)." in sentences[-1]


def test_one_measurement_has_one_sentence(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "a", records=1)])
    assert len(explain(run).outcome) == 2 and explain(run).earlier == []


def test_a_run_without_the_curve_has_none(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "a")
    for file in (directory / "pdyn" / "allocation").iterdir():
        file.unlink()
    for file in (directory / "pdyn" / "decisions").iterdir():
        file.unlink()
    (run,) = read_runs([directory])
    assert explain(run).outcome == explain(run).earlier == []


def test_findings_of_a_run(tmp_path: Path) -> None:
    (run,) = read_runs([with_records(make_run(tmp_path / "a"), nonfinite_steps=3)])
    assert [finding.kind for finding in explain(run).findings] == ["nonfinite"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", str(make_run(tmp_path / "a"))])
    output = capsys.readouterr().out
    assert "At step 120" in output and "Nothing was found" in output


def test_several_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", *(str(make_run(tmp_path / name, seed=i)) for i, name in enumerate("ab"))])
    output = capsys.readouterr().out.splitlines()
    assert [line for line in output if line.endswith(":") and len(line) == 2] == ["a:", "b:"]


@pytest.mark.parametrize(
    ("wanted", "status"), [(["any"], 1), (["nonfinite"], 1), (["eps_rules", "nonfinite"], 1), (["eps_rules"], None)]
)
def test_a_finding_can_fail_a_build(tmp_path: Path, wanted: list[str], status: int | None) -> None:
    arguments = ["explain", str(with_records(make_run(tmp_path / "a"), nonfinite_steps=3)), "--fail_on", *wanted]
    if status is None:
        main(arguments)
    else:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == status


def test_a_run_of_which_nothing_can_be_told_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path / "plain", [{"step": 1, "loss": 1.0}])
    main(["explain", str(tmp_path / "plain")])
    output = capsys.readouterr().out
    assert "nothing could be found" in output and "Nothing was found" not in output
    with pytest.raises(SystemExit) as exit_:
        main(["explain", str(make_run(tmp_path / "a")), str(tmp_path / "plain"), "--fail_on", "nonfinite"])
    assert exit_.value.code == 1


def test_an_unknown_finding_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["explain", str(make_run(tmp_path / "a")), "--fail_on", "clipped"])
    assert exit_.value.code == 2
    assert "Did you mean 'always_clipped'" in capsys.readouterr().err


def test_against_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, same = (make_run(tmp_path / name, records=24, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    main(["explain", str(run), "--baseline", str(same)])
    output = " ".join(capsys.readouterr().out.split())
    assert "equals_baseline" in output and "The evaluation loss ended at 0.125, that of b at 0.125" in output


def test_a_baseline_that_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path / "base", [{"step": 1, "loss": 1.0}])
    main(["explain", str(evaluated(tmp_path / "run", [3.0, 2.0])), "--baseline", str(tmp_path / "base")])
    assert "It is not compared with base: not both have evaluation losses." in " ".join(capsys.readouterr().out.split())


def evaluated(directory: Path, losses: list[float], **metrics: float) -> Path:
    write_state(directory, [{"step": step, "eval_loss": loss, **metrics} for step, loss in enumerate(losses, start=1)])
    return directory


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3.0, 2.01, 1.0, 0.0], "+0, no difference beyond evaluation noise"),
        ([3.5, 2.51, 1.5, 0.5], "+0.5, higher by more than evaluation noise"),
        ([2.5, 1.51, 0.5, -0.5], "-0.5, lower by more than evaluation noise"),
        ([3.0, 0.5], "+0.5; four evaluations of each run would tell whether that is noise"),
    ],
)
def test_a_difference_in_words(tmp_path: Path, losses: list[float], said: str) -> None:
    paths = [evaluated(tmp_path / "run", losses), evaluated(tmp_path / "base", [3.0, 2.01, 1.0, 0.0])]
    run, baseline = read_runs(paths)
    (sentence, *_) = explain(run, baseline).outcome
    assert f"that of base at 0: {said}" in sentence


def test_the_baseline_among_runs_is_the_only_one_at_adams_p(tmp_path: Path) -> None:
    adam, steered, other = (
        evaluated(tmp_path / name, [1.0], **{"pdyn/p": p}) for name, p in (("adam", 0.5), ("steered", 0.4), ("b", 0.5))
    )
    runs = read_runs([adam, steered, other])
    assert baseline_among(runs[:2]) is runs[0] and baseline_among(runs[1:]) is runs[2]
    assert baseline_among(runs) is None and baseline_among(runs[:1]) is None
    adamw = make_run(tmp_path / "adamw", info=False)
    run_json.write_start(adamw, 0, start(optim="adamw_torch"))
    evaluated(adamw, [1.0])
    assert [run.name for run in [baseline_among(read_runs([steered, adamw]))] if run] == ["adamw"]


def test_the_documentation_has_every_finding() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    assert [kind for kind in KINDS if f"| `{kind}` |" not in documented] == []


def test_the_page_begins_with_words(tmp_path: Path) -> None:
    runs = read_runs([with_records(make_run(tmp_path / "a"), nonfinite_steps=3)])
    text = page(runs)
    words, cards = text.index('id="words"'), text.index('id="runs"')
    assert words < cards
    assert "At step 120, p = 0.4" in text[words:cards] and "3 steps had a gradient" in text[words:cards]
