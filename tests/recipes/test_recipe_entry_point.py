"""How a recipe ends: its exit code, and what is left to the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.utils.distributed import get_free_port

from tests.distributed.launching import ENVIRONMENT, ROOT

SCRIPT = """
import atexit, sys
sys.path.insert(0, {recipes!r})
import torch.distributed as dist
from torch import nn
from _common.entry_point import RecipeError, run_recipe

class TakenDown:
    def __del__(self):
        print("taken down")

def main():
    if {together}:
        dist.init_process_group("gloo")
        nn.parallel.DistributedDataParallel(nn.Linear(2, 2))  # keeps the group beyond its destruction
    print("at work", end="")
    if {refuse}:
        raise RecipeError("--option must be good,\\n got bad; give a good one")

kept = TakenDown()
atexit.register(print, "at exit")
run_recipe(main)
"""


@pytest.mark.parametrize("refuse", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_a_recipe_ends_with_its_exit_code(tmp_path: Path, *, together: bool, refuse: bool) -> None:
    """Of several processes none takes its interpreter down, under threads of gloo that may still need it."""
    script = tmp_path / "recipe.py"
    script.write_text(SCRIPT.format(recipes=str(ROOT / "recipes"), together=together, refuse=refuse))
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port()), "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | ENVIRONMENT | launch,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (2 if refuse else 0), done.stderr
    assert done.stdout.splitlines() == ["at workat exit", *([] if together else ["taken down"])]
    told = [line for line in done.stderr.splitlines() if line.startswith("recipe.py")]
    assert told == (["recipe.py: error: --option must be good, got bad; give a good one"] if refuse else [])
