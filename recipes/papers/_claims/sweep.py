"""Many runs of a claim: what is in the rows already is not run again."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, nullcontext

import torch
import transformers
from tqdm.auto import tqdm

from .options import Options
from .processes import from_main_process, is_main_process
from .rows import Configuration, Result, Row, Rows, SharedRows

Work = Callable[[Configuration, Options], Result]
"""Takes a configuration, returns its result; at the top level of a module, since other processes import it."""


def run_all(
    configurations: Sequence[Configuration], work: Work, rows: Rows | SharedRows, options: Options, title: str
) -> list[Row]:
    """The rows of all configurations, in their order; those that are missing are run, `options.jobs` at a time."""
    with rows.locked() if is_main_process() else nullcontext():
        # Of processes that train together, the main one has read the file under its lock.
        missing = from_main_process(
            lambda: [configuration for configuration in configurations if rows.of(configuration) is None],
            options.device,
        )
        told = f"{title}: {len(missing)} of {len(configurations)} runs to do, rows in {rows.path}"
        if is_main_process():
            print(told if missing else f"{told}; another --output_dir does them anew")
        if missing:
            _run(missing, work, rows, options, title)
        return [row for configuration in configurations if (row := rows.of(configuration)) is not None]


def _run(missing: Sequence[Configuration], work: Work, rows: Rows | SharedRows, options: Options, title: str) -> None:
    with ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=len(missing), desc=title, unit="run", disable=not is_main_process()))
        if options.jobs == 1:
            for configuration in missing:
                result, seconds = _timed(work, configuration, options)
                if is_main_process():
                    rows.add(configuration, result, seconds, options.device)
                progress.update()
            return
        pool = stack.enter_context(_pool(min(options.jobs, len(missing))))
        waiting: dict[Future[tuple[Result, float]], Configuration] = {
            pool.submit(_timed, work, configuration, options): configuration for configuration in missing
        }
        try:
            for finished in as_completed(waiting):
                result, seconds = finished.result()
                rows.add(waiting[finished], result, seconds, options.device)
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Not forked: torch's threads do not survive it.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)


def _begin_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _timed(work: Work, configuration: Configuration, options: Options) -> tuple[Result, float]:
    start = time.perf_counter()
    return work(configuration, options), time.perf_counter() - start
