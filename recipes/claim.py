"""Check one claim of a paper.

    python recipes/claim.py gradient_ratio
    python recipes/claim.py gradient_ratio --help
    python recipes/claim.py --list
    accelerate launch recipes/claim.py gradient_ratio --full --device cuda --data_dir cifar-100-python

Each claim is a module of `recipes/papers/allocation` that says what is run, what the paper expects and by which rule
the outcome is judged.
"""

import importlib
import sys

from _common.entry_point import run_recipe
from hf_pdyn.common.errors import check_choice
from papers.allocation import CLAIMS


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
    elif name == "--list":
        print(*CLAIMS, sep="\n")
    else:
        check_choice("the claim", name, CLAIMS)
        importlib.import_module(f"papers.allocation.{name}").CLAIM.main(words)


if __name__ == "__main__":
    run_recipe(main)
