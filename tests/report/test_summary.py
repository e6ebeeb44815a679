"""Sentences on final values; tables are tested where they are shown."""

from pathlib import Path

import pytest

from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.summary import notes
from tests.report.runs import make_run, write_state

WEIGHT, BIAS_LIKE = "pdyn/implicit_bias/weight", "pdyn/implicit_bias/bias_like"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (
            {WEIGHT: -0.1, BIAS_LIKE: 0.2},
            "protects the perturbed norm N_p of the weights' gradient and penalises that of the bias-like parameters'.",
        ),
        (
            {WEIGHT: 0.1, BIAS_LIKE: 0.2},
            "penalises the perturbed norm N_p of the weights' and the bias-like parameters' gradient.",
        ),
        ({WEIGHT: -0.1}, "protects the perturbed norm N_p of the weights' gradient."),
        ({WEIGHT: 0.0}, None),
        ({}, None),
    ],
)
def test_the_sign_of_the_implicit_bias_in_words(tmp_path: Path, last: dict[str, float], said: str | None) -> None:
    """Of the last complete record: the closing one may cover a single step."""
    records = [{"step": step, "pdyn/steps": 10, WEIGHT: 1.0} for step in (10, 20)]
    records += [{"step": 30, "pdyn/steps": 10, **last}, {"step": 31, "pdyn/steps": 1, WEIGHT: 3.0}]
    write_state(tmp_path, records if last else [{"step": 30, "loss": 1.0}])
    sentences = [note for note in notes(read_runs([tmp_path])) if "implicit bias" in note]
    assert sentences == ([] if said is None else [f"In the end, the implicit bias {said}"])


def test_a_shutoff_by_target_in_words(tmp_path: Path) -> None:
    record = {"step": 1200, "pdyn/wd_off/step": 1160, "pdyn/wd_off/lora/nuc_over_fro": 2.4961}
    write_state(tmp_path, [{"step": 1000, "loss": 1.0}, record])
    (sentence,) = (note for note in notes(read_runs([tmp_path])) if "decay" in note)
    assert sentence == "Weight decay was switched off at step 1,160, when lora/nuc_over_fro had come down to 2.496."


def test_a_sentence_stands_once_with_the_names_of_its_runs(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", remainder=3)]
    write_state(tmp_path / "c", [{"step": 5, WEIGHT: -1.0}])
    bias_of_a_and_b, bias_of_c = (note for note in notes(read_runs([*paths, tmp_path / "c"])) if "bias" in note)
    assert bias_of_a_and_b.endswith("that of the bias-like parameters' (a, b).")
    assert bias_of_c.endswith("of the weights' gradient (c).")
