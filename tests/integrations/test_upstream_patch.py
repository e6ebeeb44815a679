"""docs/upstream/register_optimizer.patch applies to transformers 5.23 and does what its README says."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

PATCH = Path(__file__).parents[2] / "docs" / "upstream" / "register_optimizer.patch"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not importlib.metadata.version("transformers").startswith("5.23."), reason="the patch is of transformers 5.23"
)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `transformers` is the installed one with the patch: links, and copies of what is changed."""
    folder = tmp_path_factory.mktemp("patched")
    own, installed = folder / "transformers", Path(transformers.__file__).parent
    own.mkdir()
    changed = set(re.findall(r"^\+\+\+ b/src/transformers/(.*)$", PATCH.read_text(), flags=re.MULTILINE))
    for entry in installed.iterdir():
        if entry.name in changed:
            shutil.copy(entry, own / entry.name)
        elif entry.name != "__pycache__":
            (own / entry.name).symlink_to(entry)
    git = ["git", "apply", "-p2", "--verbose", str(PATCH)]
    subprocess.run(git, cwd=folder, check=True, capture_output=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": "/"})
    assert {path.name for path in own.iterdir() if not path.is_symlink()} == changed
    return folder


HANDLER = """
import torch

def handler(context):
    assert context.optim_args == {"gain": "2"}
    return torch.optim.SGD, {**context.optimizer_kwargs, "momentum": 0.5}
"""

COMMON = """
import json, sys
import transformers
from transformers import HfArgumentParser, Trainer, TrainingArguments
assert transformers.__file__.startswith(sys.argv[1]), transformers.__file__
from tests.training import gpt2, token_blocks

def trained(arguments):
    run = Trainer(gpt2(), arguments, train_dataset=token_blocks(8))
    run.train()
    optimizer = run.optimizer.optimizer
    return type(optimizer).__name__, optimizer.defaults.get("momentum"), run.state.global_step

def words(optim, *more):
    return ["--output_dir", sys.argv[2], "--optim", optim, "--max_steps", "1", "--report_to", "none", "--use_cpu",
            "--save_strategy", "no", *more]

def parsed(optim, *more):
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words(optim, *more))[0]

def error(act):
    try:
        act()
    except ValueError as problem:
        return str(problem)
"""


def run(patched: Path, out: Path, program: str, *paths: Path) -> Any:
    folders = [str(patched), *map(str, paths), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", COMMON + program, str(patched), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_registered_optimizer(patched: Path, tmp_path: Path) -> None:
    program = f"""
{HANDLER}
from transformers import register_optimizer
before = error(lambda: parsed("toy"))
register_optimizer("toy", handler)
register_optimizer("toy", handler)
arguments = parsed("toy", "--optim_args", "gain=2")
print(json.dumps({{
    "before": before,
    "trained": trained(arguments),
    "kept": [json.loads(arguments.to_json_string())["optim"], arguments.set_optimizer("toy").optim],
    "stock": trained(parsed("adamw_torch")),
    "unknown": error(lambda: TrainingArguments(sys.argv[2], optim="toyy")),
    "taken": error(lambda: register_optimizer("toy", print)),
    "built in": error(lambda: register_optimizer("sgd", handler)),
    "no handler": error(lambda: register_optimizer("other", None)),
}}))
"""
    found = run(patched, tmp_path, program)
    assert "toy is not a valid OptimizerNames" in found["before"]
    assert found["trained"] == ["SGD", 0.5, 1] and found["kept"] == ["toy", "toy"]
    assert found["stock"][0] == "AdamW"
    assert "toyy is not a valid optimizer" in found["unknown"] and "'toy'" in found["unknown"]
    assert "already registered" in found["taken"] and "optimizer of Transformers" in found["built in"]
    assert "callable handler" in found["no handler"]


def package(folder: Path, name: str) -> Path:
    """A package that offers an optimizer `toy`, as an installer lays it out."""
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[transformers.optimizers]\ntoy = {name}:handler\n")
    (folder / f"{name}.py").write_text(f"print('{name} is imported')\n{HANDLER}")
    return folder


def test_an_entry_point_needs_no_import(patched: Path, tmp_path: Path) -> None:
    one, other = package(tmp_path / "one", "first_toy"), package(tmp_path / "other", "second_toy")
    program = """
stock = parsed("adamw_torch")
imported = "first_toy" in sys.modules
print(json.dumps([imported, trained(parsed("toy", "--optim_args", "gain=2"))]))
"""
    assert run(patched, tmp_path, program, one) == [False, ["SGD", 0.5, 1]]
    both = run(patched, tmp_path, 'print(json.dumps(error(lambda: parsed("toy"))))', one, other)
    assert "Several installed packages" in both and "first_toy:handler" in both and "second_toy:handler" in both


def test_hf_pdyn_works_as_before(patched: Path, tmp_path: Path) -> None:
    program = 'import hf_pdyn\nprint(json.dumps(trained(parsed("padam", "--optim_args", "p=0.4"))))'
    assert run(patched, tmp_path, program)[0] == "TrainerPadam"


def test_our_handler_is_one_for_an_entry_point(patched: Path, tmp_path: Path) -> None:
    """The README's line is enough for `--optim padam`, with nothing imported."""
    described = tmp_path / "offer" / "offer-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: offer\nVersion: 1.0\n")
    line = re.search(r"^ *padam = \"(.*)\"$", (PATCH.parent / "README.md").read_text(), flags=re.MULTILINE)
    assert line is not None
    (described / "entry_points.txt").write_text(f"[transformers.optimizers]\npadam_of_package = {line[1]}\n")
    program = 'print(json.dumps(trained(parsed("padam_of_package", "--optim_args", "p=0.4"))))'
    assert run(patched, tmp_path, program, tmp_path / "offer")[0] == "TrainerPadam"
