"""Cases staged by several processes at once, within a memory limit, none of which can take the others with it. Called by `store.build_store`."""

import concurrent.futures
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from jaxseg.data.memory import estimated_bytes
from jaxseg.data.staging import Job, stage, without_paths
from jaxseg.errors import InputError, JaxsegError

Outcome = tuple[Job, str | None]


def stage_all(jobs: Sequence[Job], processes: int, memory: int | None = None) -> Iterator[Outcome]:
    """Stage every job; yields (job, None or the reason it was left out) as they finish.

    Workers are spawned (a forked jax hangs) and hold one case each; a case is handed out when a worker is free and its estimated memory fits
    beside those that run. A case that ends its worker (killed for memory, a crash inside a decoder) is found by trying those that ran
    once more, each alone, and is left out.

    Args:
        memory: bytes that all workers together may take; a case that alone needs more is left out with that reason. None: no limit.

    Raises:
        JaxsegError: no worker can be started at all. An error of jaxseg's own comes with its traceback in the worker, the case id last.
    """
    needs: dict[Path, int] = {}
    for job in jobs:
        reason, needs[job.path] = _too_large(job, memory)
        if reason is not None:
            del needs[job.path]
            yield job, reason
    jobs = [job for job in jobs if job.path in needs]
    if processes <= 1 or len(jobs) < 2:
        for job in jobs:
            yield job, stage(job)
        return
    waiting, finished = list(jobs), False
    while waiting:
        running: dict[concurrent.futures.Future[str | None], Job] = {}
        try:
            for outcome in _pooled(waiting, running, processes, needs, memory):
                finished = True
                yield outcome
        except BrokenProcessPool:
            suspects = list(running.values())
            for job in suspects:
                outcome = _alone(job)
                if outcome[1] is not None and not finished and job is suspects[-1]:
                    raise _no_worker(suspects) from None
                finished = finished or outcome[1] is None
                yield outcome


def _too_large(job: Job, memory: int | None) -> tuple[str | None, int]:
    if memory is None:
        return None, 0
    try:
        need = estimated_bytes(job.case, job.recipe)
    except InputError as error:
        return without_paths(str(error), job.case), 0
    if need <= memory:
        return None, need
    return (
        f"preparing it takes about {need / 2**30:.1f} GiB of memory, and {memory / 2**30:.1f} GiB may be used: raise --memory-gib, choose a "
        "coarser --spacing, or prepare it on a larger machine"
    ), need


def _pooled(
    waiting: list[Job],
    running: dict[concurrent.futures.Future[str | None], Job],
    processes: int,
    needs: dict[Path, int],
    memory: int | None,
) -> Iterator[Outcome]:
    """Stage `waiting` jobs (taken off the list as they start) in one pool; what runs is in `running`, also when the pool breaks."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(processes, len(waiting)), mp_context=context) as pool:
        try:
            while waiting or running:
                while job := _next(waiting, list(running.values()), processes, needs, memory):
                    running[pool.submit(stage, job)] = job
                    waiting.remove(job)  # only now: a broken pool refuses it, and it must be tried again
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    reason = future.result()
                    yield running.pop(future), reason
        finally:
            for future in running:
                future.cancel()


def _next(waiting: list[Job], running: list[Job], processes: int, needs: dict[Path, int], memory: int | None) -> Job | None:
    """The first waiting case that fits beside the running ones: one a worker, so that none waits with its memory promised."""
    if len(running) >= processes:
        return None
    free = None if memory is None else memory - sum(needs[job.path] for job in running)
    return next((job for job in waiting if free is None or not running or needs[job.path] <= free), None)


def _alone(job: Job) -> Outcome:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return job, pool.submit(stage, job).result()
        except BrokenProcessPool:
            return job, (
                "the process that prepared it died, twice: most often the memory was short, or a decoder crashed on damaged data; "
                "prepare it on a larger machine, or with a coarser --spacing"
            )


def _no_worker(jobs: Sequence[Job]) -> JaxsegError:
    return JaxsegError(
        f"every worker process died while preparing cases, among them {', '.join(job.case.id for job in jobs[:4])}: most often the memory "
        "was short. What was done is kept; run the same command again with processes=1 (--processes 1). "
        "(In a script of your own, call this under `if __name__ == '__main__':`.)"
    )
