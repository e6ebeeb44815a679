import subprocess
import sys
from pathlib import Path

import pytest

from papers._claims import statistics, verdict
from papers._claims.verdict import Part, Verdict
from papers.allocation import CLAIMS
from tests.recipes.papers.conftest import PAPERS

ROOT = PAPERS.parents[1]
RESULTS = PAPERS / "allocation" / "results"


def example(number: int = 1) -> Verdict:
    return Verdict(
        number, "a | b", "paper", "rule", "measured", statistics.CONFIRMED, 3, "quick", parts={"x": Part("no", "3")}
    )


def test_verdict_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example().write(tmp_path / "claim")
    assert verdict.read(tmp_path / "claim") == example()
    assert "verdict:  confirmed" in capsys.readouterr().out


def table(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "recipes/claims_table.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_table_by_number_into_a_document(tmp_path: Path) -> None:
    example(10).write(tmp_path / "paper" / "results" / "a")
    example(2).write(tmp_path / "paper" / "results" / "b")
    document = tmp_path / "index.md"
    document.write_text("before\n<!-- paper: begin -->\nold\n<!-- paper: end -->\nafter\n")
    done = table(str(tmp_path / "paper" / "results"), "--into", str(document))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2] == r"| 2. a \| b (quick, 3 seeds) | paper | measured | confirmed |"
    assert lines[3] == "| 2. x |  | 3 | no |"
    assert lines[4].startswith("| 10. ")
    text = document.read_text()
    assert text == f"before\n<!-- paper: begin -->\n{done.stdout}<!-- paper: end -->\nafter\n"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    nothing = table(str(tmp_path))
    assert nothing.returncode == 1 and "got none; run scripts/papers" in nothing.stderr
    example().write(tmp_path / "paper" / "results" / "a")
    (tmp_path / "index.md").write_text("no marks\n")
    unmarked = table(str(tmp_path / "paper" / "results"), "--into", str(tmp_path / "index.md"))
    assert unmarked.returncode == 1 and "must hold <!-- paper: begin -->" in unmarked.stderr


def test_paper_index_holds_the_verdicts_on_record() -> None:
    done = table(str(RESULTS))
    assert done.returncode == 0, done.stderr
    assert f"<!-- allocation: begin -->\n{done.stdout}<!-- allocation: end -->" in (ROOT / "paper_index.md").read_text()


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_on_record(name: str) -> None:
    found = verdict.read(RESULTS / name)
    assert found.verdict in (statistics.CONFIRMED, statistics.NOT_CONFIRMED, statistics.INCONCLUSIVE)
    assert found.seeds >= 3
    assert (RESULTS / name / "figure.png").exists()


def test_numbers_are_one_to_ten() -> None:
    assert [verdict.read(RESULTS / name).number for name in CLAIMS] == list(range(1, 11))


def claim(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/claim.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_claim_is_named() -> None:
    assert claim("--list").stdout.split() == list(CLAIMS)
    told = claim("gradient_ratio", "--help").stdout
    assert told.startswith("usage: claim.py gradient_ratio") and "--data_dir" in told
    unknown = claim("gradient_ration")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("claim.py: error: the claim must be one of residual_update, ")
    assert "got 'gradient_ration'. Did you mean 'gradient_ratio'?" in unknown.stderr
