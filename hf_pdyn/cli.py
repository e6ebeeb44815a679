"""The `hf-pdyn` command: `run` a script with the plugin, show `groups` before it, `report` on and `explain` runs."""

# torch and transformers take seconds to import: `groups` and `run` alone do it.

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_pdyn._version import __version__
from hf_pdyn.common.errors import check_choice
from hf_pdyn.common.extras import explained
from hf_pdyn.common.label_names import NAME
from hf_pdyn.policy.findings import KINDS
from hf_pdyn.report.conversion import images
from hf_pdyn.report.explain import explain, loss_difference
from hf_pdyn.report.files import write_all, write_whole
from hf_pdyn.report.page import page
from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.terminal import comparison

if TYPE_CHECKING:
    from torch import nn


_LORA_RANK = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; exits with status 2 and one line for bad input."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["run"]:
        from hf_pdyn.frontend.launcher import launch

        launch(arguments[1:], prog="hf-pdyn run")
        return
    if arguments[:1] == ["sweep"]:
        try:
            from hf_pdyn.sweep.command import sweep
        except ImportError as error:
            sys.exit(f"hf-pdyn: {explained(error)}")
        sweep(arguments[1:])
        return
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"hf-pdyn: {error}\n")
    except ImportError as error:
        parser.exit(2, f"hf-pdyn: {explained(error)}\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-pdyn", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a Trainer script with the plugin: hf-pdyn run [options] script.py ...")
    commands.add_parser("sweep", help="is it p, or only the learning rate? hf-pdyn sweep [options] script.py ...")

    groups = commands.add_parser("groups", help="show how a model's parameters are labelled and grouped")
    groups.set_defaults(command=show_groups)
    groups.add_argument("--model", required=True, help="hub name, checkpoint directory or PEFT adapter directory")
    groups.add_argument("--names", action="store_true", help="list every parameter")
    groups.add_argument("--optim_args", help="as for training: p=0.25,p.norm=0,lr_mult.lora_B=16")
    groups.add_argument("--groups", metavar="FILE.yaml", help="rules that make named groups, as for training")
    groups.add_argument("--weight_decay", type=float, default=0.0)
    groups.add_argument("--learning_rate", type=float, default=5e-5)
    lora = groups.add_argument_group("LoRA", "as it would be added before training")
    lora.add_argument("--lora", metavar="MODULES", help="target modules: c_attn,c_proj or a regex or all-linear")
    lora.add_argument("--lora_r", type=int, help=f"rank (default: {_LORA_RANK})")
    lora.add_argument("--lora_bias", choices=["none", "all", "lora_only"], default="none")
    lora.add_argument("--lora_modules_to_save", metavar="MODULES", help="trained in full: ln_1,ln_2,ln_f")
    lora.add_argument("--dora", action="store_true", help="use_dora=True")

    report = commands.add_parser("report", help="write one HTML page about runs, which opens offline")
    report.set_defaults(command=write_report)
    compare = commands.add_parser("compare", help="print final values and shares of runs, and the settings that differ")
    compare.set_defaults(command=show_comparison)
    explaining = commands.add_parser("explain", help="say in words what p is for a model, and what is wrong with a run")
    explaining.set_defaults(command=show_explanation)
    for command in (report, explaining):
        command.add_argument("--baseline", metavar="RUN_DIR", help="a run that the others are told from")
    explaining.add_argument(
        "--fail_on",
        nargs="+",
        metavar="FINDING",
        default=[],
        help=f"exit with status 1 if one of these is found: any, {', '.join(KINDS)}",
    )
    for command in (report, compare, explaining):
        command.add_argument("runs", nargs="+", metavar="RUN_DIR", help="output_dir of a Trainer with our callbacks")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default: %(default)s")
    report.add_argument("--png", type=Path, metavar="DIR", help="write every chart as an image too")
    return parser


def write_report(options: argparse.Namespace) -> None:
    """Write the page, and the images where they are wanted; problems of runs are on the page and go to stderr."""
    runs = read_runs([*options.runs, *([] if options.baseline is None else [options.baseline])])
    _say_problems(runs)
    baseline = None
    if options.baseline is not None:
        baseline = next(run for run in runs if run.directory.resolve() == Path(options.baseline).resolve())
    write_whole(options.output, page(runs, baseline).encode())
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"{options.output}")
    if options.png is not None:
        written = write_all(options.png, images(runs))
        console.print(f"{len(written)} charts in {options.png}")


