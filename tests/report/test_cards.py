"""Cards: the numbers of a run that matter, with what they mean."""

from pathlib import Path
from typing import Any

from hf_pdyn.report.cards import cards_of
from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.recorded_run import RecordedRun
from tests.report.runs import make_run, write_state

SHARES = {"pdyn/by_label/weight/mlp/grad_share": 0.9, "pdyn/by_label/bias_like/norm/grad_share": 0.1}


def recorded(path: Path, losses: list[float], update_share: float, **metrics: Any) -> RecordedRun:
    shares = {**SHARES, "pdyn/by_label/weight/mlp/update_share": update_share}
    shares["pdyn/by_label/bias_like/norm/update_share"] = 1 - update_share
    write_state(path, [{"step": i, "eval_loss": loss, **shares, **metrics} for i, loss in enumerate(losses, start=1)])
    return read_runs([path])[0]


def cards(run: RecordedRun, baseline: RecordedRun | None = None) -> dict[str, tuple[str, str]]:
    """By title: value and words, with plain spaces."""
    return {
        card.title: (card.value.replace("\N{NO-BREAK SPACE}", " "), card.words.replace("\N{NO-BREAK SPACE}", " "))
        for card in cards_of(run, baseline)
    }


def test_cards_of_a_run_alone(tmp_path: Path) -> None:
    found = cards(recorded(tmp_path, [3.0, 1.0, 2.0], 0.75, **{"pdyn/p": 0.5}))
    assert found == {
        "Evaluation loss": ("2", "from 3 at step 1; smallest 1 at step 2"),
        "Allocation": (
            "75.0 %",
            "of the update goes to weights, the rest to bias-like parameters; of the gradient 90.0 %",
        ),
        "Exponent p": ("0.5", "all the time, which is Adam"),
    }


def test_cards_against_a_baseline(tmp_path: Path) -> None:
    baseline = recorded(tmp_path / "base", [3.0, 2.0, 1.0, 0.5], 0.25)
    found = cards(recorded(tmp_path / "run", [3.0, 2.0, 1.0, 0.4], 0.75), baseline)
    assert found["Evaluation loss"][0] == "0.4"
    assert found["Evaluation loss"][1].startswith("that of base is 0.5: -0.1, no difference beyond evaluation noise of")
    assert found["Allocation"][1].endswith("; base: 25.0 % of the update")
    assert "Exponent p" not in found


def test_a_run_without_evaluations_has_its_training_loss(tmp_path: Path) -> None:
    write_state(tmp_path / "a", [{"step": step, "loss": 4.0 - step} for step in (1, 2)])
    assert cards(read_runs([tmp_path / "a"])[0]) == {"Training loss": ("2", "from 3 at step 1; smallest 2 at step 2")}
    (tmp_path / "b" / "pdyn").mkdir(parents=True)
    assert cards(read_runs([tmp_path / "b"])[0]) == {}


def test_the_path_of_p(tmp_path: Path) -> None:
    value, words = cards(read_runs([make_run(tmp_path / "a")])[0])["Exponent p"]
    assert value == "0.4" and words == (
        "in the end; between 0.4 and 0.44 before, and Adam has 0.5; 12 decisions of Algorithm 1"
    )
