from pathlib import Path
from typing import Any

import pytest

from benchmarks import format_losses
from hf_pdyn.sweep.rows import Rows

REFERENCE = [4.0, 4.1, 4.2, 3.9, 3.8]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.001, -0.002, 0.001, 0.002, -0.001], "as good as fp32"),
        ([0.3, 0.31, 0.29, 0.3, 0.32], "differs"),
        ([-0.3, -0.31, -0.29, -0.3, -0.32], "differs"),
        ([0.5, -0.4, 0.3, -0.5, 0.2], "undecided"),
    ],
)
def test_the_rule_has_three_outcomes(differences: list[float], verdict: str) -> None:
    found = format_losses.judged([a + b for a, b in zip(REFERENCE, differences, strict=True)], REFERENCE)
    assert found["verdict"] == verdict


def test_only_what_is_missing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[dict[str, Any]] = []

    def run(of: dict[str, Any]) -> dict[str, Any]:
        done.append(of)
        seed = of["seed"]
        return {"eval_loss": REFERENCE[seed % 5 - 1] + (0.001 * seed if of["state_dtype"] == "16bit" else 0)}

    monkeypatch.setattr(format_losses, "run", run)
    arguments = ["--rows", str(tmp_path / "rows.jsonl")]
    format_losses.main([*arguments, "--seconds", "0"])
    assert not done
    for _ in range(2):
        format_losses.main(arguments)
        assert done == list(format_losses.configurations())
    found = list(format_losses.compared(Rows(tmp_path / "rows.jsonl")))
    assert len(found) == 10
    by_format = {(row["state_dtype"], len(row["seeds"])): row["difference"].mean for row in found}
    assert by_format == pytest.approx(
        {("16bit", 5): 0.003, ("8_16bit", 5): 0.0, ("16bit", 20): 0.0155, ("8_16bit", 20): 0.0}
    )
    output = capsys.readouterr().out
    assert "| gpt2_lora | 0.25 | `16bit` | 1 to 5 | 4.0000 ± 0.1581 | +0.0030 [" in output
    assert "| vit_lora | 0.5 | `16bit` | 6 to 25 | 4.0000 ± " in output
