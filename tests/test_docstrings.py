"""Examples of docstrings run, every public name has one, and the site's reference has every public name."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

import hf_pdyn
from tests.training import arguments, gpt2, token_blocks

ROOT = Path(__file__).parents[1]
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
PUBLIC = [name for name in hf_pdyn.__all__ if name != "__version__"]


def examples() -> list[doctest.DocTest]:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "hf_pdyn").rglob("*.py"))
        if ">>> " in path.read_text()
    ]
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in modules for test in finder.find(import_module(name), name) if test.examples]
    return sorted(found, key=lambda test: test.name)


@pytest.fixture(scope="module", autouse=True)
def _accelerate_has_begun(tmp_path_factory: pytest.TempPathFactory) -> None:
    """DeepSpeed, where it is installed, prints a line when the first Trainer asks for it."""
    Trainer(gpt2(), arguments(tmp_path_factory.mktemp("first")))


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_says_what_happens(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Trainer's model, args and data at hand, and the public names."""
    monkeypatch.setattr("transformers.trainer.PrinterCallback", TrainerCallback)  # its lines are no result
    args = arguments(tmp_path, max_steps=8, logging_steps=2, weight_decay=0.1)
    data = token_blocks(16)
    given = {"Trainer": Trainer, "torch": torch, "model": gpt2(), "args": args, "data": data}
    given["dataloader"] = DataLoader(data, batch_size=8)
    example.globs |= {**{name: getattr(hf_pdyn, name) for name in PUBLIC}, **given}
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=output.append).failed == 0, "".join(output)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name: str) -> None:
    value = getattr(hf_pdyn, name)
    texts = [inspect.getdoc(value) or ""]
    if inspect.ismodule(value):
        texts = [inspect.getdoc(function) or "" for _, function in inspect.getmembers(value, inspect.isfunction)]
    assert any(">>> " in text for text in texts)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_a_public_name(name: str) -> None:
    assert re.search(rf"^\.\. auto(class|function|module):: hf_pdyn\.{name}$", REFERENCE, re.MULTILINE)


def test_the_reference_has_nothing_that_is_not_public() -> None:
    assert set(re.findall(r"auto(?:class|function|module):: hf_pdyn\.(\w+)$", REFERENCE, re.MULTILINE)) == set(PUBLIC)
