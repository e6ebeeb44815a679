"""trackio's alerts, where a run reports to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def alert(report_to: Sequence[str], title: str, text: str) -> None:
    """Raise an alert on trackio's current run (0.43); nothing where the training does not report to it."""
    module = sys.modules.get("trackio")
    if "trackio" in report_to and module is not None and hasattr(module, "alert"):
        module.alert(title=title, text=text)
