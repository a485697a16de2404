"""Workers that take tasks of a command: processes of this machine by joblib, or those of Dask."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from lstmcore.extras import installing
from lstmcore.notices import Notice
from lstmcore.plugin_calls import UnavailableError, format_error
from lstmcore.threads import asked_threads, using_threads

R = TypeVar("R")
#: Engine -> the package that it needs, and the extra that brings it.
ENGINES: Final = {"joblib": ("joblib", "jobs"), "dask": ("distributed", "dask")}


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """The end of one task: its value, or the text of its error, which may be that of a task that ran beside it."""

    value: R | None = None
    error: str | None = None
    shared: bool = False
    notices: tuple[Notice, ...] = ()


_WATCH_S: Final = 1.0  # between two looks at the parent
_WORKERS_S: Final = 60.0  # for the workers of Dask on this machine to start
_STARTS: Final = 3  # of workers that die before a task runs
#: Number and argument of a task.
Item: TypeAlias = tuple[int, str]
Ends: TypeAlias = Iterator[tuple[int, Outcome[R]]]


#: Runs tasks and yields their ends; a worker that dies is an end with an error.
Run: TypeAlias = Callable[[Callable[[str], Any], Iterable[Item]], Ends[Any]]


@contextmanager
def open_workers(jobs: int, engine: str) -> Iterator[Run]:
    """Yield the workers of an engine, as a function.

    With one job tasks run in this process, one after the other. Dask's workers are those of the scheduler in
    ``DASK_SCHEDULER_ADDRESS``, or else `jobs` processes of this machine.

    Parameters
    ----------
    jobs
        At least 1.
    engine
        A name of `ENGINES`; it counts from two jobs on.

    Raises
    ------
    UnavailableError
        A package of the engine is missing.
    """
    if jobs == 1:
        yield _run_here
        return
    package, extra = ENGINES[engine]
    if find_spec(package) is None:
        raise UnavailableError(f"--jobs: {package} is not installed: {installing(extra)}")
    if engine == "dask":
        with _dask_client(jobs) as client:
            yield partial(_run_on_dask, client, jobs)
    else:
        yield partial(_run_on_joblib, jobs)


@contextmanager
def _dask_client(jobs: int) -> Iterator[Any]:
    """Yield a client of the user's scheduler, or of one for this block, which leaves it to us to restart tasks."""
    import dask
    from distributed import Client, LocalCluster

    if dask.config.get("scheduler-address", None):
        with Client() as client:
            yield client
        return
    alone = {"distributed.scheduler.allowed-failures": 0}
    cluster = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with dask.config.set(alone), LocalCluster(**cluster) as local, Client(local) as client:
        with suppress(TimeoutError):  # those that are there do the work
            client.wait_for_workers(jobs, timeout=_WORKERS_S)
        yield client


def _run_on_joblib(jobs: int, task: Callable[[str], R], items: Iterable[Item]) -> Ends[R]:
    """Run tasks by joblib, which ends all workers if one dies; the tasks that ran then have failed."""
    import joblib

    settings = {"backend": "loky", "batch_size": 1, "pre_dispatch": "n_jobs", "return_as": "generator_unordered"}
    waiting, starts = iter(items), _STARTS
    with tempfile.TemporaryDirectory(prefix="lstmcore-") as folder:
        place = Place(folder, os.getpid(), _threads(jobs))
        while True:
            taken: dict[int, Item] = {}
            calls = (joblib.delayed(_attempt_in)(place, task, item) for item in _noting(waiting, taken))
            try:
                for number, outcome in joblib.Parallel(n_jobs=jobs, **settings)(calls):
                    del taken[number]
                    yield number, outcome
                return
            except Exception as error:  # of a worker's death, by joblib's own class
                ran = [number for number in taken if place.mark(number).exists()]
                starts = _STARTS if ran else starts - 1
                if not starts:
                    raise
                for number in ran:
                    place.mark(number).unlink()
                    del taken[number]
                    yield number, Outcome(error=format_error(error), shared=len(ran) > 1)
                waiting = chain(taken.values(), waiting)


class Place(NamedTuple):
    """Folder with a file for each task that runs, the parent, and the threads of a worker of joblib."""

    folder: str
    parent: int
    threads: int

    def mark(self, number: int) -> Path:
        """Return the file that is there while the task runs."""
        return Path(self.folder, str(number))


