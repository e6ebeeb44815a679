"""The command line of a claim: what all of them have, and what a claim declares for itself."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _common.entry_point import RecipeError

from .processes import world_size

FEWEST_SEEDS = 3
"""A spread over fewer says nothing."""


@dataclass(frozen=True)
class Option:
    """An option of a claim's own: `--name` on the command line, `given["name"]` in the claim.

    type: makes its value of a word. quick, full: its value in a run of that size where it is not given. Without `quick`
    it goes with --full alone, without `full` a full run needs it.
    """

    name: str
    help: str
    type: Callable[[str], Any] = str
    quick: Any = None
    full: Any = None


DATA_DIR = Option("data_dir", "an unpacked cifar-100-python or cifar-10-batches-py")
IMAGE_FOLDER = Option("image_folder", "a directory of images in train/ and test/, a folder for each class")
MODEL = Option("model_name_or_path", "the pretrained backbone, hub name or directory", full="microsoft/resnet-18")


@dataclass(frozen=True)
class Options:
    """How a claim is checked.

    full: the large setting instead of the quick one. seeds: how many. jobs: processes at a time. directory: of this
    claim's verdict and figure. own: the values of the claim's own options. together: trainings at once in each process,
    where a claim can. minutes: after the start of the program, when no run begins any more. rows_alone: neither verdict
    nor figure.
    """

    full: bool
    device: str
    seeds: int
    jobs: int
    output_dir: Path
    claim: str
    own: tuple[tuple[str, Any], ...] = ()
    together: int = 1
    minutes: float | None = None
    rows_alone: bool = False

    def __getitem__(self, option: str) -> Any:
        return dict(self.own)[option]

    @property
    def directory(self) -> Path:
        return self.output_dir / self.claim

    @property
    def size(self) -> str:
        return "full" if self.full else "quick"


def parse(
    paper: str, claim: str, doc: str, own: Sequence[Option], words: Sequence[str], seeds: int = FEWEST_SEEDS
) -> Options:
    """The options in the words of a command line.

    claim: names the folder of its outputs, in that of the paper. doc: its module's text. own: what it declares. seeds:
    how many, where none are asked for.
    """
    parser = argparse.ArgumentParser(
        f"claim.py {claim}",
        description=doc,
        epilog=f"claim.py {claim} --rule prints the rule of the verdict, and keeps it where its commit dates it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="offline, on two cores: minutes, or an hour for a hundred networks (the default)",
    )
    size.add_argument(
        "--full", action="store_true", help="the large setting, for a GPU (see above what of it is the paper's)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument("--seeds", type=int, default=seeds, help="repetitions (default: %(default)s)")
    parser.add_argument("--jobs", type=int, help="trainings at a time (default: one a core on a CPU, else one)")
    parser.add_argument(
        "--together", type=int, help="trainings at once in each job, where a claim can (default: 4, on a GPU 128)"
    )
    parser.add_argument("--minutes", type=float, help="begin no run that would end later after the start")
    parser.add_argument("--rows", action="store_true", help="do the runs that are missing, and neither judge nor draw")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/papers", paper),
        help="where rows.jsonl, verdict.json and figures go, a folder each claim (default: %(default)s)",
    )
    for option in own:
        parser.add_argument(f"--{option.name}", type=option.type, help=_help(option))
    given = parser.parse_args(words)
    _check(given, own)
    alone = given.device == "cpu" and not given.full and world_size() == 1
    jobs = given.jobs or ((os.cpu_count() or 1) if alone else 1)
    values = tuple((option.name, _value(option, given)) for option in own)
    together = given.together or (4 if given.device == "cpu" else 128)
    return Options(
        given.full,
        given.device,
        given.seeds,
        jobs,
        given.output_dir,
        claim,
        values,
        together,
        given.minutes,
        given.rows,
    )


def _help(option: Option) -> str:
    defaults = [
        f"{size} {value}" for size, value in (("quick", option.quick), ("full", option.full)) if value is not None
    ]
    default = f" (default: {', '.join(defaults)})" if defaults else ""
    return f"{'with --full: ' if option.quick is None else ''}{option.help}{default}"


def _value(option: Option, given: argparse.Namespace) -> Any:
    value = getattr(given, option.name)
    return value if value is not None else option.full if given.full else option.quick


def _check(given: argparse.Namespace, own: Sequence[Option]) -> None:
    if given.seeds < FEWEST_SEEDS:
        raise RecipeError(f"--seeds must be at least {FEWEST_SEEDS}, for a spread, got {given.seeds}; give more")
    for name in ("together", "minutes"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise RecipeError(f"--{name} must be above 0, got {value}; leave it out for the default")
    if given.jobs is not None and given.jobs < 1:
        raise RecipeError(f"--jobs must be at least 1, got {given.jobs}; leave it out for one a core")
    if world_size() > 1 and (given.jobs or 1) > 1:
        raise RecipeError(f"--jobs must be 1 where processes train together, got {given.jobs}; leave it out")
    for option in own:
        value = getattr(given, option.name)
        if given.full and _value(option, given) is None:
            raise RecipeError(f"--full needs --{option.name}, {option.help}, got none; give it, or --quick")
        if value is not None and not given.full and option.quick is None:
            raise RecipeError(f"--{option.name} goes with --full, got {value!r} alone; add --full")
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
