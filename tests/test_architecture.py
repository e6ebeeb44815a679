"""The package is read as text: who imports whom, and who knows which library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_pdyn"

# A room imports only from floors below its own; the modules of one room may import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("common",),
    ("tensors", "policy"),
    ("grouping", "run_dir", "optim"),
    ("integrations", "theory"),
    ("measure",),
    ("callbacks", "report"),
    ("frontend",),
    ("sweep",),
)
DOORS = ("__init__", "__main__", "cli", "_version")
KNOWS_TRANSFORMERS = {"integrations", "frontend", "callbacks"}
KNOWS_PEFT = {"cli"}
KNOWS_ACCELERATE = {"integrations"}


def unit(path: Path) -> str:
    """The room or door, directly below hf_pdyn, that a file belongs to."""
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
    floor_of = {name: i for i, names in enumerate((*FLOORS, DOORS)) for name in names}
    own = unit(path)
    assert own in floor_of, f"{own} has no floor: add it to FLOORS and to CONTRIBUTING.md"
    for name in imports(path):
        if not name.startswith("hf_pdyn.") or name == "hf_pdyn._version":
            continue
        other = name.split(".")[1]
        if other != own:
            assert floor_of[other] < floor_of[own], f"{path.name} (floor {floor_of[own]}) imports {name}"


def test_the_root_holds_rooms_and_doors_only() -> None:
    rooms = {name for names in FLOORS for name in names}
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")}
    assert found == rooms | set(DOORS) | {"py.typed"}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("transformers", KNOWS_TRANSFORMERS), ("peft", KNOWS_PEFT), ("accelerate", KNOWS_ACCELERATE)],
)
def test_who_knows_a_library(library: str, allowed: set[str]) -> None:
    known = {unit(path) for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert known == allowed


def test_theory_is_for_what_measures() -> None:
    """Neither an update nor a decision waits for it; what is measured has one source of its formulas."""
    for path in FILES:
        knows_theory = any(name.startswith("hf_pdyn.theory") for name in imports(path))
        assert not knows_theory or unit(path) in ("theory", "measure"), path


@pytest.mark.parametrize("room", ["common", "policy", "run_dir"])
def test_rooms_that_know_no_torch(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "torch"}, path


def test_a_report_starts_without_torch() -> None:
    """Whatever `hf_pdyn/__init__.py` imports: an empty package stands in for it."""
    light = [
        path for room in ("common", "policy", "report", "run_dir") for path in sorted((PACKAGE / room).glob("*.py"))
    ]
    light += [PACKAGE / "measure" / "sample_loss.py"]
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in light]
    program = (
        "import importlib, sys, types\n"
        f"sys.modules['hf_pdyn'] = types.ModuleType('hf_pdyn'); sys.modules['hf_pdyn'].__path__ = [{str(PACKAGE)!r}]\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
