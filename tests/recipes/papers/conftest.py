"""Claims are scripts: they, and what they share, are importable once their directories are on the path."""

import sys
from pathlib import Path
from typing import Any

import pytest

PAPERS = Path(__file__).resolve().parents[3] / "recipes" / "papers"
sys.path.insert(0, str(PAPERS / "allocation"))

import _recipes_on_path  # noqa: E402, F401
from _claims.options import Options  # noqa: E402


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(full=False, device="cpu", seeds=3, jobs=1, output_dir=tmp_path, claim="claim")


def rows_of(configurations: list[dict[str, Any]], result: Any) -> list[dict[str, Any]]:
    """Rows as they would be if ``result`` of a configuration were what came out."""
    return [{"configuration": configuration, "result": result(configuration)} for configuration in configurations]
