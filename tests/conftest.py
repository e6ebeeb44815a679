import os
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels then run on the CPU. Their decorator reads this when it is applied, so it is set before any test
    # module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The models are tiny: more threads only wait for each other.
torch.set_num_threads(1)

# Property tests try the same examples in every run, and keep no database of past failures in the working directory.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


TESTS = Path(__file__).parent
MARKS = {
    "slow": (
        *("benchmarks", "recipes", "scripts", "test_collection.py", "callbacks/test_killed.py"),
        *("callbacks/test_mixed_precision.py", "callbacks/test_resume.py", "callbacks/test_trainer_features.py"),
        *("frontend/test_launcher.py", "optim/fused/test_gpu_compiles.py", "optim/fused/test_gpu_interpreted.py"),
    ),
    "unversioned": (
        *("gpu", "optim/fused", "policy", "tensors", "theory", "test_architecture.py", "test_collection.py"),
        *("optim/test_padam.py", "optim/test_padam_properties.py", "report/test_charts.py", "report/test_thinning.py"),
    ),
}
"""Which directories and files of tests have a mark as a whole."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parts = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
        for mark, places in MARKS.items():
            if any(parts == place or parts.startswith(f"{place}/") for place in places):
                item.add_marker(mark)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: their content would make unreadable ids, and may be dated (gzip)."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def own_torch_extensions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """DeepSpeed builds an extension; in the user's cache, an earlier run that was killed may have left its lock."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(shared / "torch_extensions"))
