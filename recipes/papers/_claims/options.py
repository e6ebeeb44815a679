"""The command line of a claim, the same for all of them."""

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from _common.entry_point import RecipeError

from .processes import world_size

FEWEST_SEEDS = 3
"""A spread over fewer says nothing."""


FULL_OPTIONS = {
    "data_dir": "an unpacked cifar-100-python or cifar-10-batches-py",
    "image_folder": "a directory of images in train/ and test/, a folder for each class",
    "model_name_or_path": "the pretrained backbone, hub name or directory (default: microsoft/resnet-18)",
}
_DEFAULTS = {"model_name_or_path": "microsoft/resnet-18"}


@dataclass(frozen=True)
class Options:
    """How a claim is checked.

    full: the paper's own setting instead of the quick one. seeds: how many. jobs: trainings at a time. directory: of
    this claim's verdict and figure. The last three are of full runs.
    """

    full: bool
    device: str
    seeds: int
    jobs: int
    output_dir: Path
    claim: str
    data_dir: str | None = None
    image_folder: str | None = None
    model_name_or_path: str | None = None

    @property
    def directory(self) -> Path:
        return self.output_dir / self.claim

    @property
    def size(self) -> str:
        return "full" if self.full else "quick"


def parse(claim: str, doc: str, full_needs: Collection[str], words: Sequence[str]) -> Options:
    """The options in the words of a command line.

    claim: names the folder of its outputs. doc: its module's text. full_needs: those of FULL_OPTIONS that a full run
    takes.
    """
    parser = argparse.ArgumentParser(
        f"claim.py {claim}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes on two cores, no network (the default)")
    size.add_argument("--full", action="store_true", help="the paper's own setting, for a GPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument("--seeds", type=int, default=FEWEST_SEEDS, help="repetitions (default: %(default)s)")
    parser.add_argument("--jobs", type=int, help="trainings at a time (default: one a core on a CPU, else one)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/papers/allocation"),
        help="where rows.jsonl, verdict.json and figures go, a folder each claim (default: %(default)s)",
    )
    for name in full_needs:
        parser.add_argument(f"--{name}", help=f"with --full: {FULL_OPTIONS[name]}")
    given = parser.parse_args(words)
    _check(given, full_needs)
    alone = given.device == "cpu" and not given.full and world_size() == 1
    jobs = given.jobs or ((os.cpu_count() or 1) if alone else 1)
    of_full = {name: getattr(given, name) or _DEFAULTS.get(name) for name in full_needs if given.full}
    return Options(given.full, given.device, given.seeds, jobs, given.output_dir, claim, **of_full)


def _check(given: argparse.Namespace, full_needs: Collection[str]) -> None:
    if given.seeds < FEWEST_SEEDS:
        raise RecipeError(f"--seeds must be at least {FEWEST_SEEDS}, for a spread, got {given.seeds}; give more")
    if given.jobs is not None and given.jobs < 1:
        raise RecipeError(f"--jobs must be at least 1, got {given.jobs}; leave it out for one a core")
    if world_size() > 1 and (given.jobs or 1) > 1:
        raise RecipeError(f"--jobs must be 1 where processes train together, got {given.jobs}; leave it out")
    for name in full_needs:
        value = getattr(given, name)
        if given.full and value is None and name not in _DEFAULTS:
            raise RecipeError(f"--full needs --{name}, {FULL_OPTIONS[name]}, got none; give it, or --quick")
        if value is not None and not given.full:
            raise RecipeError(f"--{name} goes with --full, got {value!r} alone; add --full")
    _check_device(given.device)


def _check_device(device: str) -> None:
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device, False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise RecipeError(f"--device must be one of {usable} on this machine, got {device!r}; take one of them")