def _attempt_in(place: Place, task: Callable[[str], R], item: Item) -> tuple[int, Outcome[R]]:
    """Run a task in a process that ends with its parent, however that ends; joblib's own would wait for minutes."""
    _watch(place.parent)
    mark = place.mark(item[0])
    mark.touch()
    end = _attempt(task, item, place.threads)
    mark.unlink()
    return end


@cache
def _watch(parent: int) -> None:
    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(2)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run_on_dask(client: Any, jobs: int, task: Callable[[str], R], items: Iterable[Item]) -> Ends[R]:
    """Run tasks by Dask itself: by joblib's backend of it (1.6), a call never ends if a worker has died."""
    from distributed import as_completed

    waiting, running = iter(items), dict[Any, Item]()
    shares = Shares(jobs, _slots(client), asked_threads())
    done = as_completed(with_results=True, raise_errors=False)

    def submit(count: int) -> None:
        for item in islice(waiting, count):
            future = client.submit(_attempt_on_dask, task, item, shares, pure=False)
            running[future] = item
            done.add(future)

    submit(jobs)
    for future, end in done:
        number, _ = running.pop(future)
        submit(1)
        second = end if isinstance(end, Exception) else end[1]  # of an end; of an error with its type and traceback
        yield end if isinstance(second, Outcome) else (number, Outcome(error=format_error(second), shared=True))


def _slots(client: Any) -> dict[str, int]:
    """Return, for each worker of a scheduler, how many tasks its machine runs at a time."""
    from distributed.comm.addressing import get_address_host

    threads: dict[str, int] = client.nthreads()
    machines = Counter[str]()
    for address, count in threads.items():
        machines[get_address_host(address)] += count
    return {address: machines[get_address_host(address)] for address in threads}


@dataclass(frozen=True, slots=True)
class Shares:
    """What the threads of a task on Dask depend on.

    `jobs` is the number of tasks at a time, `slots` that of tasks on the machine of each worker, and `asked` the number
    of threads that the command asks for, None if it does not.
    """

    jobs: int
    slots: dict[str, int]
    asked: int | None


def _attempt_on_dask(task: Callable[[str], R], item: Item, shares: Shares) -> tuple[int, Outcome[R]]:
    """Run a task on a worker of Dask, whose processors the client cannot count; the worker stays as it was."""
    import dask.system
    from distributed import get_worker

    worker = get_worker()
    beside = shares.slots.get(worker.address, worker.state.nthreads)  # one that came later knows its own alone
    share = max(1, dask.system.CPU_COUNT // min(shares.jobs, beside))
    return _attempt(task, item, shares.asked or asked_threads() or share)


def _threads(jobs: int) -> int:
    """Return the threads of each of `jobs` workers: as many as asked for, else its share of this machine."""
    return asked_threads() or max(1, (os.cpu_count() or 1) // jobs)


def _run_here(task: Callable[[str], R], items: Iterable[Item]) -> Ends[R]:
    return (_attempt(task, item) for item in items)


def _attempt(task: Callable[[str], R], item: Item, threads: int | None = None) -> tuple[int, Outcome[R]]:
    """Run a task where the worker is, with so many threads; None leaves their number to the task."""
    number, argument = item
    value, error = None, None
    own = nullcontext() if threads is None else using_threads(threads)
    with own, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        try:
            value = task(argument)
        except Exception as failure:  # whatever it is, the other tasks go on
            error = str(failure) if isinstance(failure, ValueError) else format_error(failure)
    notices = tuple(one.message for one in caught if isinstance(one.message, Notice))
    for one in caught:
        if not isinstance(one.message, Notice):  # recorded with them, and told as without a folder
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return number, Outcome(value, error, notices=notices)


def run_tasks(task: Callable[[str], R], arguments: Sequence[str], workers: Run) -> Ends[R]:
    """Yield the number of each task with its end, as they end; a task that fails is run once more, alone.

    A worker's death may be that of a task that ran beside it, and so is counted only if none did.

    Parameters
    ----------
    task
        A function that can be pickled.
    arguments
        One for each task.
    workers
        As `open_workers` yields them.
    """
    again: list[tuple[Item, int]] = []
    for number, outcome in workers(task, enumerate(arguments)):
        if outcome.error is None:
            yield number, outcome
        else:
            again.append(((number, arguments[number]), 2 if outcome.shared else 1))
    for item, tries in again:
        for tried in range(1, tries + 1):
            ((number, outcome),) = workers(task, [item])
            if outcome.error is None or tried == tries:
                yield number, outcome
                break


def _noting(items: Iterator[Item], noted: dict[int, Item]) -> Iterator[Item]:
    for item in items:
        noted[item[0]] = item
        yield item
