"""Judging made-up rows of a claim."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

from papers._claims.options import Options
from papers._claims.verdict import Verdict
from tests.recipes.papers.conftest import rows_of

Configuration = dict[str, Any]
Result = Callable[[Configuration], dict[str, Any]]

UNEVEN = (-2.0, 3.0, 0.5)
"""By seed: of either sign, so that nothing can be said of the mean."""


def options_of(module: ModuleType, options: Options) -> Options:
    own = tuple((option.name, option.quick) for option in module.CLAIM.options)
    return dataclasses.replace(options, claim=module.CLAIM.name, own=own)


def judged(module: ModuleType, options: Options, result: Result, *, draw: bool = False) -> Verdict:
    """The verdict on rows with that result of every configuration."""
    given = options_of(module, options)
    rows = rows_of(list(module.CLAIM.configurations(given)), result)
    if draw:
        module.CLAIM.draw(rows, given)
        assert all(path.stat().st_size > 10_000 for path in given.directory.glob("*.png"))
        assert (given.directory / "figure.png").exists()
    found = module.CLAIM.judged(rows, given)
    assert found.claim and found.paper and found.rule and found.measured and found.seeds == 3
    found.write(given.directory)
    return found
