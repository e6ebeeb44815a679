"""Many runs of a claim: what is in the rows already is not run again."""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
import transformers
from tqdm.auto import tqdm

from _common.entry_point import RecipeError

from .options import Options
from .processes import from_main_process, is_main_process, world_size
from .rows import Configuration, Result, Row, Rows, SharedRows

STARTED = time.monotonic()
"""When this program began, from which the minutes are counted that all of its claims have together."""

Work = Callable[[Configuration, Options], Result]
"""Takes a configuration, returns its result; at the top level of a module, since other processes import it."""


@dataclass(frozen=True)
class WorkTogether:
    """Work that does several runs at once, `options.together` of them; results in the order of configurations."""

    run: Callable[[Sequence[Configuration], Options], Sequence[Result]]


def run_all(
    configurations: Sequence[Configuration],
    work: Work | WorkTogether,
    rows: Rows | SharedRows,
    options: Options,
    title: str,
) -> list[Row]:
    """The rows of all configurations, in their order; those that are missing are run, `options.jobs` at a time.

    With `options.minutes` no run begins that would end later, by what the ones before it took: then rows are missing.
    """
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


def _run(
    missing: Sequence[Configuration], work: Work | WorkTogether, rows: Rows | SharedRows, options: Options, title: str
) -> None:
    together = isinstance(work, WorkTogether)
    if together and world_size() > 1:
        raise RecipeError(
            f"{title} must run in one process, got {world_size()}: it trains many networks at once; leave "
            "out the launcher"
        )
    size = options.together if together else 1
    groups = [missing[start : start + size] for start in range(0, len(missing), size)]
    clock = _Clock(options.minutes)
    with ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=len(missing), desc=title, unit="run", disable=not is_main_process()))

        def keep(group: Sequence[Configuration], found: tuple[Sequence[Result], float]) -> None:
            results, seconds = found
            clock.took(seconds)
            if is_main_process():
                for configuration, result in zip(group, results, strict=True):
                    rows.add(configuration, result, seconds / len(group), options.device)
            progress.update(len(group))

        if options.jobs == 1:
            for group in groups:
                if clock.has_time():
                    keep(group, _timed(work, group, options))
            return
        pool = stack.enter_context(_pool(min(options.jobs, len(groups))))
        waiting: dict[Future[tuple[Sequence[Result], float]], Sequence[Configuration]] = {}
        to_do = iter(groups)
        try:
            while True:
                while len(waiting) < options.jobs and clock.has_time() and (group := next(to_do, None)):
                    waiting[pool.submit(_timed, work, group, options)] = group
                if not waiting:
                    return
                for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                    keep(waiting.pop(finished), finished.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Clock:
    """Whether another group of runs would end in time, if it took as long as the longest so far."""

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else STARTED + 60 * minutes
        self._longest = 0.0

    def took(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)

    def has_time(self) -> bool:
        return time.monotonic() + self._longest < self._end


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


def _timed(
    work: Work | WorkTogether, group: Sequence[Configuration], options: Options
) -> tuple[Sequence[Result], float]:
    start = time.perf_counter()
    results = work.run(group, options) if isinstance(work, WorkTogether) else [work(one, options) for one in group]
    return results, time.perf_counter() - start
