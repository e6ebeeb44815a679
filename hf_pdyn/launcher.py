"""Runs an unmodified Trainer script with the plugin: `python -m hf_pdyn [plugin options] script.py [its arguments]`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from transformers import HfArgumentParser

from hf_pdyn.arguments import PdynArguments
from hf_pdyn.integrations.transformers import add_default_callbacks
from hf_pdyn.suggest import did_you_mean


def build_parser(prog: str) -> HfArgumentParser:
    """The launcher's own options, then the script and everything that is the script's."""
    parser = HfArgumentParser(
        PdynArguments,
        prog=prog,
        usage=f"{prog} [plugin options] script.py [script's arguments]",
        description="Run a script that uses the transformers Trainer with --optim padam known and the plugin's "
        "callbacks in every Trainer it builds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-m", "--module", action="store_true", help="The script is a module's name, as in python -m.")
    parser.add_argument("script", help="The script (or module) to run.")
    parser.add_argument("script_arguments", nargs=argparse.REMAINDER, help="Passed on to it untouched.")
    return parser


def launch(arguments: Sequence[str], prog: str = "python -m hf_pdyn") -> None:
    """Run the script named in `arguments` as `__main__`, in this process.

    Exits with status 2 and one line for options that cannot be meant; the script's own exceptions and
    exit status pass through.
    """
    parser = build_parser(prog)
    try:
        options, own, unknown = parser.parse_args_into_dataclasses(
            list(arguments), look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        parser.error(f"unknown plugin option {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    if not own.module and not os.path.isfile(own.script):
        parser.error(f"script {own.script!r} is no file. Plugin options come before the script's path.")

    add_default_callbacks(options.callbacks)
    sys.argv = [own.script, *own.script_arguments]
    if own.module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(own.script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(own.script)))
        runpy.run_path(own.script, run_name="__main__")
