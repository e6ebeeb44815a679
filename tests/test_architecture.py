"""The package is read as text: who imports whom, and who knows which library."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_pdyn"

# A module imports only from lower layers; inside a package of one layer its parts may import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("suggest", "resilience", "kernels", "control", "checkpoints", "files", "spectra", "randomness"),
    ("records", "schedules", "grouping", "sharding", "clipping", "hyperparameters", "cross_entropy", "theory"),
    ("updates", "sample_loss", "run_info"),
    ("windows", "plain", "fused", "report"),
    ("paths",),
    ("optimizer",),
    ("optim_args", "integrations"),
    ("registration", "statistics", "products"),
    ("callbacks",),
    ("arguments",),
    ("launcher",),
    ("cli",),
    ("__main__", "__init__"),
)
KNOWS_TRANSFORMERS = {"integrations", "registration", "callbacks", "arguments", "launcher"}
KNOWS_PEFT = {"cli"}
KNOWS_ACCELERATE = {"integrations"}


def unit(path: Path) -> str:
    """The module or subpackage, directly below hf_pdyn, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or ""} if node.module != "hf_pdyn" else {f"hf_pdyn.{a.name}" for a in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    layer_of = {name: i for i, names in enumerate(LAYERS) for name in names}
    own = unit(path)
    assert own in layer_of, f"{own} has no layer: add it to LAYERS and to CONTRIBUTING.md"
    for name in imports(path):
        if not name.startswith("hf_pdyn."):
            continue
        other = name.split(".")[1]
        if other not in layer_of:
            assert other == "__version__"
        elif other != own:
            assert layer_of[other] < layer_of[own], f"{path.name} (layer {layer_of[own]}) imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("transformers", KNOWS_TRANSFORMERS), ("peft", KNOWS_PEFT), ("accelerate", KNOWS_ACCELERATE)],
)
def test_who_knows_a_library(library: str, allowed: set[str]) -> None:
    known = {unit(path) for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert known == allowed


def test_nothing_that_trains_needs_theory() -> None:
    for path in FILES:
        assert unit(path) == "theory" or not any(name.startswith("hf_pdyn.theory") for name in imports(path)), path


def test_the_algorithm_knows_no_torch() -> None:
    for module in ("control", "schedules", "suggest", "resilience", "checkpoints", "records", "run_info"):
        assert not {name for name in imports(PACKAGE / f"{module}.py") if name.split(".")[0] == "torch"}
