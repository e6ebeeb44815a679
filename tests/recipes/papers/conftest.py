from pathlib import Path
from typing import Any

import pytest

from papers._claims.options import Options

PAPERS = Path(__file__).resolve().parents[3] / "recipes" / "papers"


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(full=False, device="cpu", seeds=3, jobs=1, output_dir=tmp_path, claim="claim")


def rows_of(configurations: list[dict[str, Any]], result: Any) -> list[dict[str, Any]]:
    """Rows as they would be if ``result`` of a configuration were what came out."""
    return [{"configuration": configuration, "result": result(configuration)} for configuration in configurations]
