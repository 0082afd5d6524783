"""Rows of many scans, in their order, read by several processes (or threads, for a small archive). Called by `index`.

At most a few chunks wait at a time, so that memory is that of the scans being read, whatever the archive's size. A process that dies takes its
scan's row with it, not the run.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context

from jaxseg.data.archive.scan_row import Row, Settings, Task, died_row, read_row
from jaxseg.data.child_process import follow_parent
from jaxseg.errors import JaxsegError
from jaxseg.freed_memory import keep_freed_memory

_CHUNK = (24, 1 << 24)  # scans, bytes on disk: large enough that handing over costs nothing
_SMALL = (300, 1 << 26)  # below both, starting processes takes longer than reading
_WAITING = 4  # chunks a worker

_settings: list[Settings] = []


def read_rows(items: Iterable[Task | Row], settings: Settings, *, processes: int | None = None, threads: int = 2) -> Iterator[Row]:
    """The row of every task in the order of `items`; rows that are known already pass through at their place.

    Args:
        processes: how many to start; 1 reads in this one, None starts one a core where the archive is large enough.
        threads: how many scans are read at once without processes.
    """
    items = iter(items)
    if processes is None:
        first = list(_first(items))
        tasks = [item for item in first if isinstance(item, Task)]
        small = len(tasks) < _SMALL[0] and sum(task.size for task in tasks) < _SMALL[1]
        processes, items = 1 if small else min(os.cpu_count() or 1, 32), chain(first, items)
    if processes <= 1:
        with ThreadPoolExecutor(threads) as pool:
            yield from _in_order(items, settings, pool, threads)
        return
    pool = _started(processes, settings)
    try:
        yield from _in_order(items, settings, pool, processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _first(items: Iterator[Task | Row]) -> Iterator[Task | Row]:
    """As many items as it takes to know whether there is much to read."""
    count = size = 0
    for item in items:
        yield item
        if isinstance(item, Task):
            count, size = count + 1, size + item.size
        if count >= _SMALL[0] or size >= _SMALL[1]:
            return


def _in_order(items: Iterable[Task | Row], settings: Settings, pool: Executor, workers: int) -> Iterator[Row]:
    waiting: deque[tuple[Future[list[Row]] | None, list]] = deque()
    in_threads = isinstance(pool, ThreadPoolExecutor)

    def submit(chunk: list[Task]) -> Future[list[Row]]:
        return pool.submit(_read_here, chunk, settings) if in_threads else pool.submit(_read_in_process, chunk)

    for chunk in _chunks(items, 1 if in_threads else _CHUNK[0]):
        known = not isinstance(chunk[0], Task)
        waiting.append((None, chunk) if known else (submit(chunk), chunk))
        while len(waiting) > _WAITING * workers:
            yield from _result(*waiting.popleft(), settings)
    while waiting:
        yield from _result(*waiting.popleft(), settings)


def _result(future: Future[list[Row]] | None, chunk: list, settings: Settings) -> list[Row]:
    if future is None:
        return chunk
    try:
        return future.result()
    except BrokenProcessPool:
        return [row for task in chunk for row in _alone(task, settings)]


def _alone(task: Task, settings: Settings) -> list[Row]:
    """A scan read in a process of its own, after one that read several has died."""
    with _started(1, settings) as pool:
        try:
            return pool.submit(_read_in_process, [task]).result()
        except BrokenProcessPool:
            return [died_row(task, settings)]


def _chunks(items: Iterable[Task | Row], most: int) -> Iterator[list]:
    """Runs of tasks, or of known rows, of bounded number and size."""
    chunk: list = []
    size = 0
    for item in items:
        task = isinstance(item, Task)
        if chunk and (isinstance(chunk[0], Task) != task or len(chunk) >= most or size >= _CHUNK[1]):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item.size if isinstance(item, Task) else 0
    if chunk:
        yield chunk


def _started(processes: int, settings: Settings) -> ProcessPoolExecutor:
    # spawn: forking a process in which jax has started its threads can deadlock
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(settings,))
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        pool.shutdown()
        raise JaxsegError(
            "worker processes cannot be started; in a script of your own, call this under `if __name__ == '__main__':`, or choose processes=1"
        ) from error
    return pool


def _begin(settings: Settings) -> None:
    _settings[:] = [settings]
    # What one scan needed the next one needs again: clearing new pages for it takes a fifth of the time of a scan of 64³ voxels.
    keep_freed_memory()
    follow_parent()


def _read_in_process(chunk: list[Task]) -> list[Row]:
    return _read_here(chunk, _settings[0])


def _read_here(chunk: list[Task], settings: Settings) -> list[Row]:
    return [read_row(task, settings) for task in chunk]
