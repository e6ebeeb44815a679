"""Every Python and shell block of README and docs runs, or says why not.

The blocks of a page run in order, in one namespace. What a block needs and does not define is given by name
(`given.py`) in a comment before it, `<!-- given: model, data -->`. One that no test runs has `<!-- not run: WHY -->`.
A page whose blocks are parts of a file that another test runs names that test, `<!-- all code is run by: TEST -->`. The
cells of docs/notebooks run when the site is built.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_pdyn import GroupRules
from tests.docs.given import MAKERS, OPTIONS, lay_out
from tests.docs.markdown import PAGES, ROOT, Block, blocks

PYTHON, SHELL, YAML = ("python", "py"), ("sh", "bash", "console", "shell"), ("yaml", "yml")
ELSEWHERE = re.compile(r"^<!-- all code is run by: (\S+) -->$", re.MULTILINE)
CODE = {path: [block for block in blocks(path) if block.language in (*PYTHON, *SHELL, *YAML)] for path in PAGES}


OPTIONAL = ("axolotl", "swift", "trl")
"""Libraries that some pages are about and the tests do not install: what needs them is skipped, and pytest says so."""


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    namespace |= {name: MAKERS[name]() for name in block.given if name not in namespace}
    # At its own line, so that an error shows the page.
    try:
        exec(compile("\n" * block.line + block.text, str(block.path), "exec"), namespace)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{block.place} needs {error.name}")


def run_shell(block: Block, namespace: dict[str, Any]) -> None:
    for name in block.given:
        namespace.setdefault(name, MAKERS[name]())
    folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    tool = block.text.split()[0]
    if tool in OPTIONAL and shutil.which(tool, path=environment["PATH"]) is None:
        pytest.skip(f"{block.place} needs {tool}")
    command = re.sub(r"(?<= )\.\.\.(?=\s)", OPTIONS, block.text)
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, f"{block.place}\n{found.stdout[-1500:]}\n{found.stderr[-3000:]}"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", [page for page in CODE if CODE[page]], ids=lambda path: str(path.relative_to(ROOT)))
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ELSEWHERE.search(page.read_text())
    if elsewhere is not None:
        assert page.name in (ROOT / elsewhere[1]).read_text(), f"{elsewhere[1]} does not read {page.name}"
        return
    if all(block.not_run for block in CODE[page]):
        pytest.skip("no block of it runs")
    lay_out(tmp_path, ROOT)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in CODE[page]:
        if block.not_run is not None:
            continue
        if block.language in YAML:
            content = yaml.safe_load(block.text)
            if isinstance(content, list):  # a file of group rules, the only list among our files
                GroupRules(content)
        else:
            (run_python if block.language in PYTHON else run_shell)(block, namespace)


@pytest.mark.parametrize(
    "block", [block for page in CODE.values() for block in page if block.not_run], ids=lambda block: block.place
)
def test_a_block_that_no_test_runs_names_files_that_are_there(block: Block) -> None:
    assert len(block.not_run or "") > 10, "say why"
    if block.language in PYTHON:
        compile(block.text, str(block.path), "exec")
    for path in re.findall(r"(?<![\w/.])(?:recipes|scripts|benchmarks|docs|requirements)/[\w./-]+\w", block.text):
        assert (ROOT / path).exists(), path
