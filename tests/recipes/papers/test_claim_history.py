import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from papers._claims import history
from papers._claims.history import Standing, code_commit, keep, standing

RULE = "It rises. " * 30
COMMITTED = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
BEFORE, AFTER = COMMITTED - timedelta(seconds=1), COMMITTED + timedelta(seconds=1)


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(root), *identity, *words],
        env={"GIT_COMMITTER_DATE": COMMITTED.isoformat(), "GIT_CONFIG_GLOBAL": "/dev/null", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a claim's rule in it."""
    git(tmp_path, "init")
    keep(RULE, rule_in(tmp_path))
    (tmp_path / "recipes" / "claim.py").write_text("")
    commit(tmp_path)
    return tmp_path


def rule_in(root: Path) -> Path:
    path = root / "recipes" / "papers" / "paper" / "rules" / "claim.txt"
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    return path


def commit(root: Path) -> str:
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    return git(root, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([AFTER, AFTER], Standing.BEFORE),
        ([COMMITTED], Standing.BEFORE),
        ([AFTER, BEFORE], Standing.AFTER),
        ([None, BEFORE], Standing.AFTER),
        ([AFTER, None], Standing.UNDATED),
    ],
)
def test_rule_and_rows(root: Path, times: list[datetime | None], expected: Standing) -> None:
    assert standing(RULE, rule_in(root), times) == (git(root, "rev-parse", "HEAD"), expected)


def test_the_commit_is_the_last_that_changed_the_rule(root: Path) -> None:
    keep("It falls.", rule_in(root))
    changed = commit(root)
    (root / "else").write_text("")
    commit(root)
    assert standing("It falls.", rule_in(root), [AFTER]) == (changed, Standing.BEFORE)


def test_line_breaks_are_no_change(root: Path) -> None:
    assert standing(RULE.replace(". ", ".\n"), rule_in(root), [AFTER])[1] is Standing.BEFORE


def test_a_rule_that_differs_from_the_committed_one(root: Path) -> None:
    assert standing("It falls.", rule_in(root), [AFTER]) == (None, Standing.UNCOMMITTED)
    keep("It falls.", rule_in(root))
    assert standing("It falls.", rule_in(root), [AFTER]) == (None, Standing.UNCOMMITTED)


def test_a_rule_that_was_never_kept(root: Path) -> None:
    missing = rule_in(root).with_name("another.txt")
    assert standing(RULE, missing, [AFTER]) == (None, Standing.UNCOMMITTED)


def test_without_git_nothing_is_dated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("COMMIT", raising=False)
    assert standing(RULE, rule_in(root), [AFTER]) == (None, Standing.UNDATED)
    assert code_commit.__wrapped__(root) is None


def test_without_a_repository_nothing_is_dated(tmp_path: Path) -> None:
    keep(RULE, rule_in(tmp_path))
    assert standing(RULE, rule_in(tmp_path), [AFTER]) == (None, Standing.UNDATED)
    assert code_commit.__wrapped__(tmp_path) is None


def test_a_shallow_clone_knows_no_dates(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = tmp_path_factory.mktemp("shallow") / "clone"
    git(root, "commit", "--allow-empty", "-m", "two")
    git(root, "clone", "--depth", "1", root.as_uri(), str(clone))
    assert standing(RULE, rule_in(clone), [AFTER]) == (None, Standing.UNDATED)


def test_code_is_dirty_where_it_differs_and_rows_are_no_code(root: Path) -> None:
    head = git(root, "rev-parse", "HEAD")
    assert code_commit.__wrapped__(root) == head
    results = root / "recipes" / "papers" / "paper" / "results" / "claim"
    results.mkdir(parents=True)
    (results / "rows.jsonl").write_text("")
    (root / "notes").write_text("")
    assert code_commit.__wrapped__(root) == head
    (root / "recipes" / "claim.py").write_text("changed")
    assert code_commit.__wrapped__(root) == f"{head}+dirty"


def test_a_repository_around_the_project_is_not_its_own(root: Path) -> None:
    (root / "unpacked" / "recipes").mkdir(parents=True)
    (root / "unpacked" / "recipes" / "claim.py").write_text("")
    assert code_commit.__wrapped__(root / "unpacked") is None


def test_the_root_is_that_of_the_repository() -> None:
    assert (history.ROOT / "recipes" / "claim.py").is_file()


def test_a_copy_of_a_checkout_is_told_its_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git may be that of another commit there."""
    monkeypatch.setenv("COMMIT", "abc")
    assert code_commit.__wrapped__(root) == "abc"
