"""What stands in pyproject.toml and beside it is complete; scripts/package, which CI runs, builds and installs."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from hf_pdyn import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_a_tag_of_another_version_is_refused_before_anything_is_built() -> None:
    found = subprocess.run(["bash", ROOT / "scripts/package", "0.0.0"], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == f"The tag says version 0.0.0, hf_pdyn/_version.py says {__version__}. Make them the same.\n"


def test_pins_are_of_packages_that_something_asks_for() -> None:
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    groups = PYPROJECT["dependency-groups"].values()
    asked += [item for group in groups for item in group if isinstance(item, str)]
    names = {re.split(r"[^\w.-]", item)[0] for item in asked}
    for versions in ("newest", "oldest"):
        lines = (ROOT / "requirements" / f"{versions}.txt").read_text().splitlines()
        pinned = {line.split("==")[0] for line in lines if not line.startswith("#")}
        assert pinned <= names, f"requirements/{versions}.txt pins {sorted(pinned - names)}"


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action), action


def test_the_release_asks_for_no_more_than_it_needs() -> None:
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert release["permissions"] == {"contents": "read"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in release["jobs"]["build"]


def test_pre_commit_runs_what_the_tests_run() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = (ROOT / "scripts/test").read_text()
    for tool in ("ruff check", "ruff format", "mypy"):
        assert any(hook["entry"].startswith(f".venv/bin/{tool}") for hook in hooks), tool
        assert f"-m {tool}" in checks
