"""`hf-pdyn sweep [options] script.py ...`: is it p, or only the learning rate?"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.numbers import parse_number
from hf_pdyn.policy.allocation_curve import lr_factor, total
from hf_pdyn.report.allocation_curves import AllocationCurves
from hf_pdyn.report.reading import read_runs
from hf_pdyn.sweep.plan import TUNING_SEED, Plan, best, configuration, greater_is_better, name, option
from hf_pdyn.sweep.rows import Configuration, Row, Rows
from hf_pdyn.sweep.runs import FailedRunError, Script, run_all
from hf_pdyn.sweep.verdict import FEWEST_SEEDS, Arm, arms, as_json, footnote, sentences

_DEFAULT_RATE = 5e-5
"""TrainingArguments'."""


def sweep(words: Sequence[str], prog: str = "hf-pdyn sweep") -> None:
    """Do all runs of a sweep that are not done, and say what p does; ends with status 2 for bad input, 1 for a run."""
    parser = _build_parser(prog)
    cut = next((i for i, word in enumerate(words) if word.endswith(".py") or word in ("-m", "--")), len(words))
    given = parser.parse_args(words[:cut])
    rest = list(words[cut:])
    if rest[:1] == ["--"]:
        rest = rest[1:]
    try:
        script = _script(rest, tuple(given.plugin.split()))
        rate = _rate_of(script) if given.learning_rate is None else given.learning_rate
        plan = Plan(tuple(sorted(set(given.p))), given.seeds, tuple(dict.fromkeys(given.match)), rate)
        if given.jobs < 1:
            raise ValueError(f"--jobs must be 1 at least, got {given.jobs}.")
        rows = Rows(given.output_dir / "rows.jsonl")
        with rows.locked():
            given_greater = given.greater_is_better
            greater = greater_is_better(given.metric) if given_greater is None else given_greater
            _sweep(plan, script, rows, given.metric, given.jobs, greater=greater)
    except FailedRunError as error:
        sys.exit(f"{prog}: {error}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        usage=f"{prog} [options] ([--] script.py | -m module) [its arguments]",
        description="Run a Trainer script with several p and seeds, and say what p does beyond a learning rate. The "
        "script must take TrainingArguments on its command line, and evaluate.",
        allow_abbrev=False,
    )
    parser.add_argument("--p", type=float, nargs="+", default=[0.25, 0.4, 0.5], help="exponents (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=FEWEST_SEEDS, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--match",
        nargs="+",
        default=["update_scale"],
        metavar="HOW",
        help="update_scale: all updates have Adam's size; learning_rate: each p has its own, tuned on a grid; none: "
        "raw. Several may be named: none beside another tells what only the learning rate did (default: update_scale)",
    )
    parser.add_argument("--metric", default="eval_loss", help="what is compared, its last value (default: %(default)s)")
    parser.add_argument(
        "--greater_is_better",
        action=argparse.BooleanOptionalAction,
        help="of the metric, by which learning rates are tuned (default: unless its name ends with loss)",
    )
    parser.add_argument("--learning_rate", type=float, help="default: the script's argument, else 5e-5")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/sweep"), help="of rows, runs and report (default: %(default)s)"
    )
    parser.add_argument("--plugin", default="", help='options of the launcher, in one word: "--telemetry layers"')
    return parser


def _script(rest: Sequence[str], plugin: tuple[str, ...]) -> Script:
    if rest[:1] == ["-m"] and len(rest) > 1:
        return Script(plugin, ("-m", rest[1]), tuple(rest[2:]))
    if not rest or not Path(rest[0]).is_file():
        raise ValueError(f"a script is required, got {rest[0] if rest else 'none'!r}: its path, or -m and a module.")
    return Script(plugin, (rest[0],), tuple(rest[1:]))


def _rate_of(script: Script) -> float:
    found = option(script.arguments, "--learning_rate")
    return _DEFAULT_RATE if found is None else parse_number(found)


def _sweep(plan: Plan, script: Script, rows: Rows, metric: str, jobs: int, *, greater: bool) -> None:
    tuned = _tuned(plan, script, rows, metric, jobs, greater=greater)
    found = run_all(plan.compared(tuned), script, rows, metric, jobs, "runs")
    compared = arms(plan, found, metric)
    with replacing(rows.path.parent / "sweep.json") as unfinished:
        unfinished.write_text(json.dumps(as_json(plan, compared, metric), indent=1) + "\n", encoding="utf-8")
    console = Console()
    console.print(_table(plan, compared, metric))
    for sentence in (*sentences(plan, compared, metric), footnote(plan)):
        console.print(sentence, highlight=False, markup=False)
    _write_report(rows.path.parent, found, console)


def _tuned(plan: Plan, script: Script, rows: Rows, metric: str, jobs: int, *, greater: bool) -> dict[float, float]:
    """The learning rate of each p, around the one at which its updates have Adam's size."""
    if "learning_rate" not in plan.match:
        return {}
    reference = configuration("learning_rate", plan.reference, plan.learning_rate, TUNING_SEED)
    run_all([reference], script, rows, metric, jobs, "the reference")
    factors = _factors(plan, rows.path.parent / name(reference))
    tried = plan.tuning(factors)
    found = run_all(tried, script, rows, metric, jobs, "learning rates")
    values: dict[float, dict[float, float | None]] = {p: {} for p in plan.exponents}
    for row in found:
        of: Configuration = row["configuration"]
        values[of["p"]][of["learning_rate"]] = row["result"][metric]
    return {p: best(by_rate, greater=greater) for p, by_rate in values.items()}


def _factors(plan: Plan, directory: Path) -> dict[float, float]:
    """The median of c(p) over the allocation curves of a run; nothing for a run without any."""
    curves = AllocationCurves.of(read_runs([directory])[0].allocation)
    wholes = [
        total([moments[pathway] for pathway in ("weight", "bias_like") if pathway in moments])
        for moments in map(curves.at, curves.steps)
        if {"weight", "bias_like"} & moments.keys()
    ]
    return {p: statistics.median(lr_factor(whole, p) for whole in wholes) for p in plan.exponents} if wholes else {}


def _table(plan: Plan, found: Sequence[Arm], metric: str) -> Table:
    table = Table("matched by", title=f"{metric}, {plan.seeds} seeds", title_justify="left")
    for heading in ("p", "learning rate", "mean", f"against p = {plan.reference:g}"):
        table.add_column(heading, justify="right")
    for arm in found:
        values = [value for value in arm.values if value is not None]
        mean = f"{statistics.fmean(values):.4g}" if len(values) == len(arm.values) else "diverged"
        table.add_row(arm.match, f"{arm.p:g}", f"{arm.learning_rate:g}", mean, str(arm))
    return table


def _write_report(directory: Path, found: Sequence[Row], console: Console) -> None:
    """The report over all compared runs, where its extra is installed."""
    try:
        from hf_pdyn.report.page import page

        text = page(read_runs([directory / row["result"]["directory"] for row in found]))
    except (ImportError, ValueError) as error:
        console.print(f"No report was written: {error}", highlight=False, markup=False)
        return
    with replacing(directory / "report.html") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    console.print(str(directory / "report.html"), highlight=False, markup=False, soft_wrap=True)
