import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import claims_table
import pytest

import papers
from hf_pdyn.sweep.outcome import CONFIRMED, Identity, Outcome
from papers._claims import verdict
from papers._claims.history import Standing, standing
from papers._claims.options import parse
from papers._claims.verdict import Part, Verdict
from tests.recipes.papers.conftest import PAPERS

ROOT = PAPERS.parents[1]
CLAIMS = [(paper, claim) for paper in papers.PAPERS for claim in papers.paper(paper).CLAIMS]


def example(number: int = 1, **judged: Any) -> Verdict:
    parts = {"x": Part(Identity(0.0, 1e-9), "3")}
    return Verdict(number, "a | b", "paper", "measured", CONFIRMED, parts=parts, size="quick", seeds=3, **judged)


@pytest.mark.parametrize("outcome", [*Outcome, Identity(1e-16, 1e-12)])
def test_verdict_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], outcome: Outcome | Identity) -> None:
    one = dataclasses.replace(example(rule="rule", standing=Standing.AFTER, rule_commit="abc"), verdict=outcome)
    one.write(tmp_path / "claim")
    assert verdict.read(tmp_path / "claim") == one
    told = capsys.readouterr().out
    assert f"verdict:  {outcome}\n" in told and "judged:   rule after rows, abc\n" in told


