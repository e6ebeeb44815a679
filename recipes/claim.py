"""Check one claim of a paper, or several with the same options.

    python recipes/claim.py gradient_ratio
    python recipes/claim.py gradient_ratio --help
    python recipes/claim.py gradient_ratio,lr_decay --rows --minutes 10
    python recipes/claim.py --list
    python recipes/claim.py --list allocation
    python recipes/claim.py gradient_ratio --full --device cuda --data_dir cifar-100-python

Each claim is a module of `recipes/papers/PAPER` that says what is run, what the paper expects and by which rule the
outcome is judged. PAPER is one of
"""

import sys

from _common.entry_point import run_recipe
from papers import PAPERS, claim, paper


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__, *map(_described, PAPERS), sep="\n")
    elif name == "--list":
        _list(words)
    else:
        for one in [claim(one) for one in name.split(",")]:
            one.main(words)


def _described(name: str) -> str:
    one = paper(name)
    arxiv = f" (arXiv {one.ARXIV})" if one.ARXIV else ""
    return f"    {name:<12}{one.TITLE}{arxiv}"


def _list(papers: list[str]) -> None:
    for name in papers or PAPERS:
        for one in paper(name).CLAIMS:
            print(name, one)


if __name__ == "__main__":
    run_recipe(main)
