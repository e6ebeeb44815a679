"""Importing it makes what recipes share (`_common`, `_claims`) importable, from wherever a claim is started."""

import sys
from pathlib import Path

_PAPERS = Path(__file__).resolve().parents[1]
sys.path[:0] = [folder for folder in (str(_PAPERS), str(_PAPERS.parent)) if folder not in sys.path]