def table(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "recipes/claims_table.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_tables_by_number_into_a_document(tmp_path: Path) -> None:
    example(10, standing=Standing.BEFORE).write(tmp_path / "allocation" / "a")
    example(2, standing=Standing.AFTER).write(tmp_path / "allocation" / "b")
    document = tmp_path / "index.md"
    document.write_text(
        "before\n<!-- allocation: begin -->\nold\n<!-- allocation: end -->\n"
        "<!-- mirror_flow: begin -->\n<!-- mirror_flow: end -->\nafter\n"
    )
    done = table("allocation", "mirror_flow", "--output_dir", str(tmp_path), "--into", str(document))
    assert done.returncode == 0, done.stderr
    title, _, *lines = done.stdout.splitlines()
    assert title == "Information allocation dynamics in neural network optimization"
    assert lines[2] == r"| 2. a \| b (quick, 3 seeds) | paper | measured | confirmed; rule after rows |"
    assert lines[3] == "| 2. x |  | 3 | identity (largest error 0.0e+00, tolerance 1e-09) |"
    assert lines[4] == r"| 10. a \| b (quick, 3 seeds) | paper | measured | confirmed |"
    put = "\n".join(lines[:6])
    assert document.read_text() == (
        f"before\n<!-- allocation: begin -->\n{put}\n<!-- allocation: end -->\n"
        "<!-- mirror_flow: begin -->\n<!-- mirror_flow: end -->\nafter\n"
    )
    assert lines[6:] == [""]  # and nothing of the paper without verdicts


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    example().write(tmp_path / "allocation" / "a")
    (tmp_path / "index.md").write_text("no marks\n")
    unmarked = table("allocation", "--output_dir", str(tmp_path), "--into", str(tmp_path / "index.md"))
    assert unmarked.returncode == 2 and "must hold <!-- allocation: begin -->" in unmarked.stderr


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_paper_index_holds_the_verdicts_on_record(paper: str) -> None:
    for mark, folder in claims_table.FOLDERS.items():
        if (PAPERS / paper / folder).exists():
            text, name = claims_table.table(claims_table.verdicts(PAPERS / paper / folder)), paper + mark
            assert f"<!-- {name}: begin -->\n{text}<!-- {name}: end -->" in (ROOT / "paper_index.md").read_text()


def test_a_name_is_that_of_one_claim() -> None:
    names = [claim for _, claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert not set(names) & set(papers.PAPERS)


@pytest.mark.parametrize(("paper", "name"), CLAIMS)
def test_a_claim_is_found_in_its_paper(paper: str, name: str) -> None:
    found = papers.claim(name)
    assert (found.paper, found.name) == (paper, name)


@pytest.mark.parametrize(("paper", "name"), CLAIMS)
def test_a_claim_says_which_settings_are_the_papers(paper: str, name: str) -> None:
    """In its text, which `--help` prints."""
    text = papers.claim(name).doc
    assert 0 < text.find("The paper's: ") < text.find("Ours: ")


@pytest.mark.parametrize(("paper", "name"), CLAIMS)
def test_a_rule_is_kept(paper: str, name: str) -> None:
    """`recipes/claim.py NAME --rule` keeps it."""
    claim = papers.claim(name)
    assert claim.rule_file == PAPERS / paper / "rules" / f"{name}.txt"
    assert claim.rule_file.read_text().split() == claim.rule.split()


@pytest.mark.parametrize(("paper", "name"), CLAIMS)
def test_what_was_run_is_judged_and_drawn(paper: str, name: str) -> None:
    """A claim whose rule is committed may still have to be run."""
    claim, results = papers.claim(name), PAPERS / paper / "results"
    given = parse(paper, name, "", claim.options, ["--output_dir", str(results)])
    if None in map(claim.rows(given).of, claim.configurations(given)):
        pytest.skip("not run yet")
    found = verdict.read(PAPERS / paper / "results" / name)
    assert found.seeds >= 3
    assert found.rule == " ".join(claim.rule.split())
    commit, _ = standing(claim.rule, claim.rule_file, [])
    assert commit in (None, found.rule_commit)  # None: without git's history, or while a rule is being changed
    assert (PAPERS / paper / "results" / name / "figure.png").exists()


def test_files_of_rows_are_small() -> None:
    sizes = {path: path.stat().st_size for path in PAPERS.glob("*/results/*/rows.jsonl")}
    assert sizes and max(sizes.values()) < 1_000_000, sizes


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_claims_are_listed_by_number(paper: str) -> None:
    numbers = [one.number for one in claims_table.verdicts(PAPERS / paper / "results")]
    listed = [PAPERS / paper / "results" / name for name in papers.paper(paper).CLAIMS]
    assert [verdict.read(folder).number for folder in listed if (folder / verdict.FILE).exists()] == numbers
    assert len(set(numbers)) == len(numbers)


def claim(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/claim.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_claim_is_named() -> None:
    assert [tuple(line.split()) for line in claim("--list").stdout.splitlines()] == CLAIMS
    assert {line.split()[0] for line in claim("--list", "allocation").stdout.splitlines()} == {"allocation"}
    told = claim("gradient_ratio", "--help").stdout
    assert told.startswith("usage: claim.py gradient_ratio") and "--data_dir" in told
    unknown = claim("gradient_ration")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("claim.py: error: the claim must be one of residual_update, ")
    assert "got 'gradient_ration'. Did you mean 'gradient_ratio'?" in unknown.stderr
    assert "the paper must be one of allocation, adam_bias, mirror_flow" in claim("--list", "alocation").stderr


PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in *--list*) printf 'one a\\none b\\n' ;; esac
"""
"""An interpreter that does nothing but keep what it was asked to do."""


@pytest.mark.parametrize("output", [[], ["--output_dir", "out"]])
def test_the_script_checks_the_claims_of_the_papers_named(tmp_path: Path, output: list[str]) -> None:
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PYTHON)
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "papers"), "one", *output, "--jobs", "2"],
        env=os.environ | {"PYTHON": str(python), "LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    folder = "out/one" if output else "recipes/papers/one/results"
    assert log.read_text().splitlines() == [
        "recipes/claim.py --list one",
        f"recipes/claim.py a --output_dir {folder} --jobs 2",
        f"recipes/claim.py b --output_dir {folder} --jobs 2",
        f"recipes/claims_table.py one {'--output_dir out' if output else '--into paper_index.md'}",
    ]
