"""Run a script with `tests.distributed.fsdp_on_cpu`'s shim: `-m tests.scripts.fsdp_on_cpu SCRIPT [its arguments]`."""

import runpy
import sys
from pathlib import Path

from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu

if __name__ == "__main__":
    allow_fsdp_on_cpu()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
