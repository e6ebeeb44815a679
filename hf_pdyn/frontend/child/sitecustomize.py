"""Runs at the start of every Python process below a launched script: the launcher puts this folder on PYTHONPATH.

Python imports `sitecustomize` by itself, so the launcher's options reach processes whose code never heard of hf_pdyn.
"""

import contextlib
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def run_the_hidden_one() -> None:
    """The sitecustomize that this one hides, if the system has one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["sitecustomize"])


run_the_hidden_one()
with contextlib.suppress(Exception):  # another Python, without it: the launcher says so if it reaches no Trainer
    import hf_pdyn  # noqa: F401
