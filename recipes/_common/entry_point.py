"""How a recipe starts and ends: one-line errors, and an exit code that says what happened."""

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch.distributed


class RecipeError(Exception):
    """A bad input, told in one line: the constraint, the value received and the cure."""


class DivergedError(RecipeError):
    """Training ended with a loss that is not finite."""


def run_recipe(main: Callable[[], None]) -> None:
    """Call ``main``; a bad input becomes one line on stderr and exit code 2."""
    # Decisions of the plugin are lines of its logger.
    logging.basicConfig(format="%(message)s")
    code = _code_of(main)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _end_together(code)
    if code:
        sys.exit(code)


def _code_of(main: Callable[[], None]) -> int:
    try:
        main()
    except RecipeError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted; continue from the last checkpoint with --resume_from_checkpoint auto", file=sys.stderr)
        return 130
    except ValueError as error:
        # The plugin checks some options only once it sees the model; its text is for the user too.
        if _raised_in(error, "hf_pdyn"):
            return _report(error)
        raise
    return 0


def _end_together(code: int) -> NoReturn:
    """End this process of several, without taking its interpreter down.

    gloo's threads outlive `destroy_process_group` where there was a DDP model, which keeps the group (torch 2.13).
    One that has yet to drop the tensors of the last collective needs the interpreter's lock for it, and where that is
    gone the process is aborted, now and then, after all its work is done.
    """
    try:
        torch.distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _raised_in(error: BaseException, package: str) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == package


def _report(error: Exception) -> int:
    one_line = " ".join(str(error).split())
    print(f"{Path(sys.argv[0]).name}: error: {one_line}", file=sys.stderr)
    return 2
