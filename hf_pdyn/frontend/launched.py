"""How the launcher's options reach Trainers: through the environment, in its own process and in those below it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_pdyn.integrations.on_import import when_imported

METRICS_FILE = "HF_PDYN_METRICS_FILE"
"""An environment variable: where a Trainer below the launcher keeps the last values of its metrics, for a sweep."""
_VARIABLE = "HF_PDYN_LAUNCH"
_CHILD = Path(__file__).parent / "child"
_SITE = ("site-packages", "dist-packages")


@contextmanager
def handed_over(options: Mapping[str, Any], note: Path) -> Iterator[None]:
    """Within: every Trainer that is built in this process, or in a Python process that it starts, gets the options.

    options: PdynArguments' fields. note: a file that is made when they have reached a Trainer.
    """
    root = str(_CHILD.parents[2])
    # Run from a checkout, the package is not where a child looks for packages.
    paths = [str(_CHILD), os.environ.get("PYTHONPATH"), None if root.endswith(_SITE) else root]
    ours = {
        _VARIABLE: json.dumps({"options": dict(options), "note": str(note)}),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        take_over()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def take_over() -> None:
    """Apply what a launcher above has handed over, if one has, when this process comes to import the Trainer."""
    if _VARIABLE in os.environ:
        when_imported("transformers.trainer", _apply)


def _apply() -> None:
    if _VARIABLE in os.environ:
        from hf_pdyn.frontend.launched_trainers import prepare

        prepare(**json.loads(os.environ[_VARIABLE]))
