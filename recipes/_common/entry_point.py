"""How a recipe starts and ends: one-line errors, and no process group left behind."""

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed


class RecipeError(Exception):
    """A bad input, told in one line: the constraint, the value received and the cure."""


def run_recipe(main: Callable[[], None]) -> None:
    """Call ``main``; a bad input becomes one line on stderr and exit code 2."""
    # Decisions of the plugin are lines of its logger.
    logging.basicConfig(format="%(message)s")
    try:
        main()
    except RecipeError as error:
        sys.exit(_report(error))
    except KeyboardInterrupt:
        print("interrupted; continue from the last checkpoint with --resume_from_checkpoint auto", file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        # The plugin checks some options only once it sees the model; its text is for the user too.
        if _raised_in(error, "hf_pdyn"):
            sys.exit(_report(error))
        raise
    finally:
        # gloo now and then aborts the interpreter when its group is still alive at exit.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _raised_in(error: BaseException, package: str) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == package


def _report(error: Exception) -> int:
    one_line = " ".join(str(error).split())
    print(f"{Path(sys.argv[0]).name}: error: {one_line}", file=sys.stderr)
    return 2
