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
_LAUNCHER_BY_ITSELF = (
    "test_options_that_reach_no_trainer_are_one_line_and_status_1",
    "test_the_script_s_exit_status_and_errors_pass_through",
    "test_options_of_several_values_may_stand_right_before_the_script",
    "test_options_reach_the_processes_that_a_script_starts",
    "test_a_module_can_be_run_too",
    "test_a_child_process_runs_the_sitecustomize_that_ours_hides",
)
MARKS = {
    "slow": (
        *("benchmarks", "recipes", "scripts", "test_collection.py", "callbacks/test_killed.py"),
        "docs/test_code_blocks.py",
        *("callbacks/test_mixed_precision.py", "callbacks/test_resume.py", "callbacks/test_trainer_features.py"),
        *("frontend/test_launcher.py", "optim/fused/test_gpu_compiles.py", "optim/fused/test_gpu_interpreted.py"),
        *("callbacks/test_allocation.py", "callbacks/test_target.py", "sweep/test_command.py"),
        "integrations/test_upstream_patch.py",
    ),
    "newest_only": (
        *("benchmarks", "gpu", "optim/fused", "policy", "recipes/papers", "scripts", "sweep", "tensors"),
        "theory",
        *("optim/test_padam.py", "optim/test_padam_properties.py", "common/test_extras.py"),
        *("report/test_charts.py", "report/test_damage.py", "report/test_thinning.py"),
        *("test_architecture.py", "test_collection.py", "test_docstrings.py", "test_gpu_check.py", "test_packaging.py"),
        "docs",
        "integrations/test_upstream_patch.py",
        *(
            f"distributed/test_{name}.py"
            for name in ("failing", "killed_launches", "samples", "sharded", "spectral", "formats")
        ),
        *(f"distributed/test_{name}.py" for name in ("unreadable", "variants", "zero_redundancy")),
        *("recipes/test_recipe_image_data.py", "recipes/test_recipe_launches.py", "recipes/test_recipe_text_data.py"),
        *(f"frontend/test_launcher.py::{name}" for name in _LAUNCHER_BY_ITSELF),
    ),
}
"""Which directories, files and tests have a mark."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parts = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
        test = f"{parts}::{getattr(item, 'originalname', item.name)}"
        for mark, places in MARKS.items():
            if any(place in (parts, test) or parts.startswith(f"{place}/") for place in places):
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
