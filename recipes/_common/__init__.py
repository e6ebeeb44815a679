"""What the recipes share: options, data, the offline checkpoint, LoRA, the run and its summary."""

import sys
from pathlib import Path

from hf_pdyn.common.extras import missing_from

if _missing := missing_from("recipes"):
    # Before any import of it fails with a traceback.
    print(f"{Path(sys.argv[0]).name}: error: {_missing}", file=sys.stderr)
    sys.exit(2)