def show_comparison(options: argparse.Namespace) -> None:
    """Print the tables that compare runs."""
    runs = read_runs(options.runs)
    _say_problems(runs)
    console = Console()
    unlimited = console.options.update(max_width=100_000)
    for part in comparison(runs):
        # A number that is cut off is worse than a line that the terminal wraps.
        needed = console.measure(part, options=unlimited).maximum
        Console(width=max(console.width, needed)).print(part)


_NO_ALLOCATION = "No allocation curve was recorded: telemetry takes one, or --allocation log."
_NOTHING_TO_JUDGE = "Its records have no metrics of hf_pdyn, so nothing could be found: train with --telemetry global."


def show_explanation(options: argparse.Namespace) -> None:
    """Print sentences and findings of every run.

    Exits with status 1 for a finding that was asked for, and for a run of which none can be told.
    """
    for kind in options.fail_on:
        check_choice("--fail_on", kind, ("any", *KINDS))
    runs = read_runs(options.runs)
    baseline = None if options.baseline is None else read_runs([options.baseline])[0]
    _say_problems(runs)
    console = Console(markup=False, highlight=False)
    failed = False
    for run in runs:
        if len(runs) > 1:
            console.print(f"{run.name}:")
        told = explain(run, baseline)
        for sentence in [*told.earlier, *told.outcome] or [_NO_ALLOCATION]:
            console.print(sentence)
        if baseline is not None and loss_difference(run, baseline) is None:
            console.print(f"It is not compared with {baseline.name}: not both have evaluation losses.")
        for finding in told.findings:
            console.print(f"- {finding.kind}: {finding}")
        judged = any(metric.startswith("pdyn/") for metric in run.metrics)
        if not judged:
            console.print(_NOTHING_TO_JUDGE)
            failed |= bool(options.fail_on)
        elif not told.findings:
            console.print("Nothing was found that needs a word.")
        failed |= any("any" in options.fail_on or finding.kind in options.fail_on for finding in told.findings)
    if failed:
        sys.exit(1)


def _say_problems(runs: Sequence[RecordedRun]) -> None:
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    for run in runs:
        for problem in run.problems:
            console.print(f"hf-pdyn: {run.name}: {problem}")


def show_groups(options: argparse.Namespace) -> None:
    """Print pathway, component, tensors, parameters, decay and p of every group that training would have."""
    from hf_pdyn.frontend.optim_args import STEP_OPTIONS, parse_optim_args
    from hf_pdyn.frontend.trainer_padam import labelled_padam
    from hf_pdyn.grouping import how_to_train_bias_like, split_by_rules
    from hf_pdyn.integrations.transformers import stock_groups
    from hf_pdyn.policy.group_rules import GroupRules

    optim_args = parse_optim_args(options.optim_args)
    model = _load(options)
    # How steps will be computed shows in no group, and may not be possible on this machine.
    settings = {name: value for name, value in optim_args.settings.items() if name not in STEP_OPTIONS}
    optim_args = dataclasses.replace(optim_args, settings=settings)
    optimizer = labelled_padam(model, stock_groups(model, options.weight_decay), optim_args, lr=options.learning_rate)
    if options.groups is not None:
        optimizer.param_groups[:] = split_by_rules(optimizer.param_groups, model, GroupRules.read(options.groups))
    console = Console()
    console.print(_groups_table(optimizer.param_groups, options))
    if options.names:
        console.print(_names_table(optimizer.param_groups))
    trainable = sum(param.numel() for param in model.parameters() if param.requires_grad)
    total = sum(param.numel() for param in model.parameters())
    console.print(f"{trainable:,} of {total:,} parameters are trained.")
    if not any(group["pathway"] == "bias_like" for group in optimizer.param_groups):
        console.print(
            "No bias-like parameter is trained, so there is no D_b and Algorithm 1 (--p_control gradient) cannot "
            f"run: train {how_to_train_bias_like(model)}.",
            markup=False,
        )


