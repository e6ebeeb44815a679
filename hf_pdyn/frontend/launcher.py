"""Runs an unmodified Trainer script with the plugin: `python -m hf_pdyn [plugin options] script.py [its arguments]`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from transformers import HfArgumentParser

from hf_pdyn.common.errors import did_you_mean
from hf_pdyn.frontend.arguments import PdynArguments
from hf_pdyn.integrations.transformers import add_default_callbacks

_MODULE_FLAGS = ("-m", "--module")


class _Command(NamedTuple):
    """A command line taken apart: our words, what to run, and the words that are its own."""

    options: list[str]
    target: str | None
    is_module: bool
    arguments: list[str]


def build_parser(prog: str) -> HfArgumentParser:
    """The launcher's own options; script and arguments appear in its help only."""
    return HfArgumentParser(
        PdynArguments,
        prog=prog,
        usage=f"{prog} [plugin options] (script.py | -m module) [its arguments]",
        description="Run a script that uses the transformers Trainer with --optim padam known and the plugin's "
        "callbacks in every Trainer it builds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def launch(words: Sequence[str], prog: str = "python -m hf_pdyn") -> None:
    """Run the script (or module) named in `words` as `__main__`, in this process.

    Exits with status 2 and one line for options that cannot be meant; the script's own exceptions and
    exit status pass through.
    """
    command = _split(words)
    parser = build_parser(prog)
    try:
        options, unknown = parser.parse_args_into_dataclasses(
            command.options, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        _refuse(parser, str(error))
    if unknown and unknown[0].startswith("-"):
        known = [option for action in parser._actions for option in action.option_strings]
        _refuse(parser, f"unknown plugin option {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    if unknown:
        _refuse(parser, f"script {unknown[0]!r} is no file. Plugin options come before the script's path.")
    if command.target is None:
        _refuse(parser, "a script is required: its path, or -m and a module's name, after the plugin options.")
    if command.is_module and not _module_exists(command.target):
        _refuse(parser, f"there is no module {command.target!r} to run.")

    add_default_callbacks(options.callbacks)
    sys.argv = [command.target, *command.arguments]
    if command.is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(command.target, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(command.target)))
        runpy.run_path(command.target, run_name="__main__")


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.error(message)


def _split(words: Sequence[str]) -> _Command:
    """Cut at the first word that is a file, or at -m.

    argparse cannot: an option that takes several values (`--schedule A B`) takes the script for one more.
    """
    words = list(words)
    for i, word in enumerate(words):
        if word in _MODULE_FLAGS and i + 1 < len(words):
            return _Command(words[:i], words[i + 1], True, words[i + 2 :])
        if os.path.isfile(word):
            return _Command(words[:i], word, False, words[i + 1 :])
    return _Command(words, None, False, [])


def _module_exists(name: str) -> bool:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
    finally:
        sys.path.pop(0)
