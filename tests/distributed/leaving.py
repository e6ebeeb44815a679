"""How a worker ends."""

import os
import sys
from typing import NoReturn


def leave() -> NoReturn:
    """End the process here: gloo now and then aborts one that tears itself down, with any optimizer (torch 2.13)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