def _load(options: argparse.Namespace) -> nn.Module:
    from hf_pdyn.integrations.transformers import build_without_weights

    if (Path(options.model) / "adapter_config.json").is_file():
        from peft import PeftConfig, get_peft_model

        config = PeftConfig.from_pretrained(options.model)
        config.inference_mode = False  # as saved, nothing of the adapter would be trainable
        return get_peft_model(build_without_weights(config.base_model_name_or_path), config)
    try:
        model = build_without_weights(options.model)
    except OSError as error:
        raise ValueError(
            "--model must be a hub name or a directory with a config.json, got "
            f"{options.model!r} ({str(error).splitlines()[0]})"
        ) from error
    if options.lora is None:
        if options.dora or options.lora_modules_to_save or options.lora_bias != "none" or options.lora_r is not None:
            raise ValueError(
                "--lora_r, --dora, --lora_bias and --lora_modules_to_save mean an adapter: name its modules by --lora."
            )
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=_LORA_RANK if options.lora_r is None else options.lora_r,
        target_modules=_modules(options.lora),
        bias=options.lora_bias,
        modules_to_save=_modules(options.lora_modules_to_save),
        use_dora=options.dora,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's, transposed
    )
    try:
        return get_peft_model(model, config)
    except re.error as error:
        raise ValueError(f"--lora must be names or a regular expression, got {options.lora!r}: {error}.") from error


def _modules(text: str | None) -> list[str] | str | None:
    """A list for plain names; a regex or `all-linear` as it is."""
    if text is None or text == "all-linear" or any(character in text for character in "*\\[](|^$"):
        return text
    return text.split(",")


def _groups_table(groups: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    table = Table(title=escape(f"Parameter groups of {options.model}"))
    named = any(NAME in group for group in groups)
    for heading in ("group", "pathway", "component") if named else ("pathway", "component"):
        table.add_column(heading)
    for heading in ("tensors", "parameters", "decay", "p", "lr"):
        table.add_column(heading, justify="right")
    for pathway, members in groupby(sorted(groups, key=_order), key=lambda group: group["pathway"]):
        for group in members:
            size = sum(param.numel() for param in group["params"])
            table.add_row(
                *((group.get(NAME, ""),) if named else ()),
                pathway,
                group["component"],
                str(len(group["params"])),
                f"{size:,}",
                f"{group['weight_decay']:g}",
                f"{group['p']:g}{' (set)' if group['p_pinned'] else ''}",
                f"{group['lr']:g}",
            )
        table.add_section()
    return table


def _order(group: dict[str, Any]) -> tuple[bool, str]:
    return group["pathway"] == "bias_like", group["component"]


def _names_table(groups: list[dict[str, Any]]) -> Table:
    named = any(NAME in group for group in groups)
    headings = ("parameter", *(("group",) if named else ()), "pathway", "component", "shape")
    table = Table(*headings, title="Every trained parameter")
    for group in sorted(groups, key=_order):
        for name, param in zip(group["param_names"], group["params"], strict=True):
            own = (group.get(NAME, ""),) if named else ()
            shape = " x ".join(map(str, param.shape))
            table.add_row(escape(name), *own, group["pathway"], group["component"], shape)
    return table


if __name__ == "__main__":
    main()
