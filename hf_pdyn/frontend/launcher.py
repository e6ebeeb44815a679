"""Runs an unmodified Trainer script with the plugin: `python -m hf_pdyn [plugin options] script.py [its arguments]`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from transformers import HfArgumentParser

from hf_pdyn.common.errors import did_you_mean
from hf_pdyn.frontend.arguments import PdynArguments
from hf_pdyn.frontend.launched import handed_over

_MODULE_FLAGS = ("-m", "--module")
_HELP = {"-h", "--help"}


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
        usage=f"{prog} [plugin options] ([--] script.py | -m module) [its arguments]",
        description="Run a script that uses the transformers Trainer with --optim padam known and the plugin's "
        "callbacks in every Trainer it builds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def launch(words: Sequence[str], prog: str = "python -m hf_pdyn") -> None:
    """Run the script (or module) named in `words` as `__main__`, in this process.

    The options reach every Trainer that is built in it, and in the Python processes that it starts. Exits with status 2
    and one line for options that cannot be meant, and with status 1 and one line where they reached no Trainer; the
    script's own exceptions and exit status pass through.
    """
    parser = build_parser(prog)
    command = _split(words, parser)
    try:
        options, unknown = parser.parse_args_into_dataclasses(
            command.options, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        _refuse(parser, str(error))
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        _refuse(parser, f"unknown plugin option {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    if command.target is None:
        _refuse(parser, "a script is required: its path, or -m and a module's name, after the plugin options.")
    if command.is_module and not _module_exists(command.target):
        _refuse(parser, f"there is no module {command.target!r} to run.")
    if not command.is_module and not os.path.isfile(command.target):
        _refuse(parser, f"script {command.target!r} is no file. Plugin options come before the script's path.")

    with tempfile.TemporaryDirectory(prefix="hf_pdyn-") as folder:
        note = Path(folder, "a-trainer-was-built")
        if options.groups is not None:  # child processes may be in another directory
            options = dataclasses.replace(options, groups=os.path.abspath(options.groups))
        with handed_over(dataclasses.asdict(options), note):
            try:
                _run(command)
            except SystemExit as end:
                if end.code not in (None, 0):
                    raise
        reached = note.exists()
    if not reached and not _HELP & set(command.arguments):
        sys.exit(
            f"{prog}: {command.target} built no Trainer, so padam and the plugin's options reached nothing. They reach "
            "the Trainers of its process and of the Python processes that it starts, unless these ignore PYTHONPATH "
            "(python -I, -E or -S) or run on other machines: start those by the launcher themselves."
        )


def _run(command: _Command) -> None:
    assert command.target is not None
    sys.argv = [command.target, *command.arguments]
    if command.is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(command.target, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(command.target)))
        runpy.run_path(command.target, run_name="__main__")


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.error(message)


def _split(words: Sequence[str], parser: argparse.ArgumentParser) -> _Command:
    """Cut at `--`, at -m, or at the first word that is neither an option nor an option's value.

    argparse cannot: an option that takes several values (`--schedule A B`) takes the script for one more. Here the
    first word after such an option is a value, and so are further ones up to a word that is a file.
    """
    words = list(words)
    i = 0
    while i < len(words):
        word = words[i]
        if word == "--":
            target = words[i + 1] if i + 1 < len(words) else None
            return _Command(words[:i], target, False, words[i + 2 :])
        if word in _MODULE_FLAGS and i + 1 < len(words):
            return _Command(words[:i], words[i + 1], True, words[i + 2 :])
        if not word.startswith("-"):
            return _Command(words[:i], word, False, words[i + 1 :])
        i += 1 + _count_values(parser._option_string_actions.get(word), words[i + 1 :])
    return _Command(words, None, False, [])


def _count_values(option: argparse.Action | None, following: Sequence[str]) -> int:
    """How many of the words behind an option are its values; none if it is unknown, or has its value behind `=`."""
    if option is None or option.nargs == 0:
        return 0
    if option.nargs is None:
        return 1
    more = (i for i, word in enumerate(following) if i > 0 and (word.startswith("-") or os.path.isfile(word)))
    return next(more, len(following))


def _module_exists(name: str) -> bool:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
    finally:
        sys.path.pop(0)
